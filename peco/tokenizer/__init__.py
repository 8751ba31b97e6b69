"""The perceptual tokenizer: autoencoder, quantizer, objectives, model folders."""
