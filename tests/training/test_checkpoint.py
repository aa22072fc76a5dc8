from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cwbass
from cwbass.data.base import DatasetSpec, default_palette
from cwbass.errors import CheckpointError
from cwbass.files import digest_path, file_sha256
from cwbass.methods import build_method
from cwbass.methods.base import Method
from cwbass.models import build_model
from cwbass.params import Params, dump_params, load_params
from cwbass.training import checkpoint as module
from cwbass.training.checkpoint import Checkpoint, build_with_weights, load_checkpoint, save_checkpoint

PARAMS = load_params(
    {
        "model": {"arch": "unet", "encoder": "tu-lcnet_035", "options": {"decoder_channels": [8, 8, 8, 4, 4]}},
        "train": {"steps": 5, "optimizer": {"name": "adamw", "lr": 0.01}},
    },
    Params,
)
SPEC = DatasetSpec(("sky", "road"), default_palette(2), ids={0: 0, 7: 1}, colors={(1, 2, 3): 1})


@pytest.fixture(scope="module")
def method() -> Method:
    torch.manual_seed(0)
    return build_method(PARAMS.method, lambda: build_model(PARAMS.model, "ab"), num_classes=2, ignore_index=255)


@pytest.fixture(scope="module")
def whole(method: Method) -> Checkpoint:
    """What a run writes, with an optimiser that has stepped and a teacher that is not the student."""
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=0.01)
    for parameter in method.student.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return Checkpoint(
        method="cw_bass",
        method_state=method.state_dict(),
        networks=tuple(method.networks()),
        params=dump_params(PARAMS),
        spec=SPEC.to_dict(),
        split_hash="ab" * 32,
        seed=3,
        step=2**40,
        epoch=4,
        stage="train",
        optimizer=optimizer.state_dict(),
        best={"miou": 0.1 + 0.2, "step": 7},
        history=[{"step": 1, "loss": 1e-300, "note": "ä"}, {"step": 2, "loss": float("inf"), "per_class": [None, True]}],
    )


@pytest.fixture
def small(whole: Checkpoint) -> Checkpoint:
    """The same with little in it."""
    state = {"student.weight": torch.arange(300.0), "teacher.weight": torch.arange(300.0) + 1}
    return dataclasses.replace(whole, method_state=state, optimizer={})


