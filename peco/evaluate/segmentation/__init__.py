"""Evaluation by semantic segmentation: folders of masks, UPerNet, scores."""
