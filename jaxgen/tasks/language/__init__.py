"""Language modelling (many-to-many, aligned)."""
