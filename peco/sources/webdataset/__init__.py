"""Existing WebDataset tars as a source: finding and opening them, keys, labels, splits."""
