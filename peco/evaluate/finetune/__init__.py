"""Evaluation by fine-tuning for classification."""
