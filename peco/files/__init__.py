"""Files of data sets: folders and archives, the names in them, and the words in names."""
