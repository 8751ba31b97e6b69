"""The workflow: parameters, launcher, experiments."""
