"""Measurements outside the workflow: baselines of the `scenes` data set, perceptual agreement of several tokenizers."""
