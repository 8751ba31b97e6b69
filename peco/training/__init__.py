"""The one training loop: steps, checkpoints, schedules, distributed processes, curves, progress, Prometheus."""
