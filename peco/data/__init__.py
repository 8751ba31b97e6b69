"""Images, shards, the global order of samples, views and batches."""
