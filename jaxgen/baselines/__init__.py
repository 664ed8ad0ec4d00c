"""Baseline models without recurrence."""
