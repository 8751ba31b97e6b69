"""The cost of a run before it runs: images, steps, FLOPs, memory, disk and time of each stage."""
