"""Reader of images with a mask of class indices each."""
