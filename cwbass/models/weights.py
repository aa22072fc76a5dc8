"""Pretrained weights into an encoder: all of them, or an error that names those that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cwbass.errors import ParamsError, WeightsError, one_line
from cwbass.models.base import SegmentationNet
from cwbass.models.smp_net import SmpNet
from cwbass.storage.s3 import download

logger = logging.getLogger(__name__)

# What a classifier has behind the features: the only keys that a file may have too many.
HEADS = ("fc.", "_fc.", "classifier.", "head.", "linear.", "last_linear.", "conv_head.", "bn2.")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "encoder.", "model.")
_PICKLES = (".pth", ".pt", ".bin")
_SOURCES = f"Give imagenet, a file (.safetensors, {', '.join(_PICKLES)}) or s3://bucket/key."
_SHOWN = 5


def load_encoder_weights_(net: SegmentationNet, weights: str, *, encoder: str, cache_dir: Path) -> None:
    """Load pretrained weights into the encoder of ``net``, in place.

    Names are compared without the prefixes that all keys of a side share (``module.``,
    ``encoder.``, ``model.``). Left over may be a classifier's head and, for timm, stages deeper
    than this encoder goes; ``num_batches_tracked`` may be missing. Nothing else may differ, and
    nothing is changed where something does.

    Args:
        net: A network of smp, or another with a ``pretrained_part``.
        weights: ``imagenet`` (smp's or timm's own, from the Hugging Face hub), a file
            (.safetensors, .pth, .pt, .bin) or ``s3://bucket/key``.
        encoder: Name of the encoder, as in ``model.encoder``.
        cache_dir: Where objects from S3 are kept.

    Raises:
        WeightsError: The weights cannot be found or read, or do not fit. The caller knows the key that names them.
        ServiceError: The object store failed.
    """
    if (target := net.pretrained_part()) is None:
        raise WeightsError(f"{type(net).__name__} takes no pretrained weights (it has no pretrained_part). Use weights: null.")
    of_library = isinstance(net, SmpNet)
    name = f"encoder {encoder}" if of_library else type(net).__name__
    state = _pretrained(target, encoder) if weights == "imagenet" else read_state(_local(weights, cache_dir))
    match = match_state(state, target.state_dict(), weights)
    unexpected = [key for key in match.left_over if not key.startswith(HEADS)]
    if unexpected and timm.is_model(timm_name := _timm_name(target, encoder)) and encoder not in smp.encoders.encoders:
        whole = _timm_keys(timm_name)
        unexpected = [key for key in unexpected if key not in whole]
    if match.missing or unexpected or match.misshapen:
        raise WeightsError(
            f"{weights} does not fit {name}: {_listed('missing', match.missing)}; "
            f"{_listed('unexpected', unexpected)}; {_listed('of another shape', match.misshapen)}. "
            + (
                "Choose the encoder that the weights were made for, under the names of smp or timm."
                if of_library
                else "Give weights that were made for its pretrained_part."
            )
        )
    broken = [key for key, value in match.found.items() if not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(f"{weights}: {_listed('with non-finite numbers', broken)}. Use another file.")
    _copy(match.found, target)
    left_over = _listed("left over", match.left_over)
    logger.info("%s starts from %s: %d tensors, %s", name, weights, len(match.found), left_over)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, without a ``state_dict`` or ``model`` around them.

    Raises:
        WeightsError: The file is missing, damaged, of another kind, or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. {_SOURCES}")
    if path.suffix not in (".safetensors", *_PICKLES):
        raise WeightsError(f"{path} is a kind of file that is not read. {_SOURCES}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({one_line(error)}). Fetch it again.") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise WeightsError(f"{path} is damaged, or not only tensors ({one_line(error)}). Save a plain state_dict().") from error
    while isinstance(content, Mapping) and (wrapper := next((key for key in _WRAPPERS if key in content), None)):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict: names and tensors, plain or under {', '.join(_WRAPPERS)}.")
    return {str(key): value for key, value in content.items()}


@dataclass(frozen=True, slots=True)
class Match:
    """How a state dict fits an encoder."""

    found: Mapping[str, Tensor]  # the encoder's key -> the file's tensor
    missing: list[str]  # keys of the encoder
    misshapen: list[str]  # keys of the file, with both shapes
    left_over: list[str]  # keys of the file, without its prefixes


def match_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> Match:
    """Pair the tensors of a file with those of an encoder, by name and shape.

    Args:
        state: The file's.
        own: The encoder's.
        name: Of the file, for the error.

    Raises:
        WeightsError: Two keys of the file would be the same.
    """
    given, wanted = _stripped(state), _stripped(own)
    # timm names a stage "stages.0" in a classifier and "stages_0" in an encoder.
    by_name = {_flat(key): key for key in given}
    if len(by_name) != len(given):
        raise WeightsError(f"{name} holds keys that differ only in dots and underscores. Use the file of smp or timm.")
    found, missing, misshapen = {}, [], []
    for key, full in wanted.items():
        theirs = by_name.pop(_flat(key), None)
        if theirs is None:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
            continue
        value = state[given[theirs]]
        if value.shape != own[full].shape or value.is_floating_point() != own[full].is_floating_point():
            misshapen.append(f"{theirs} {_kind(value)}, should be {_kind(own[full])}")
        found[full] = value
    return Match(found, missing, misshapen, list(by_name.values()))


def _local(weights: str, cache_dir: Path) -> Path:
    if not weights.startswith("s3://"):
        return Path(weights)
    try:
        return download(weights, cache_dir)
    except ParamsError as error:
        raise WeightsError(str(error)) from error


def _pretrained(target: nn.Module, encoder: str) -> dict[str, Tensor]:
    """The published weights, through the library that the encoder comes from."""
    try:
        if encoder in smp.encoders.encoders:
            published: nn.Module = smp.encoders.get_encoder(encoder, weights="imagenet")
        else:
            published = timm.create_model(_timm_name(target, encoder), pretrained=True)
    except OSError as error:
        raise WeightsError(
            f"imagenet: those of {encoder} cannot be fetched from the Hugging Face hub ({one_line(error)}). "
            "Without a network, give a local file or an s3:// URI."
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"imagenet: {encoder} has none ({one_line(error)}). Give a file or null.") from error
    return dict(published.state_dict())


def _timm_name(target: nn.Module, encoder: str) -> str:
    # smp renames some: timm-mobilenetv3_large_100 is timm's tf_mobilenetv3_large_100.
    return str(getattr(target, "name", encoder.removeprefix("tu-")))


def _timm_keys(name: str) -> set[str]:
    """Keys of the whole classifier."""
    with torch.device("meta"):
        return set(timm.create_model(name, pretrained=False).state_dict())


def _stripped(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Key without the prefixes that all share -> key."""
    keys = {key: key for key in state}
    while prefix := next((prefix for prefix in _PREFIXES if keys and all(key.startswith(prefix) for key in keys)), None):
        keys = {key.removeprefix(prefix): full for key, full in keys.items()}
    return keys


@torch.no_grad()
def _copy(found: Mapping[str, Tensor], target: nn.Module) -> None:
    own = target.state_dict()  # shares memory with the encoder
    for key, value in found.items():
        own[key].copy_(value)


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _kind(value: Tensor) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _listed(what: str, keys: Iterable[str]) -> str:
    names = list(keys)
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:_SHOWN])}{more})" if names else "")
