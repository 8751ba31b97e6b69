"""The stages as a Kubeflow pipeline: compile it, submit it, follow it; and its steps in their pods."""
