"""One stage as a TorchX job: on this machine, on Kubernetes with Volcano, or on Slurm."""
