"""kNN and linear probe on frozen features, and the splits that they need."""
