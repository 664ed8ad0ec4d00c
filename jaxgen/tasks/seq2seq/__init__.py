"""What the encoder-decoder tasks, translation and captioning, share."""
