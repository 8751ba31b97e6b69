"""Checkpoints as people have them, converted to timm folders: `python -m peco.convert`."""
