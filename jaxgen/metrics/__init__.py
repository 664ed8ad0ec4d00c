"""Metrics of generated texts and of predicted labels: functions of sequences and arrays."""
