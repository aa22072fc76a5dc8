"""Any architecture of segmentation-models-pytorch with any of its or timm's encoders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.config import ModelConfig
from cwbass.errors import ParamsError, one_line
from cwbass.models.base import SegmentationNet

ARCHITECTURES: tuple[str, ...] = tuple(sorted(smp.MODEL_ARCHITECTURES_MAPPING))


class SmpNet(SegmentationNet):
    """Wraps an smp model: normalises, and pads odd sizes to what the encoder can halve.

    Args:
        config: Architecture, one of ``ARCHITECTURES``, and encoder; weights are loaded elsewhere.
        class_names: One for each of C logits.

    Raises:
        ParamsError: The encoder is unknown, or an option does not fit the architecture.
    """

    def __init__(self, config: ModelConfig, class_names: Sequence[str]) -> None:
        super().__init__(config.mean, config.std)
        known = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[config.arch]).parameters
        foreign = [name for name in config.options if name not in known]
        if foreign and not config.encoder.startswith("tu-"):  # timm refuses what it does not know; smp drops it
            raise ParamsError(f"model.options: {config.arch} has no {', '.join(foreign)}; it has {', '.join(known)}.")
        try:
            self.net: Any = smp.create_model(
                config.arch, config.encoder, encoder_weights=None, in_channels=3, classes=len(class_names), **config.options
            )
        except (AssertionError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise ParamsError(
                f"model: {config.arch} with encoder {config.encoder!r} and options {dict(config.options)} cannot be built: "
                f"{one_line(error)} Encoders are smp's names or timm's as tu-<name>."
            ) from error
        self.is_dpt = config.arch == "dpt"
        # dpt halves the deepest map once more.
        self.stride = self.net.encoder.output_stride * (2 if self.is_dpt else 1)
        if self.is_dpt and self.net.encoder.output_stride not in (8, 16, 32):  # DINOv2 has patches of 14
            self.net.decoder = _decoder_as_of_patches_of_16(self.net.encoder, config.options)
            self.net.initialize()

    def encode(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        if bottom or right:
            # Replicated edges: zeros would put a false object border next to the image's own.
            image = F.pad(image, (0, right, 0, bottom), mode="replicate")
        maps = self.net.encoder(image)
        if self.is_dpt:  # maps, and a class token for each where the transformer has one
            maps = [*maps[0], *(token for token in maps[1] if token is not None)]
        return [image.new_empty((0, 0, height, width)), *maps]

    def decode(self, features: list[Tensor]) -> Tensor:
        size, maps = features[0].shape[-2:], features[1:]
        if self.is_dpt:
            count = len(self.net.encoder.out_channels)
            tokens: Sequence[Tensor | None] = maps[count:] or [None] * count
            decoded = self.net.decoder(maps[:count], tokens)
        else:
            decoded = self.net.decoder(maps)
        logits: Tensor = self.net.segmentation_head(decoded)
        padded = (size[0] + -size[0] % self.stride, size[1] + -size[1] % self.stride)
        if logits.shape[-2:] != padded:  # of patches that are not 16 pixels wide
            logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]

    def pretrained_part(self) -> nn.Module:
        encoder: nn.Module = self.net.encoder
        return encoder

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.net.encoder.parameters())


def _decoder_as_of_patches_of_16(encoder: Any, options: Mapping[str, Any]) -> nn.Module:
    """smp's DPT decoder, whose maps fit on each other for patches of 8, 16 or 32 pixels only.

    As in UniMatch V2 (arXiv:2410.10777): a patch makes 4, 2, 1 and 1/2 places of its four maps, whatever its own size.
    """
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    settings = {key.removeprefix("decoder_"): value for key, value in options.items() if key.startswith("decoder_")}
    strides = [16] * len(encoder.out_channels)
    decoder: nn.Module = DPTDecoder(encoder.out_channels, strides, encoder.has_prefix_tokens, **settings)
    return decoder
