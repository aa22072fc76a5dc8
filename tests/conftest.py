from fake_s3 import s3
from tiny import shapes, tiny_run

__all__ = ["s3", "shapes", "tiny_run"]
