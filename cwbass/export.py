"""A network as one ONNX file, which is only handed out if it answers as the network does.

Normalisation and the padding of odd sizes are inside the graph: uint8 RGB images of any size in,
logits of the same size out. The packages belong to the extra ``export``.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cwbass.errors import GateError, ParamsError, one_line
from cwbass.files import partial_file
from cwbass.models.base import SegmentationNet

SIZES = ((64, 64), (97, 131), (161, 90))  # height and width, in pixels: even, odd, upright
MAX_DIFF = 1e-3  # of a logit, as a share of the largest one (of 1, where all are smaller)
MIN_AGREEMENT = 0.999
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True, slots=True)
class Parity:
    """How near the ONNX file comes to the network, over all pixels of all sizes."""

    sizes: tuple[tuple[int, int], ...]  # height and width, in pixels
    max_abs_diff: float  # of a logit
    max_abs_logit: float
    argmax_agreement: float  # share of pixels with the same class

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "sizes": [list(size) for size in self.sizes]}


def missing_packages() -> tuple[str, ...]:
    """What of the extra ``export`` is not installed."""
    return tuple(name for name in _PACKAGES if importlib.util.find_spec(name) is None)


def export_onnx(net: SegmentationNet, path: Path, *, class_names: Sequence[str], protocol: str | None) -> Parity:
    """Write ``path`` and check it with ONNX Runtime on the CPU at three sizes.

    Args:
        net: In eval mode, on the CPU.
        path: Of the file; it appears only if the check passes.
        class_names: Kept in the file's metadata, as JSON.
        protocol: Likewise, as text: under which the network is scored, and which whoever calls the file follows. None where it is
            not known.

    Returns:
        What the check measured.

    Raises:
        ParamsError: A package is missing, or the network cannot be exported.
        GateError: The file's answers differ from the network's.
    """
    if missing := missing_packages():
        raise ParamsError(f"ONNX needs {', '.join(missing)}: pip install 'cwbass[export]', or set registry.onnx: false.")
    with partial_file(path) as partial:
        _write(net, partial, class_names, protocol)
        parity = measure_parity(net, partial)
        if (problem := parity_problem(parity)) is not None:
            raise GateError(
                f"{path.name} does not answer as the network does: {problem}. Set registry.onnx: false to ship without."
            )
        os.replace(partial, path)
    return parity


def measure_parity(net: nn.Module, path: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Parity:
    """Compare a file with a network on smooth random images, one a size and one batch of two.

    Raises:
        ParamsError: ONNX Runtime cannot run the file.
        GateError: It gives logits of another shape.
    """
    differences, logits, same, pixels = [0.0], [0.0], 0, 0
    for index, size in enumerate(sizes):
        image = _image(2 if index == 0 else 1, size)
        with torch.no_grad():
            expected: NDArray[np.float32] = net(image).numpy()
        found = _run(path, image)
        if found.shape != expected.shape:
            raise GateError(f"{path.name} gives logits of shape {found.shape} at {size}, the network {expected.shape}.")
        differences.append(float(np.abs(found - expected).max()))
        logits.append(float(np.abs(expected).max()))
        same += int((found.argmax(1) == expected.argmax(1)).sum())
        pixels += expected.shape[0] * size[0] * size[1]
    return Parity(tuple(sizes), max(differences), max(logits), same / pixels)


def _run(path: Path, image: Tensor) -> NDArray[np.float32]:
    """Logits of a file on the CPU."""
    # From 1.32 on it tells its maker of each session, and keeps a device id in the home folder; disable_telemetry_events() is too late.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is in the exception too
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that spin hinder the training beside it
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        logits: NDArray[np.float32] = session.run(None, {"image": image.numpy()})[0]
    except Exception as error:  # its exceptions have no common base
        size = " x ".join(map(str, image.shape[-2:]))
        raise ParamsError(
            f"this network cannot be exported to ONNX: its file fails at {size} pixels ({one_line(error)}). Set registry.onnx: false."
        ) from error
    return logits


def parity_problem(parity: Parity) -> str | None:
    """What is too far off; None where nothing is. A difference that is no number is too far off."""
    most = MAX_DIFF * max(1.0, parity.max_abs_logit)
    if not parity.max_abs_diff <= most:
        return f"a logit differs by {parity.max_abs_diff:.2e}, more than {most:.2e}"
    if parity.argmax_agreement < MIN_AGREEMENT:
        return f"{parity.argmax_agreement:.4%} of the pixels get the same class, fewer than {MIN_AGREEMENT:.1%}"
    return None


def _write(net: SegmentationNet, path: Path, class_names: Sequence[str], protocol: str | None) -> None:
    import onnx

    try:
        model = _core(net)
    except Exception as error:  # the exporter raises whatever the operation it fails on does
        raise ParamsError(f"this network cannot be exported to ONNX: {one_line(error)}. Set registry.onnx: false.") from error
    _strip(model)
    _take_any_size(model, net.stride)
    model.producer_name = "cwbass"
    props = {"classes": json.dumps(list(class_names)), "input": "uint8 RGB, 0 to 255, [B, 3, H, W]"}
    onnx.helper.set_model_props(model, props if protocol is None else {**props, "protocol": protocol})
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def _core(net: SegmentationNet) -> Any:
    """The network for images whose sides are multiples of its stride: padding would make of every size a long formula."""
    stride = net.stride
    batch, height, width = torch.export.Dim("batch"), torch.export.Dim("height"), torch.export.Dim("width")
    sides = (height, width) if stride == 1 else (stride * height, stride * width)
    size = (
        max(32 // stride, 3) * stride,
        max(64 // stride, 5) * stride,
    )  # not square, not one stride: these would become constants
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            _with_fixed_padding(net),
            (_image(2, size).float(),),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["padded"],
            output_names=["padded_logits"],
            dynamic_shapes=({0: batch, 2: sides[0], 3: sides[1]},),
        )
        assert program is not None
        return program.model_proto
    finally:
        quiet.setLevel(level)


class _FixedConv(nn.Module):
    """timm's convolution with the padding "SAME", for images whose sides are multiples of all strides.

    timm works the padding out from the size, which as a formula keeps the exporter busy for minutes; for such sizes it is
    always this.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        spans = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        totals = [max(span - step, 0) for span, step in zip(spans, conv.stride, strict=True)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        self.padding = (left, right, top, bottom)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(F.pad(x, self.padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _with_fixed_padding(net: SegmentationNet) -> SegmentationNet:
    from timm.layers.conv2d_same import Conv2dSame

    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(module, name, _FixedConv(child))
    return net.eval()


def _take_any_size(model: Any, stride: int) -> None:
    """Put what a caller could get wrong around the core: float images, replicated edges, and the crop."""
    from onnx import TensorProto, helper

    def constant(name: str, values: Sequence[int]) -> Any:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    graph = model.graph
    graph.initializer.extend(
        [constant("cwbass_stride", [stride, stride]), constant("cwbass_before", [0] * 6), constant("cwbass_axes", [2, 3])]
    )
    graph.initializer.append(constant("cwbass_origin", [0, 0]))
    before = [
        helper.make_node("Cast", ["image"], ["cwbass_float"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["image"], ["cwbass_size"], start=2, end=4),
        helper.make_node("Neg", ["cwbass_size"], ["cwbass_negative"]),
        helper.make_node("Mod", ["cwbass_negative", "cwbass_stride"], ["cwbass_after"]),  # takes the sign of the stride
        helper.make_node("Concat", ["cwbass_before", "cwbass_after"], ["cwbass_pads"], axis=0),
        helper.make_node("Pad", ["cwbass_float", "cwbass_pads"], ["padded"], mode="edge"),
    ]
    crop = helper.make_node("Slice", ["padded_logits", "cwbass_origin", "cwbass_size", "cwbass_axes"], ["logits"])
    nodes = [*before, *graph.node, crop]
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, "height", "width"]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, "height", "width"]))


def _strip(model: Any) -> None:
    """The exporter notes, for every node, in which file of this machine it was written."""
    for part in (model.graph, *model.functions):
        part.ClearField("metadata_props")
        for item in (*part.node, *part.value_info, *(getattr(part, "initializer", ()))):
            item.ClearField("metadata_props")
            item.ClearField("doc_string")


def _image(batch: int, size: tuple[int, int]) -> Tensor:
    """Blobs with some noise: nearer to photographs than noise alone. [B, 3, H, W] uint8."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(batch, 3, max(2, size[0] // 12), max(2, size[1] // 12), generator=generator)
    image = F.interpolate(blobs, size, mode="bilinear") + 0.1 * torch.randn(batch, 3, *size, generator=generator)
    return (image.clamp(0, 1) * 255).to(torch.uint8)
