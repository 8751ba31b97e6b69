"""Images as users have them (folders, archives, WebDataset, scenes), and the writer of shards."""
