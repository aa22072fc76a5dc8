"""The five steps as Kubeflow components: text and paths in, one step function of cwbass called, metrics out.

A body runs alone in its pod: it may use its arguments and imports of its own, nothing of this file or package.
Parameters arrive as YAML text (a dict would turn 1 into 1.0), data as a path or an ``s3://`` URI.
"""

from components.evaluate import evaluate
from components.register import register, verdict
from components.split import split
from components.train import train
from components.warmup import warmup

__all__ = ["evaluate", "register", "split", "train", "verdict", "warmup"]
