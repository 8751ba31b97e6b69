"""The stages of dvc.yaml before and after the evaluations, one module each."""
