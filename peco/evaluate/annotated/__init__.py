"""Annotated images for segmentation and detection: the protocols, a loader, scenes, and the parts that both stages share."""
