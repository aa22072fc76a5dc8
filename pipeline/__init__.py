"""The Kubeflow pipelines: ``python -m pipeline compile | compile-compare | run-local | run-local-compare | submit | doctor``."""
