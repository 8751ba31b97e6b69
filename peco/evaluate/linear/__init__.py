"""Evaluation by a linear probe."""
