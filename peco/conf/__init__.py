"""Hydra groups and presets; pipelines/params.py composes them into params.yaml."""
