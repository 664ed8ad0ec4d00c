"""Reading what the user names: sources, tables, data sets, splits, token arrays and batches. No task knowledge."""
