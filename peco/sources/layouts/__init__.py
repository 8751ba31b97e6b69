"""Layouts of folders and archives of images: which split and label each image has, by the names of the files."""
