"""Models in formats of other programs: safetensors, StableHLO, PyTorch state dicts; and weights from elsewhere."""
