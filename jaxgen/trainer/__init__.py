"""The training loop on the host: batches, evaluation, checkpoints and callbacks."""
