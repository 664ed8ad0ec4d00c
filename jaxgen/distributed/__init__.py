"""Training one run with several processes. A run of one process never loads this package."""
