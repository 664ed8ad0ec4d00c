"""Reads data and makes batches of them: sources, tables, data sets, splits, token arrays. Knows no task."""
