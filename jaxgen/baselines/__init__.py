"""Models without a recurrence, to compare with."""
