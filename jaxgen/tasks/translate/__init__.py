"""Translation (many-to-many, unaligned)."""
