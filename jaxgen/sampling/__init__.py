"""Sampling: logit transforms, the decode loop and beam search. All of it works on a step function, not on a model."""
