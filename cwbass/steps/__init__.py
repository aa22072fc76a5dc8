"""What the stages do. The CLI, the DVC stages and the pipeline's components call these alone.

A step takes its own sections of params.yaml and paths, reads no environment and no arguments,
writes below its output folder, and returns a small frozen report.
"""
