"""Semi-supervised semantic segmentation with CW-BASS (arXiv:2502.15152)."""

__version__ = "0.1.0"
