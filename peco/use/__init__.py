"""The commands of `peco`: predictions, embeddings, similar images, exports."""