def same(first: Any, second: Any) -> bool:
    """Equal in type, and in every bit of every tensor."""
    if isinstance(first, Tensor):
        return (
            isinstance(second, Tensor)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and torch.equal(first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8))
        )
    if isinstance(first, dict):
        return isinstance(second, dict) and list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_every_value_and_bit_comes_back(whole: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.pt"
    digest = save_checkpoint(whole, path)
    loaded = load_checkpoint(path)
    for item in dataclasses.fields(Checkpoint):
        before, after = getattr(whole, item.name), getattr(loaded, item.name)
        assert same(dict(before) if isinstance(before, dict) else before, dict(after) if isinstance(after, dict) else after), (
            item.name
        )
    assert len(loaded.optimizer["state"]) == len(whole.optimizer["state"]) > 0
    assert (loaded.schema, loaded.code_version) == (1, cwbass.__version__)
    assert digest == file_sha256(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_odd_tensors_come_back_bit_for_bit(dtype: torch.dtype, small: Checkpoint, tmp_path: Path) -> None:
    bits = torch.arange(64, dtype=torch.uint8)
    value = (bits % 2).bool() if dtype == torch.bool else bits.view(dtype)  # among the floats are denormal numbers
    tensors = {"flat": value, "empty": value[:0], "scalar": value[0], "transposed": value.view(2, -1).T}
    save_checkpoint(dataclasses.replace(small, method_state=tensors), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt").method_state
    assert all(same(tensors[name], loaded[name]) for name in tensors)


def test_nan_keeps_its_bits(small: Checkpoint, tmp_path: Path) -> None:
    payload = torch.tensor([0x7FC12345, -0x3FFFFF], dtype=torch.int32).view(torch.float32)
    save_checkpoint(dataclasses.replace(small, method_state={"nan": payload}), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt").method_state["nan"]
    assert torch.isnan(loaded).all()
    assert loaded.view(torch.int32).tolist() == [0x7FC12345, -0x3FFFFF]


def test_describes_its_dataset_and_parameters(small: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.dataset == SPEC
    assert loaded.run_params == PARAMS


def test_digest_file_is_what_sha256sum_reads(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    digest = save_checkpoint(small, path)
    assert digest_path(path).read_text() == f"{digest}  last.pt\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["last.pt", "last.pt.sha256"]


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_flipped_bit_is_found(share: float, small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    flip_bit(path, int(share * (path.stat().st_size - 1)))
    with pytest.raises(
        CheckpointError, match=r"last\.pt is damaged: its SHA-256 is [0-9a-f]{12}, last\.pt\.sha256 says [0-9a-f]{12}"
    ):
        load_checkpoint(path)


def test_digest_of_another_file_is_found(small: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "a.pt")
    save_checkpoint(dataclasses.replace(small, step=1), tmp_path / "b.pt")
    os.replace(tmp_path / "b.pt", tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("with_digest", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_truncated_file_is_found(share: float, with_digest: bool, small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if not with_digest:
        digest_path(path).unlink()
    with pytest.raises(CheckpointError, match=r"last\.pt is (damaged|no checkpoint of cwbass, or is torn)"):
        load_checkpoint(path)


@pytest.mark.parametrize("sidecar", [None, b"", b"\n", b"\xff\xfe"])
def test_file_without_a_readable_digest_loads(sidecar: bytes | None, small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    digest_path(path).unlink()
    if sidecar is not None:
        digest_path(path).write_bytes(sidecar)
    assert load_checkpoint(path).step == small.step


def test_damage_without_a_digest_is_a_checkpoint_error_or_another_value(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    digest_path(path).unlink()
    content = path.read_bytes()
    refused = 0
    for position in range(0, 1500, 7):  # the pickle of names and values lies at the start
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xA5]) + content[position + 1 :])
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def write(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": {"w": torch.zeros(1)}}, torch.zeros(3), {"model": torch.zeros(1), "epoch": 3}]
)
def test_checkpoint_of_another_program_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt is no checkpoint of cwbass. Pass a file that `cwbass train`"):
        load_checkpoint(write(content, tmp_path / "a.pt"))


@pytest.mark.parametrize("content", [b"PK\x05\x06" + bytes(18), b"not a pickle", b"\x89PNG\r\n\x1a\n", b"\x80\x02."])
def test_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is no checkpoint of cwbass, or is torn"):
        load_checkpoint(tmp_path / "a.pt")


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small)}
    path = write({**content, "best": Canary(tmp_path / "canary")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt is no checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "canary").exists()
    code, arguments = Canary(tmp_path / "canary").__reduce__()
    code(*arguments)
    assert (tmp_path / "canary").exists()  # it would have been made


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused_with_both_versions(schema: object, small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small)}
    path = write({**content, "schema": schema, "code_version": "9.8.7"}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert f"has schema {schema!r} (written by cwbass 9.8.7); this cwbass {cwbass.__version__} reads 1" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "name", [item.name for item in dataclasses.fields(Checkpoint) if item.name not in ("schema", "loss_scale")]
)
def test_missing_field_is_named(name: str, small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small) if item.name != name}
    with pytest.raises(CheckpointError, match=rf"no whole checkpoint: {name} missing or unknown"):
        load_checkpoint(write(content, tmp_path / "a.pt"))


def test_a_file_that_carries_the_random_state_of_old_is_whole(small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small)}
    found = load_checkpoint(write({**content, "rng": {"torch": torch.get_rng_state()}}, tmp_path / "a.pt"))
    assert dataclasses.replace(found, method_state={}) == dataclasses.replace(small, method_state={})


def test_a_file_from_before_there_was_a_loss_scale_is_whole(small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small) if item.name != "loss_scale"}
    assert load_checkpoint(write(content, tmp_path / "a.pt")).loss_scale == {}
    with pytest.raises(CheckpointError, match="loss_scale is a list"):
        load_checkpoint(write({**content, "loss_scale": []}, tmp_path / "b.pt"))


def test_unknown_field_is_named(small: Checkpoint, tmp_path: Path) -> None:
    content = {item.name: getattr(small, item.name) for item in dataclasses.fields(small)}
    with pytest.raises(CheckpointError, match="7, scheduler missing or unknown"):
        load_checkpoint(write({**content, "scheduler": {}, 7: 0}, tmp_path / "a.pt"))


def test_missing_file_names_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.pt: no such checkpoint. `cwbass train` writes"):
        load_checkpoint(tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("written", [0, 100])
def test_failed_save_leaves_the_old_file(
    written: int, small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

    def disk_full(content: object, file: Any) -> None:
        file.write(bytes(written))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(dataclasses.replace(small, step=1), path)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before
    assert load_checkpoint(path).step == small.step


def test_crash_before_the_new_digest_is_written_leaves_a_file_that_loads(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(small, path)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(dataclasses.replace(small, step=1), path)
    assert load_checkpoint(path).step == 1


def test_second_save_replaces_the_first(small: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "last.pt")
    save_checkpoint(dataclasses.replace(small, step=9), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt").step == 9


@pytest.mark.parametrize(("wanted", "expected"), [("auto", "teacher"), ("teacher", "teacher"), ("student", "student")])
def test_network_has_the_weights_of_its_name(wanted: str, expected: str, whole: Checkpoint, method: Method) -> None:
    net = whole.network(wanted)
    source = method.networks()[expected].state_dict()
    assert all(torch.equal(value, source[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert net.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])  # not stored: from the parameters


def test_student_and_teacher_differ_here(whole: Checkpoint) -> None:
    first, second = (next(iter(whole.network(name).parameters())) for name in ("student", "teacher"))
    assert not torch.equal(first, second)


def test_unknown_network_is_answered_with_those_there_are(whole: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"has no ema; its networks are student, teacher, or auto"):
        whole.network("ema")
    alone = dataclasses.replace(whole, networks=("student",))
    assert alone.network_name("auto") == "student"
    with pytest.raises(CheckpointError, match=r"has no teacher; its networks are student, or auto"):
        alone.network("teacher")


def test_weights_of_another_network_are_refused_by_name(whole: Checkpoint) -> None:
    state = dict(whole.network("student").state_dict())
    key = "net.segmentation_head.0.weight"
    with pytest.raises(CheckpointError, match=rf"do not fit unet with tu-lcnet_035: .*Missing key\(s\) in state_dict: \"{key}\""):
        build_with_weights(PARAMS.model, "ab", {name: value for name, value in state.items() if name != key})
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "extra"'):
        build_with_weights(PARAMS.model, "ab", {**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"size mismatch for {key}: .*\[2, 4, 3, 3\].*\[5, 4, 3, 3\]"):
        build_with_weights(PARAMS.model, "abcde", state)
