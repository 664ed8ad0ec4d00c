"""The shared part of the encoder-decoder tasks, translation and captioning."""
