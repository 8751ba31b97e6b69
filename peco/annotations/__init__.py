"""The parts that segmentation and detection share: protocols of annotated images, files, splits, scenes, a loader, pictures."""
