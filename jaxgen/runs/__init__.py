"""What a run keeps on disk: its directory, config, checkpoints, logs and lock."""
