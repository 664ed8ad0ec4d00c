"""Interpolated modified Kneser-Ney n-grams: counted in one pass, then evaluated and sampled like the others."""
