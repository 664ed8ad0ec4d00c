"""Image captioning (one-to-many)."""
