"""The Kubeflow pipeline: ``python -m pipeline compile | compile-compare | run-local | submit``, from a checkout."""
