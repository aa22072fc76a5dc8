"""A checkpoint of a network that is quick to build."""

from __future__ import annotations

import torch
from torch import Tensor

from cwbass.config import ModelConfig
from cwbass.data.base import DatasetSpec
from cwbass.models import build_model
from cwbass.params import Params, dump_params
from cwbass.training.checkpoint import Checkpoint

TINY = ModelConfig(arch="unet", encoder="tu-mobilenetv4_conv_small_050", options={"encoder_depth": 2, "decoder_channels": [8, 8]})
SPLIT = "ab" * 32


def tiny_checkpoint(
    *, seed: int = 0, class_names: tuple[str, ...] = ("sky", "road"), networks: tuple[str, ...] = ("student", "teacher")
) -> Checkpoint:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in networks:
        state |= {f"{name}.{key}": value for key, value in build_model(TINY, class_names).state_dict().items()}
    return Checkpoint(
        method="cw_bass",
        method_state=state | {"thresholds": torch.zeros(len(class_names))},
        networks=networks,
        params=dump_params(Params(model=TINY)),
        spec=DatasetSpec(class_names, tuple((index, 0, 0) for index in range(len(class_names)))).to_dict(),
        split_hash=SPLIT,
        seed=seed,
        step=40,
        epoch=2,
        stage="train",
    )
