"""Scripts behind the figures in the documentation."""
