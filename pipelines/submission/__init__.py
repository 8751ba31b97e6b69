"""What sending a pipeline to Kubeflow needs: the runs to make, the checks before them, the API, and the watching."""
