"""The tasks, one folder each. Nothing is imported here: see tasks/registry.py."""
