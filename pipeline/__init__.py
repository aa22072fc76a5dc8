"""The Kubeflow pipeline: ``python -m pipeline compile | run-local | submit``, from a checkout."""
