"""The figures that a run draws, one module per figure."""
