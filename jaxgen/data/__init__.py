"""Data and batches, independent of tasks: files, tables, data sets, splits, tokens."""
