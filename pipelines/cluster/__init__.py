"""One stage as a job on a cluster, through TorchX: on Volcano or on Slurm."""
