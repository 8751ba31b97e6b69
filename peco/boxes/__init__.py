"""Readers of boxes and their masks: COCO, YOLO, Pascal VOC."""
