"""The training loop on the host, and what it calls at evaluations and checkpoints."""
