"""The perceptual tokenizer: autoencoder, quantizer, loss."""
