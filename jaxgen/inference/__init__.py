"""Inference with a trained run: sample, chat, predict, score, beam search, replay."""
