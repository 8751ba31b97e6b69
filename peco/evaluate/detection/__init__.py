"""Evaluation by object detection: readers of annotations, Mask R-CNN, average precision, pictures."""
