"""Text classification (many-to-one)."""
