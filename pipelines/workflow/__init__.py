"""The workflow's description and its tools: dvc.yaml, parameters, resources, inputs, git, child processes."""
