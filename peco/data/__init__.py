"""Images to shards to views to batches."""
