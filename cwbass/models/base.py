"""What the rest of the project asks of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("encode", "decode")


class SegmentationNet(nn.Module, ABC):
    """Images in, logits out, any size.

    The network owns its normalisation, so that no caller can forget it or do it twice.
    ``encode`` and ``decode`` are apart for methods that work on features between them.

    Args:
        mean: RGB mean of images scaled to [0, 1].
        std: RGB deviation of images scaled to [0, 1].
    """

    pixel_mean: Tensor  # [1, 3, 1, 1], 0 to 255
    pixel_std: Tensor
    stride: int = 1  # sides of images are padded to multiples of it, pixels
    auxiliary_weight: float = 0.0  # what the labelled loss of each auxiliary head counts; 0: there are none

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self._awaits_pass = False  # whether the next pass with a gradient is the first of a step
        self._first_pass: list[Tensor] | None = None  # its feature maps, until the labelled loss has asked for them

    @abstractmethod
    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of a normalised image, finest first. [B, 3, H, W] float -> list.

        ``decode`` sees nothing else: the size of the image goes along as a map without channels, ``image[:, :0]``.
        """

    @abstractmethod
    def decode(self, features: list[Tensor]) -> Tensor:
        """Logits from feature maps. list -> [B, C, H, W] float."""

    @abstractmethod
    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters that start from pretrained weights (they may get a smaller rate)."""

    def pretrained_part(self) -> nn.Module | None:
        """What pretrained weights (``model.weights``) are loaded into, as smp or timm has it; None takes none."""
        return None

    def read_files_(self) -> None:
        """Read what its options name, into buffers or parameters.

        Called where training begins, and by a check of the parameters; never where a network gets the weights of a
        checkpoint, so that a model needs no file but its own.
        """

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (or float) in [0, 255] to zero mean and unit deviation. [B, 3, H, W]."""
        # One fused pass; channels_last is kept from the input.
        return (image - self.pixel_mean) / self.pixel_std

    def auxiliary(self, features: list[Tensor]) -> list[Tensor]:
        """Logits of the heads that only help to train (PSPNet's, BiSeNet's), where ``auxiliary_weight`` is not 0.

        Every method has them learn from labels: it is given what ``encode`` made of labelled images.

        Returns:
            [B, C, H, W] float each, of the size of the images.
        """
        raise NotImplementedError

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """What ``decode`` is given. [B, 3, H, W] in [0, 255] -> list."""
        features = self.encode(self.normalize(image))
        if self._awaits_pass and torch.is_grad_enabled():
            self._awaits_pass, self._first_pass = False, features
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images. [B, 3, H, W] in [0, 255] -> [B, C, H, W] float."""
        return self.decode(self.feature_maps(image))

    def begin_step(self) -> None:
        """A step of training begins: its first pass with a gradient is one of labelled images, or begins with them."""
        self._awaits_pass, self._first_pass = self.auxiliary_weight > 0, None

    def auxiliary_of_labeled(self, count: int) -> list[Tensor]:
        """Logits of the auxiliary heads for the labelled images of this step; [] where there are none. [count, C, H, W] each."""
        features, self._first_pass = self._first_pass, None
        return [] if features is None else self.auxiliary([each[:count] for each in features])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Hand ``encode`` and ``decode`` to torch.compile: methods call them apart, and ``forward`` goes through both."""
        for name in _PARTS:
            setattr(self, name, torch.compile(MethodType(getattr(type(self), name), self), *args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:  # what is compiled is bound to this network, and a copy would run it
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in _PARTS}
