"""Evaluation of perceptual agreement: triplets, distances, scores."""
