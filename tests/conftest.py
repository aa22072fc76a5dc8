from tiny import shapes, tiny_run

__all__ = ["shapes", "tiny_run"]
