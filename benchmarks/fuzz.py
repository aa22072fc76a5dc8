"""Broken and hostile files for every parser: how many give a result, how many a clear error, and how many neither.

    python benchmarks/fuzz.py [--inputs 200] [--seed 0] [--parser NAME ...] [--json]

An answer is clear where it is valid and keeps the parser's promise, or is a ``CwbassError`` that names the file or the key and
says how to mend it. All else is unclear: another exception, ten seconds without an answer, half a gigabyte of memory, a result that
is silently wrong. Each input is a function of seed, parser and number, so that a failure can be repeated.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import threading
import traceback
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

import cwbass.storage.s3
from cwbass.config import DataConfig, ModelConfig, RegistryConfig
from cwbass.data.base import DatasetSpec, Sample, read_image, read_mask
from cwbass.data.cache import FileSource
from cwbass.data.classes import read_class_list, read_classes, read_labelmap
from cwbass.data.inspection import inspect_image, inspect_mask
from cwbass.data.lists import read_ids
from cwbass.data.manifest import Manifest
from cwbass.data.remote import local_dataset
from cwbass.errors import CwbassError, DataError
from cwbass.files import digest_path, file_sha256
from cwbass.jsonfile import read_metrics
from cwbass.models import build_model
from cwbass.models.weights import load_encoder_weights_
from cwbass.params import Params, dump_params, load_params, parse_yaml
from cwbass.registry import Number, read_version, register_version
from cwbass.registry.aliases import aliased_version, promote
from cwbass.registry.gate import Champion, check_gate, gate_page, reasons
from cwbass.registry.resolve import describe, open_checkpoint
from cwbass.reporting.gallery import GalleryItem
from cwbass.steps.report import RunFiles, report, write_run_files
from cwbass.steps.training import finished_report
from cwbass.storage import FolderStore
from cwbass.storage.s3 import download
from cwbass.storage.s3_store import S3Store
from cwbass.training.checkpoint import Checkpoint, fields_of, load_checkpoint, save_checkpoint
from cwbass.training.mirror import Mirror
from cwbass.training.resume import Keeper, State

SECONDS, MEGABYTES = 10, 500  # of one input
TOP = Path(__file__).parents[1]
TINY = ModelConfig(arch="unet", encoder="tu-mobilenetv4_conv_small_050", options={"encoder_depth": 2, "decoder_channels": [8, 8]})
SPEC = DatasetSpec(("sky", "road", "tree"), ((0, 0, 0), (128, 0, 0), (0, 128, 0)), ids={0: 0, 1: 1, 2: 2, 255: 255})
# What a message that mends begins a sentence or clause with.
MENDS = frozenset({
    "add", "change", "check", "choose", "copy", "export", "fetch", "give", "keep", "look", "make", "mend", "merge", "must", "name",
    "pass", "register", "remap", "remove", "replace", "restore", "run", "save", "set", "should", "train", "try", "use", "write",
})  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, -(2**63), 2**70, 1e308, -0.5, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\x00",
    "\u202e\ud7ff", "<script>alert(1)</script>", "${HOME}", "!!python/object/apply:os.system [id]", "9" * 400, [], {}, [[]], [1, 2, 3],
    {"a": 1}, ["x"] * 50, {"name": "x"},
)  # fmt: skip


class Wrong(AssertionError):
    """A result that breaks a promise."""


class Hang(BaseException):
    """No answer in time."""


@dataclass
class Counts:
    """What became of the inputs of one parser."""

    inputs: int = 0
    valid: int = 0
    clear: int = 0
    unclear: list[str] = field(default_factory=list)


class Parser(ABC):
    """One kind of file. ``prepare`` writes good files once, ``attempt`` spoils and reads one; it returns if the result is valid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: tuple[str, ...] = (str(folder),)  # a message holds one of them
        self.prepare()

    def prepare(self) -> None:  # noqa: B027 - some parsers need no good file
        pass

    @abstractmethod
    def attempt(self, rng: random.Random) -> None:
        """Spoil one file and read it."""


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Truncate, flip, fill, insert, repeat or empty."""
    data = bytearray(content)
    place = rng.randrange(len(data)) if data else 0
    match rng.randrange(8):
        case 0:
            del data[place:]
        case 1:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[place : place + rng.randint(1, 64)] = bytes(rng.randint(1, 64))
        case 3:
            data[place:place] = rng.randbytes(rng.randint(1, 64))
        case 4:
            del data[place : place + rng.randint(1, 64)]
        case 5:
            return rng.choice((b"", b"\0" * 100, rng.randbytes(200), b"\xff\xfe", b"null", b"[]", b"[" * 100_000, b"{}", b'"x"'))
        case 6:
            data[: rng.randint(1, 16)] = rng.randbytes(rng.randint(1, 16))
        case _:
            data += data[place:]
    return bytes(data)


def spoil_values(values: Any, rng: random.Random) -> Any:
    """Nested values with one to three of them replaced, removed, renamed or doubled."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(values))
        if not places:
            return rng.choice(ODD)
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[f"{key}{rng.choice(('_', 'x', ' '))}"] = parent.pop(key)
            case 2 if isinstance(parent[key], bool | int | float):
                parent[key] = rng.choice((-parent[key], parent[key] * 10, parent[key] + 1, str(parent[key]), float(parent[key])))
            case 3:
                other, name = rng.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    parent[key] = copy.deepcopy(other[name])
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD))
    return values


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(items):
        yield values, key
        yield from _places(value)


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    """One time in three the bytes, else the values."""
    if rng.random() < 0.33:
        return spoil_bytes(content, rng)
    return json.dumps(spoil_values(json.loads(content), rng)).encode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large, and has hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def some_image(rng: random.Random) -> tuple[bytes, str, tuple[int, int, int] | None]:
    """A file of any kind, its suffix, and the colour that every pixel must have, where the kind keeps it."""
    width, height = rng.choice(((1, 1), (1, 9), (16, 12), (33, 7)))
    level = rng.randrange(256)
    grey = (level, level, level)
    red, green, blue = color = tuple(rng.randrange(256) for _ in range(3))
    kind = rng.randrange(13)
    out, options = io.BytesIO(), {}
    exact: tuple[int, int, int] | None = grey
    match kind:
        case 0:
            image, form = Image.new("L", (width, height), level), "png"
        case 1:
            image, form = Image.fromarray(np.full((height, width), level * 257, dtype=np.uint16)), "png"
        case 2:
            image, form, exact = Image.new("CMYK", (width, height), (0, 0, 0, 255 - level)), "jpg", None
        case 3:
            image, form, exact = Image.new("RGBA", (width, height), (red, green, blue, 77)), "png", (red, green, blue)
        case 4:
            image, form, exact = Image.new("LA", (width, height), (level, 9)), "png", grey
        case 5:
            image, form, exact = Image.new("RGB", (width, height), color), "bmp", (red, green, blue)
        case 6:
            image, form, exact = Image.new("RGB", (width, height), color), "png", (red, green, blue)
            options = {"save_all": True, "append_images": [Image.new("RGB", (width, height))]}
        case 7:
            image, form, exact = Image.new("RGB", (width, height), color), "webp", (red, green, blue)
            options = {"save_all": True, "append_images": [Image.new("RGB", (width, height))], "lossless": True}
        case 8:
            image, form, exact = Image.new("RGB", (width, height), color), "jpg", None
            exif = Image.Exif()
            exif[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
            options = {"exif": exif}
        case 9:
            value = rng.choice((0.5, 1e30, -1.0, float("nan"), float("inf")))
            image, form, exact = Image.fromarray(np.full((height, width), value, dtype=np.float32)), "tif", None
        case 10:
            image, form, exact = Image.new("I", (width, height), rng.choice((0, 65535, 2**31 - 1))), "tif", None
        case 11:
            image, form, exact = Image.new("P", (width, height), 3), "png", None
            image.putpalette([index for index in range(256) for _ in range(3)])
        case _:
            return png_header(rng.choice((30_000, 100_000, 2**31 - 1)), rng.choice((30_000, 100_000))), ".png", None
    image.save(out, {"jpg": "jpeg", "tif": "tiff"}.get(form, form), **options)
    return out.getvalue(), f".{form}", exact


class Images(Parser):
    def attempt(self, rng: random.Random) -> None:
        content, suffix, color = some_image(rng)
        if rng.random() < 0.6:
            content, color = spoil_bytes(content, rng), None
        if rng.random() < 0.2:
            suffix = rng.choice((".jpg", ".png", ".tif", ".webp", ".bmp"))
        path = self.folder / f"image{suffix}"
        path.write_bytes(content)
        facts = inspect_image(path)
        try:
            pixels = read_image(path)
        except DataError:
            if facts.error is None:
                raise Wrong("the check passes what training refuses") from None
            raise
        if facts.error is not None or facts.size != (pixels.shape[1], pixels.shape[0]):
            raise Wrong(f"the check says {facts.error or facts.size}, training reads {pixels.shape}")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise Wrong(f"{pixels.dtype} {pixels.shape}")
        if color is not None and (pixels != np.array(color)).any():
            raise Wrong(f"{pixels[0, 0]} where {color} was written as {suffix}")


class Masks(Parser):
    """Unreadable, unknown values, RGB without colours, 16 bits, one bit, another size, palettes, alpha."""

    def attempt(self, rng: random.Random) -> None:
        size = rng.choice(((8, 6), (8, 6), (1, 1)))
        mode = rng.choice(("L", "L", "P", "1", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"))
        values = np.array([rng.choice((0, 1, 2, 255, *((7,) if rng.random() < 0.1 else ()))) for _ in range(size[0] * size[1])])
        values = values.reshape(size[1], size[0])
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(values.astype(kinds.get(mode, np.uint8)))
        if mode == "P":
            image.putpalette(list(range(256)) * 3)
        elif mode == "1":  # convert would dither
            image = Image.fromarray(values != 0)
        elif mode not in ("L", *kinds):
            image = image.convert(mode)
        out = io.BytesIO()
        suffix = ".tif" if mode in ("F", "CMYK", "I") else ".png"
        image.save(out, "tiff" if suffix == ".tif" else "png")
        whole = rng.random() < 0.6
        self.names = (str(self.folder), f"mask{suffix}: mask is")
        image_path, path = self.folder / "image.png", self.folder / f"mask{suffix}"
        Image.new("RGB", (8, 6)).save(image_path)
        path.write_bytes(out.getvalue() if whole else spoil_bytes(out.getvalue(), rng))
        inspect_mask(path, SPEC)
        mask = read_mask(path, SPEC)
        FileSource([Sample("a", image_path.name, path.name)], self.folder, SPEC).mask(0)
        expected = values != 0 if mode == "1" else values
        if mask.dtype != np.uint8 or (whole and (mask != expected).any()) or not np.isin(mask, (0, 1, 2, 255)).all():
            raise Wrong(f"a mask of mode {mode} changed its values")


class ParamsFiles(Parser):
    def prepare(self) -> None:
        self.names = ("params.yaml", *Params.model_fields, "params:")
        self.texts = [(TOP / name).read_text() for name in ("params.yaml", "configs/smoke.yaml")] + [dump_params(Params())]

    def attempt(self, rng: random.Random) -> None:
        text = rng.choice(self.texts)
        if rng.random() < 0.3:
            text = spoil_bytes(text.encode(), rng).decode("utf-8", errors="replace")
        else:
            text = yaml.safe_dump(spoil_values(yaml.safe_load(text), rng))
        values = parse_yaml(text, "params.yaml")
        self.names = ("params.yaml", *Params.model_fields, *map(str, values), "params:")
        params = load_params(values, Params)
        if load_params(parse_yaml(dump_params(params), "again"), Params) != params:
            raise Wrong("parameters change when they are written and read")


class Lists(Parser):
    def attempt(self, rng: random.Random) -> None:
        images = {f"{index:03}": f"images/{index:03}.png" for index in range(20)}
        lines = [
            rng.choice((f"{rng.randrange(25):03}", f"images/{rng.randrange(20):03}.png masks/x.png", "# x", "", "a b", "\x00"))
        ]
        lines += [f"{index:03}" for index in rng.sample(range(20), 5)]
        path = self.folder / "list.txt"
        content = "\n".join(lines).encode()
        path.write_bytes(spoil_bytes(content, rng) if rng.random() < 0.6 else content)
        ids = read_ids(path, images)
        if len(set(ids)) != len(ids) or not set(ids) <= images.keys():
            raise Wrong("an id twice, or of no image")


class ClassLists(Parser):
    def attempt(self, rng: random.Random) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        content = rng.choice(
            (b"sky\nroad\n", b"sky 1 2 3\nroad 4 5 6\n", b"sky 1 2 3\nroad\n", b"sky 1 2 999\n", "sk\u00b2 1 \u00b2 3".encode())
        )
        labelmap = rng.choice(
            (b"sky:1,2,3::\nroad:4,5,6::\n", b"sky:1,2,3\n", b"sky:1,2\n", "sky:\u0661,2,3::\n".encode(), b"# x\n")
        )
        if rng.random() < 0.6:
            content, labelmap = spoil_bytes(content, rng), spoil_bytes(labelmap, rng)
        self.names = (str(self.folder), "class", "data.")
        (self.folder / "classes.txt").write_bytes(content)
        read_class_list(self.folder / "classes.txt")
        if rng.random() < 0.5:
            (self.folder / "labelmap.txt").write_bytes(labelmap)
            read_labelmap(self.folder / "labelmap.txt")
        found = read_classes(self.folder, DataConfig())
        if len(set(found.names)) != len(found.names) or len(found.palette) != len(found.names):
            raise Wrong("a class twice, or without a colour")
        if not all(0 <= value <= 255 for color in found.palette for value in color):
            raise Wrong("a colour out of range")


class Manifests(Parser):
    def prepare(self) -> None:
        one = [Sample(f"a{i}", f"images/a{i}.png", f"masks/a{i}.png", (1, 2, 3)) for i in range(3)]
        test = [replace(sample, id=f"t{sample.id}", pixels=None) for sample in one]
        bare = tuple(Sample(f"u{i}", f"images/u{i}.png") for i in range(3))
        self.whole = Manifest(SPEC, (one[0], one[1]), bare, (one[2],), tuple(test), ("a note",), 0)
        self.path = self.folder / "manifest.json"
        self.whole.write(self.path)
        self.content = self.path.read_bytes()

    def attempt(self, rng: random.Random) -> None:
        self.path.write_bytes(spoil_json(self.content, rng))
        found = Manifest.read(self.path)
        if found.hash != self.whole.hash or replace(found, notes=self.whole.notes) != self.whole:
            raise Wrong("an edited manifest is taken for the old one")
        json.dumps(found.notes)


def tiny_checkpoint(seed: int = 0, names: tuple[str, ...] = SPEC.class_names) -> Checkpoint:
    torch.manual_seed(seed)
    spec = DatasetSpec(
        names, tuple((index, 0, 0) for index in range(len(names))), ids={index: index for index in range(len(names))}
    )
    state = {f"student.{key}": value for key, value in build_model(TINY, names).state_dict().items()}
    return Checkpoint(
        "supervised", state, ("student",), dump_params(Params(model=TINY)), spec.to_dict(), "ab" * 32, seed, 4, 1, "train"
    )


class Code:
    """What a pickle may do where it is trusted."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class Checkpoints(Parser):
    """Torn and flipped files with and without their SHA-256, pickles with code, other models, schemas and values."""

    def prepare(self) -> None:
        self.path, self.mark = self.folder / "last.pt", self.folder / "ran"
        self.whole = tiny_checkpoint()
        save_checkpoint(self.whole, self.path)
        self.content, self.digest = self.path.read_bytes(), digest_path(self.path).read_bytes()
        self.names = (str(self.path), "checkpoint", "spec:", "the weights do not fit")

    def attempt(self, rng: random.Random) -> None:
        digest_path(self.path).unlink(missing_ok=True)
        kind = rng.randrange(6)
        if kind == 0:
            digest_path(self.path).write_bytes(self.digest)
            content = spoil_bytes(self.content, rng)
            self.path.write_bytes(content)
            load_checkpoint(self.path)
            if content != self.content:
                raise Wrong("a damaged checkpoint is read")
            return
        if kind == 1:
            self.path.write_bytes(spoil_bytes(self.content, rng))
        elif kind == 2:
            hostile: Any = {**fields_of(self.whole), rng.choice(("best", "params", "schema")): Code(self.mark)}
            if rng.random() < 0.5:
                torch.save(hostile, self.path)
            else:
                self.path.write_bytes(pickle.dumps(hostile))
        elif kind == 3:
            other = tiny_checkpoint(1, ("sky", "road"))
            torch.save(
                {**fields_of(self.whole), rng.choice(("method_state", "spec")): rng.choice((other.method_state, other.spec))},
                self.path,
            )
        elif kind == 4:
            torch.save({**fields_of(self.whole), "schema": rng.choice((0, 2, "1", None)), "code_version": "9.9"}, self.path)
        else:
            torch.save(
                {**fields_of(self.whole), rng.choice(list(fields_of(self.whole))): copy.deepcopy(rng.choice(ODD))}, self.path
            )
        try:
            found = load_checkpoint(self.path)
            found.dataset.lookup()
            found.network("auto")
        finally:
            if self.mark.exists():
                self.mark.unlink()
                raise Wrong("code in a checkpoint ran")


class WeightFiles(Parser):
    def prepare(self) -> None:
        self.net = build_model(TINY, "abc")
        self.state = {key: value.clone() for key, value in self.net.net.encoder.state_dict().items()}  # type: ignore[union-attr]
        self.mark = self.folder / "ran"
        torch.save(self.state, out := io.BytesIO())
        self.contents = {".pth": out.getvalue(), ".safetensors": safetensors.torch.save(self.state)}

    def attempt(self, rng: random.Random) -> None:
        suffix = rng.choice(list(self.contents))
        path = self.folder / f"weights{suffix}"
        kind = rng.randrange(4)
        if kind == 0 and suffix == ".pth":
            torch.save({**self.state, "x": Code(self.mark)}, path)
        elif kind == 1:
            state: dict[str, Any] = dict(self.state)
            key = rng.choice(list(state))
            changed = (
                torch.zeros(3),
                state[key] * float("nan"),
                state[key].to(torch.complex64),
                torch.zeros(0),
                state[key].double(),
            )
            state[key] = rng.choice(changed)
            if rng.random() < 0.3:
                state[f"{key}.x"] = state.pop(key)
            torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
        else:
            path.write_bytes(spoil_bytes(self.contents[suffix], rng))
        try:
            load_encoder_weights_(self.net, str(path), encoder=TINY.encoder, cache_dir=self.folder)
        finally:
            if self.mark.exists():
                self.mark.unlink()
                raise Wrong("code in a weight file ran")
        if not all(torch.isfinite(value).all() for value in self.net.state_dict().values()):
            raise Wrong("weights that are not finite are taken")


METRICS: dict[str, Any] = {
    "miou": 0.6, "baseline_miou": 0.5, "miou_gain": 0.1, "ece": 0.05, "split_hash": "ab" * 32, "protocol": "whole image", "seed": 0,
    "weights": "student", "images": 3, "pixel_accuracy": 0.8, "boundary_iou": 0.4, "absent_classes": [],
    "per_class": {name: {"iou": 0.6, "baseline_iou": 0.5, "boundary_iou": 0.4, "baseline_boundary_iou": 0.4, "accuracy": 0.7, "pixels": 9}
                  for name in SPEC.class_names},
    "confusion": {"class_names": list(SPEC.class_names), "matrix": [[3, 1, 0], [1, 3, 0], [0, 1, 3]]},
    "split": {"counts": {"labeled": 3, "test": 3}, "notes": ["a note"]},
}  # fmt: skip


class Gate(Parser):
    def attempt(self, rng: random.Random) -> None:
        path = self.folder / "metrics.json"
        path.write_bytes(spoil_json(json.dumps(METRICS).encode(), rng))
        metrics = read_metrics(path)
        champion = Champion("1.0.0", spoil_values(METRICS, rng)) if rng.random() < 0.5 else None
        if champion is not None and not isinstance(champion.metrics, dict):
            return
        config = RegistryConfig(name="x", min_miou=0.3, min_gain=0.0, max_ece=0.2, min_champion_gain=-1.0, max_class_drop=0.5)
        checks = check_gate(metrics, config, size_bytes=10, champion=champion)
        gate_page("x", checks, outcome="seen", champion=champion)
        miou = metrics.get("miou")
        sound = isinstance(miou, int | float) and not isinstance(miou, bool) and 0.3 - 1e-9 <= miou <= 1
        if not sound and not reasons(checks):
            raise Wrong(f"a model with mIoU {miou!r} passes")


class Registries(Parser):
    """Every file of a version in a folder, its manifest and the entry of its alias."""

    def prepare(self) -> None:
        source = tiny_checkpoint()
        weights = {key.removeprefix("student."): value.contiguous() for key, value in source.method_state.items()}
        config = {"classes": list(SPEC.class_names), "palette": [[0, 0, 0]] * 3, "ignore_index": 255, "ids": {"0": 0}, "colors": None,
                  "model": json.loads(TINY.model_dump_json())}  # fmt: skip
        made = {"method": "supervised", "seed": 0, "step": 4, "stage": "train", "code_version": "0.1.0", "sha256": "cd" * 32}
        provenance = {"checkpoint": made, "weights": "student", "split": {"hash": "ab" * 32}}
        self.files: dict[str, bytes | Path] = {
            "config.json": json.dumps(config).encode(), "model.safetensors": safetensors.torch.save(weights),
            "params.yaml": source.params.encode(), "provenance.json": json.dumps(provenance).encode(),
            "metrics.json": json.dumps(METRICS).encode(),
        }  # fmt: skip
        self.whole = self._store(self.folder / "whole", self.files)
        self.names = (str(self.folder), "config.json", "champion")

    def _store(self, root: Path, files: dict[str, bytes | Path]) -> FolderStore:
        store = FolderStore(root)
        register_version(store, name="x", files=files)
        promote(store, "x", "champion", Number(1), seen=None, reason="first")
        return store

    def attempt(self, rng: random.Random) -> None:
        shutil.rmtree(self.folder / "spoiled", ignore_errors=True)
        if rng.random() < 0.5:  # damaged at rest
            shutil.copytree(self.whole.root, self.folder / "spoiled")
            store = FolderStore(self.folder / "spoiled")
            key = rng.choice(list(store.list("")))
            content = store.get(key)
            store.put(key, spoil_json(content, rng) if key.endswith(".json") else spoil_bytes(content, rng))
            version = aliased_version(store, "x", "champion")
            if any(content != self.files[name] for name, content in read_version(store, version).items() if name in self.files):
                raise Wrong("a damaged version is read")
        else:  # registered as it is, by a hostile writer
            name = rng.choice(("config.json", "provenance.json", "params.yaml", "model.safetensors"))
            content = self.files[name]
            assert isinstance(content, bytes)
            spoiled = spoil_json(content, rng) if name.endswith(".json") else spoil_bytes(content, rng)
            store = self._store(self.folder / "spoiled", {**self.files, name: spoiled})
            version = aliased_version(store, "x", "champion")
        describe(Path(version.uri))
        found = open_checkpoint(Path(version.uri))
        found.dataset.lookup()
        found.network("auto")


class Reports(Parser):
    def prepare(self) -> None:
        maps = np.zeros((4, 6), dtype=np.uint8)
        item = GalleryItem("a0", np.zeros((4, 6, 3), dtype=np.uint8), maps, maps, maps, maps, np.ones((4, 6), dtype=np.float32))
        rows = [{"stage": "train", "step": step, "epoch": step, "loss": 1.0, "lr": 0.1, "selection_miou": 0.5, "threshold": [0.9] * 3,
                 "retention": 0.5, "precision": 0.9, "mean_confidence": 0.8} for step in (4, 8)]  # fmt: skip
        write_run_files(RunFiles(METRICS, rows, [item], SPEC, "seed: 0\n"), self.folder)
        kept = ("metrics.json", "history.jsonl", "spec.json", "gallery.npz", "params.yaml")
        self.contents = {name: (self.folder / name).read_bytes() for name in kept}
        with np.load(io.BytesIO(self.contents["gallery.npz"])) as file:
            self.arrays = {name: file[name] for name in file.files}

    def attempt(self, rng: random.Random) -> None:
        for name, content in self.contents.items():
            (self.folder / name).write_bytes(content)
        name = rng.choice(list(self.contents))
        content = self.contents[name]
        if name == "history.jsonl":
            content = b"\n".join(spoil_json(line, rng) for line in content.splitlines())
        elif name == "gallery.npz" and rng.random() < 0.5:
            arrays: dict[str, Any] = dict(self.arrays)
            key = rng.choice(list(arrays))
            wrong = (np.zeros(3), np.zeros((4, 6), dtype=np.float64) + 300, np.array(["x"]), np.array([{"a": 1}], dtype=object))
            arrays[rng.choice((key, "9/image", "x/y", "0/colour"))] = rng.choice(wrong)
            np.savez_compressed(out := io.BytesIO(), **arrays)
            content = out.getvalue()
        else:
            content = spoil_json(content, rng) if name.endswith(".json") else spoil_bytes(content, rng)
        (self.folder / name).write_bytes(content)
        page = report(self.folder).read_text(encoding="utf-8")
        if "<script>" in page:
            raise Wrong("the page runs what a file holds")


class States(Parser):
    """A work folder with the states of a run that was stopped, and ``run.json`` of one that is done.

    What is found must be a state that was saved, or none; a hostile one, with the right SHA-256 beside it, runs no code and
    names no file outside its folders.
    """

    def prepare(self) -> None:
        self.identity = {"seed": 0, "train.optimizer.lr": 0.1, "code": "1"}
        self.names = (str(self.folder), "seed", "code", "train.optimizer.lr", "holds")
        self.source, self.mark = tiny_checkpoint(), self.folder / "ran"
        whole, outside = self.folder / "whole", self.folder / "outside.pt"
        self.folder.mkdir(exist_ok=True)
        outside.write_bytes(b"not to be replaced")
        keeper = self._keeper(whole)
        result = whole / "out" / "best.pt"
        keeper.keep(result, save_checkpoint(self.source, result))
        for step in (1, 2, 3):
            keeper.after_step(lambda step=step: self._state(step), epoch_ended=step == 1)  # type: ignore[misc]
        keeper._wait()
        self.done = self.folder / "done"
        finished = self._keeper(self.done)
        report = {"stage": "train", "steps": 3, "split_hash": "ab", "checkpoints": {"best": "best.pt"}, "selection_miou": {}}
        finished.keep(self.done / "out" / "best.pt", save_checkpoint(self.source, self.done / "out" / "best.pt"))
        finished.finish(report)
        self.whole = whole

    def _keeper(self, root: Path) -> Keeper:
        return Keeper(root / "out", root / "work", self.identity, save_minutes=1e-9)

    def _state(self, step: int) -> State:
        meter = {"means": {}, "sums": {}, "steps": 1}
        return State(replace(self.source, step=step), {"best": 0.5}, [], [], {}, False, [meter], "cpu")

    def attempt(self, rng: random.Random) -> None:
        root = self.folder / "spoiled"
        shutil.rmtree(root, ignore_errors=True)
        if rng.random() < 0.2:
            shutil.copytree(self.done, root)
            path = root / "out" / "run.json"
            path.write_bytes(spoil_json(path.read_bytes(), rng))
        else:
            shutil.copytree(self.whole, root)
            for path in rng.sample(sorted((root / "work").glob("*.*")), rng.randint(1, 3)):
                self._spoil(path, rng)
        try:
            keeper = self._keeper(root)
            if keeper.report is not None:
                finished_report(SimpleNamespace(keeper=keeper), root / "out")  # type: ignore[arg-type]
            state = keeper.enter("train")
        finally:
            if self.mark.exists():
                self.mark.unlink()
                raise Wrong("code in a state ran")
            if (self.folder / "outside.pt").read_bytes() != b"not to be replaced":
                raise Wrong("a file outside the folder was written")
        if state is None:
            return
        if any(not torch.equal(value, state.checkpoint.method_state[key]) for key, value in self.source.method_state.items()):
            raise Wrong("a state with other weights than any that was saved")
        if file_sha256(root / "out" / "best.pt") != file_sha256(self.whole / "out" / "best.pt"):
            raise Wrong("a state goes on with another result than it needs")

    def _spoil(self, path: Path, rng: random.Random) -> None:
        content = path.read_bytes()
        if path.suffix == ".json":
            values = json.loads(content)
            if rng.random() < 0.3:  # a hostile writer
                values["files"] = {
                    rng.choice(("../../outside.pt", "/etc/x", "a/b.pt", "best.pt")): rng.choice(("../x", "0" * 64))
                }
                path.write_text(json.dumps(values))
            elif rng.random() < 0.2:
                path.write_text(json.dumps({**values, "schema": rng.choice((0, 2, "1", None))}))
            else:
                path.write_bytes(spoil_json(content, rng))
            return
        if rng.random() < 0.5:
            path.write_bytes(spoil_bytes(content, rng))
            return
        values = {**fields_of(self._state(9)), "checkpoint": fields_of(self.source)}
        match rng.randrange(4):
            case 0:
                values[rng.choice(list(values))] = Code(self.mark)
            case 1:
                values[rng.choice(list(values))] = copy.deepcopy(rng.choice(ODD))
            case 2:
                values["checkpoint"] = {
                    **values["checkpoint"],
                    rng.choice(("schema", "best", "step")): rng.choice((None, "x", [])),
                }
            case _:
                del values[rng.choice(list(values))]
        torch.save(values, path)
        commit = path.with_suffix(".json")
        with suppress(ValueError, TypeError, AttributeError):  # that may be spoiled already
            found = json.loads(commit.read_bytes())
            if isinstance(found, dict):
                commit.write_text(json.dumps({**found, "sha256": file_sha256(path)}))


class S3Answers(Parser):
    """What a store says to the registry, to the states' second place, to a dataset and to a single file.

    One answer of each visit is spoiled, and all that repeat it.
    """

    def prepare(self) -> None:
        self.store = SpoiledStore()
        self.names = ("s3://", "AWS_", self.store.url)
        self.environment = {
            "AWS_ENDPOINT_URL": self.store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        folder = FolderStore(self.folder / "registry")
        self.files: dict[str, bytes | Path] = {
            "config.json": json.dumps({"classes": ["a"], "model": {"mean": [0], "std": [1]}}).encode(), "model.safetensors": b"w" * 999,
        }  # fmt: skip
        promote(folder, "x", "champion", register_version(folder, name="x", files=self.files).number, seen=None, reason="first")
        states = States(self.folder / "states")
        for root, prefix in ((folder.root, "registry"), (states.whole / "work", "states")):
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                self.store.objects[f"b/{prefix}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
        for name in ("images/a.png", "masks/a.png", "classes.txt"):
            self.store.objects[f"b/data/{name}"] = name.encode() * 50
        self.count = 0

    def attempt(self, rng: random.Random) -> None:
        visit = rng.choice((self._registry, self._states, self._dataset, self._file))
        self.store.spoil(rng)
        self.count += 1
        # What is spoiled stays spoiled: asking once is enough.
        with patch.dict(os.environ, self.environment), patch.multiple(cwbass.storage.s3, ATTEMPTS=1, READ_TIMEOUT=0.5):
            visit(self.folder / f"visit-{self.count}")

    def _registry(self, folder: Path) -> None:
        store = S3Store("s3://b/registry")
        version = aliased_version(store, "x", "champion")
        if {name: content for name, content in read_version(store, version).items() if name in self.files} != self.files:
            raise Wrong("a version is not what was registered")

    def _states(self, folder: Path) -> None:
        if not Mirror(S3Store("s3://b/states")).fetch(folder, lambda name, commit: True):
            if self.store.spoiled_list:  # a list may have lost its entries and be a list
                return
            if self.store.spoiled_states >= 3:
                return
            raise Wrong("there are states, and none is found")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if self.store.objects.get(f"b/states/{path.relative_to(folder).as_posix()}") != path.read_bytes():
                raise Wrong(f"{path.name} is not what was saved")

    def _dataset(self, folder: Path) -> None:
        found = local_dataset("s3://b/data", folder)
        for path in sorted(path for path in found.rglob("*") if path.is_file()):
            if self.store.objects.get(f"b/data/{path.relative_to(found).as_posix()}") != path.read_bytes():
                raise Wrong(f"{path.name} is not what was stored")

    def _file(self, folder: Path) -> None:
        if download("s3://b/data/classes.txt", folder).read_bytes() != self.store.objects["b/data/classes.txt"]:
            raise Wrong("a file is not what was stored")


class SpoiledStore(ThreadingHTTPServer):
    """As much of S3 as is read: objects with their checksum, and lists. One answer of each visit is broken."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.objects: dict[str, bytes] = {}
        self.spoil(random.Random(0))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spoil(self, rng: random.Random) -> None:
        """Begin a visit: one of its first answers will be broken, and all that repeat it."""
        self.rng, self.turn, self.asked, self.target = rng, rng.randrange(5), 0, ""
        self.spoiled_list, self.spoiled_states = False, 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Answer(BaseHTTPRequestHandler):
    server: SpoiledStore
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        key, query = unquote(parts.path).lstrip("/"), dict(parse_qsl(parts.query))
        self.close_connection = True
        if "list-type" in query:
            status, body, headers = 200, self._list(key, query.get("prefix", "")), {"Content-Type": "application/xml"}
        elif key in self.server.objects:
            body = self.server.objects[key]
            checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
            status, headers = 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "x-amz-checksum-crc32": checksum,
                                    "Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT"}  # fmt: skip
        else:
            status, body, headers = 404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>", {}
        headers["Content-Length"] = str(len(body))
        self._send(status, body, headers)

    do_HEAD = do_GET

    def _list(self, bucket: str, prefix: str) -> bytes:
        found = {
            key.removeprefix(f"{bucket}/"): value
            for key, value in self.server.objects.items()
            if key.startswith(f"{bucket}/{prefix}")
        }
        rows = "".join(
            f'<Contents><Key>{key}</Key><ETag>"{hashlib.md5(value).hexdigest()}"</ETag><Size>{len(value)}</Size></Contents>'
            for key, value in sorted(found.items())
        )
        return (f'<?xml version="1.0"?><ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount>'
                f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>").encode()  # fmt: skip

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        server, rng = self.server, self.server.rng
        if server.asked == server.turn:
            server.target = self.path
        server.asked += 1
        if self.path == server.target:
            server.spoiled_list |= "list-type" in self.path
            server.spoiled_states += 1
            if self.path.startswith(("/b/states/", "/b/registry/")) and rng.random() < 0.5:
                headers.pop(
                    "x-amz-checksum-crc32", None
                )  # these have a SHA-256 of their own, and not every store sends a checksum
            match rng.randrange(9):
                case 0:
                    body = spoil_bytes(body, rng)
                    headers["Content-Length"] = str(len(body))
                case 1:
                    body = spoil_json(body, rng) if self.path.endswith(".json") else body[: rng.randrange(len(body) + 1)]
                    headers["Content-Length"] = str(len(body))
                case 2:
                    body = body[: rng.randrange(len(body) + 1)]  # and the line breaks
                case 3:
                    headers["Content-Length"] = rng.choice(("-1", "x", "0", "1", str(len(body) + 9), "9" * 30))
                case 4:
                    status = rng.choice((200, 204, 206, 301, 307, 400, 403, 404, 409, 412, 416, 418, 500, 503, 999))
                    body = rng.choice((b"", b"null", b"<Error><Code>SlowDown</Code></Error>", b"<Error>", b"<a>" * 5000, body))
                    headers["Content-Length"] = str(len(body))
                case 5:
                    del headers[rng.choice(list(headers))]
                case 6:
                    name = rng.choice(
                        ("x-amz-checksum-crc32", "ETag", "Last-Modified", "Content-Type", "Content-Encoding", "Transfer-Encoding")
                    )
                    headers[name] = rng.choice(("", "x", "AAAAAA==", "\x7f" * 9, "gzip", "chunked", "0" * 500))
                case 7:
                    self.wfile.write(
                        rng.choice(
                            (b"", b"HTTP/1.1\r\n\r\n", b"\0" * 99, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200, rng.randbytes(99))
                        )
                    )
                    return
                case _:
                    other = rng.choice(list(server.objects))
                    body = server.objects[other]
                    headers["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.wfile.write(f"HTTP/1.1 {status} X\r\n{lines}Connection: close\r\n\r\n".encode("latin-1"))
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


PARSERS: dict[str, type[Parser]] = {
    "images": Images,
    "masks": Masks,
    "params.yaml": ParamsFiles,
    "list files": Lists,
    "class lists": ClassLists,
    "manifests": Manifests,
    "checkpoints": Checkpoints,
    "weight files": WeightFiles,
    "metrics and gate": Gate,
    "registry": Registries,
    "reports": Reports,
    "saved states": States,
    "S3 answers": S3Answers,
}


def try_parser(name: str, folder: Path, *, inputs: int, seed: int) -> Counts:
    """Give a parser so many inputs."""
    folder.mkdir(parents=True)
    parser, counts = PARSERS[name](folder), Counts()
    for number in range(inputs):
        counts.inputs += 1
        answer = judge(parser, random.Random(f"{seed}/{name}/{number}"))
        if answer is None:
            counts.valid += 1
        elif answer == "":
            counts.clear += 1
        else:
            counts.unclear.append(f"{name}, seed {seed}, input {number}: {answer}")
    return counts


def judge(parser: Parser, rng: random.Random) -> str | None:
    """None: a valid result; "": a clear error; else what is unclear about the answer."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer: str | None = None
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # of NumPy: a number became another
            parser.attempt(rng)
    except CwbassError as error:
        answer = unclear_message(str(error), parser.names)
    except Hang:
        answer = f"no answer in {SECONDS} s"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        answer = f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return f"{grown:.0f} MB for one input" if grown > MEGABYTES else answer


def unclear_message(message: str, names: tuple[str, ...]) -> str:
    """What a message lacks: "" where it names a file or key, and how to mend it."""
    if not any(name in message for name in names):
        return f"names neither file nor key: {message[:300]}"
    words = {word.strip(".,;:()`'").lower() for word in message.split()}
    if not words & MENDS and "unknown key" not in message and "required" not in message:
        return f"says no mend: {message[:300]}"
    return ""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parser", action="append", choices=list(PARSERS), help="only this one; may be given again")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found: dict[str, Counts] = {}
    if not arguments.json:
        print(f"{'parser':18}{'inputs':>8}{'valid':>8}{'clear':>8}{'unclear':>9}")
    with tempfile.TemporaryDirectory(prefix="cwbass-fuzz-") as folder:
        for name in arguments.parser or PARSERS:
            counts = try_parser(name, Path(folder) / name.replace(" ", "-"), inputs=arguments.inputs, seed=arguments.seed)
            found[name] = counts
            if not arguments.json:
                print(f"{name:18}{counts.inputs:8}{counts.valid:8}{counts.clear:8}{len(counts.unclear):9}", flush=True)
    if arguments.json:
        print(json.dumps({"seed": arguments.seed, "rows": {name: vars(counts) for name, counts in found.items()}}))
    else:
        total = found.values()
        print(f"{'all':18}{sum(c.inputs for c in total):8}{sum(c.valid for c in total):8}{sum(c.clear for c in total):8}"
              f"{sum(len(c.unclear) for c in total):9}")  # fmt: skip
        for line in [line for counts in total for line in counts.unclear]:
            print(line)
    sys.exit(any(counts.unclear for counts in found.values()))


if __name__ == "__main__":
    main()
