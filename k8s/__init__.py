"""Image and manifests for Kubernetes; the modules check the manifests."""
