from __future__ import annotations

import json
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_servers import pushgateway as real_pushgateway
from servers import BUCKET, S3Server

from cwbass.config import TrainConfig
from cwbass.data.streams import collate, make_loader
from cwbass.doctor import (
    Check,
    Diagnosis,
    cpu,
    data,
    diagnose,
    disk,
    gpu,
    memory,
    package,
    pushgateway,
    s3_round_trip,
    shared_memory,
    shared_memory_need,
    stores,
)
from cwbass.params import Params, load_params
from cwbass.types import LabeledBatch, UnlabeledBatch

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    {available} kB\nHugePages_Total:       0\n"


def test_installed_package_has_its_version() -> None:
    assert package("pydantic") == Check("pydantic", "ok", metadata.version("pydantic"))


def test_missing_package_is_an_error_only_where_it_is_needed() -> None:
    assert package("no-such-package") == Check(
        "no-such-package", "error", "not installed", "pip install cwbass, in this environment"
    )
    assert package("no-such-package", "pipeline").status == "ok"
    assert package("no-such-package", "pipeline").value == "not installed; only needed for cwbass[pipeline]"


@pytest.mark.parametrize(
    ("names", "wanted", "status"),
    [(["H200"], "cuda", "ok"), (["H200"], "auto", "ok"), ([], "auto", "ok"), ([], "cpu", "ok"), ([], "cuda", "error")],
)
def test_missing_gpu_is_an_error_only_where_it_is_asked_for(names: list[str], wanted: str, status: str) -> None:
    assert gpu(names, wanted=wanted, cuda="13.0").status == status


def test_gpu_names_the_devices_and_the_build() -> None:
    assert gpu(["A", "B"], wanted="auto", cuda="13.0").value == "A, B; no driver, torch is built for CUDA 13.0"
    seen = "none seen, training runs on the CPU; no driver, torch is built without CUDA"
    assert gpu([], wanted="auto", cuda=None).value == seen
    assert "train.device: auto" in gpu([], wanted="cuda", cuda=None).mend


@pytest.mark.parametrize(
    ("driver", "seen"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12.2.0",
            "driver 550.54.14",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build  (dvs-builder)\n",
            "driver 565.57.01",
        ),
        ("something else", "a driver"),
    ],
)
def test_the_driver_is_named_by_its_version(driver: str, seen: str) -> None:
    assert gpu(["A"], wanted="auto", cuda="13.0", driver=driver).value == f"A; {seen}, torch is built for CUDA 13.0"


@pytest.mark.parametrize(
    ("cores", "threads", "cgroup", "expected"),
    [
        (8, 8, None, Check("cpu", "ok", "8 of 8 cores, 8 threads")),
        (8, 8, "max 100000\n", Check("cpu", "ok", "8 of 8 cores, 8 threads")),
        (8, 8, "250000 100000\n", Check("cpu", "warning", "2.5 of 8 cores, 8 threads", "set OMP_NUM_THREADS=2")),
        (8, 2, "250000 100000\n", Check("cpu", "ok", "2.5 of 8 cores, 2 threads")),
        (8, 1, "50000 100000\n", Check("cpu", "ok", "0.5 of 8 cores, 1 threads")),
        (8, 2, "50000 100000\n", Check("cpu", "warning", "0.5 of 8 cores, 2 threads", "set OMP_NUM_THREADS=1")),
        (2, 2, "1600000 100000\n", Check("cpu", "ok", "2 of 2 cores, 2 threads")),
    ],
)
def test_threads_beyond_the_containers_share_are_a_warning(cores: int, threads: int, cgroup: str | None, expected: Check) -> None:
    assert cpu(cores, threads, cgroup) == expected


@pytest.mark.parametrize(
    ("available", "cgroup", "status", "value"),
    [
        (8 * 2**20, None, "ok", "8.0 of 16.0 GiB available"),
        (8 * 2**20, "max\n", "ok", "8.0 of 16.0 GiB available"),
        (8 * 2**20, f"{4 * GIB}\n", "ok", "4.0 of 4.0 GiB available"),
        (8 * 2**20, f"{64 * GIB}\n", "ok", "8.0 of 16.0 GiB available"),
        (8 * 2**20, f"{GIB}\n", "warning", "1.0 of 1.0 GiB available"),
        (2**20, None, "warning", "1.0 of 16.0 GiB available"),
    ],
)
def test_memory_is_that_of_the_container(available: int, cgroup: str | None, status: str, value: str) -> None:
    check = memory(MEMINFO.format(available=available), cgroup)
    assert (check.status, check.value, bool(check.mend)) == (status, value, status == "warning")


def test_memory_without_meminfo_is_unknown() -> None:
    assert memory(None, None) == Check("memory", "ok", "unknown")
    assert memory("MemTotal: 5 kB", None) == Check("memory", "ok", "unknown")


@pytest.mark.parametrize(("free", "status"), [(5 * GIB, "ok"), (5 * GIB - 1, "warning")])
def test_little_disk_is_a_warning(free: int, status: str) -> None:
    check = disk(Path("/scratch"), free)
    assert (check.status, check.value) == (status, "5.0 GiB free at /scratch")


def test_shared_memory_need_is_what_the_loaders_hold() -> None:
    train = TrainConfig(steps=1, workers=2, batch_labeled=3, batch_unlabeled=5)
    image, mask = torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.uint8)
    valid = torch.zeros(16, 16, dtype=torch.bool)
    labeled, unlabeled = collate([LabeledBatch(image, mask)] * 3), collate([UnlabeledBatch(image, image, valid)] * 5)
    batch = sum(tensor.nbytes for tensor in (labeled.image, labeled.mask, unlabeled.weak, unlabeled.strong, unlabeled.valid))
    stream: Any = range(100)
    loader: Any = make_loader(stream, lambda items: items, start=0, stop=1, batch_size=1, workers=1, pin_memory=False)
    assert shared_memory_need(train, 16) == 2 * loader.prefetch_factor * batch
    assert shared_memory_need(train, 16) == 2 * 4 * 256 * (4 * 3 + 7 * 5)
    assert shared_memory_need(train.model_copy(update={"workers": 0}), 16) == 0


@pytest.mark.parametrize(
    ("need", "free", "status"), [(0, 0, "ok"), (0, None, "ok"), (GIB, GIB, "ok"), (GIB, GIB - 1, "error"), (GIB, None, "warning")]
)
def test_shared_memory_must_hold_what_the_loaders_need(need: int, free: int | None, status: str) -> None:
    check = shared_memory(need, free)
    assert (check.status, bool(check.mend)) == (status, status != "ok")


def test_data_must_be_there_unless_it_is_generated(tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert data(root, generated=False).status == "error"
    assert "cwbass synthesize" in data(root, generated=True).value
    root.mkdir()
    mend = "set data.root, or mount the dataset there"
    assert data(root, generated=False) == Check("data", "error", f"{root} is no folder, or empty", mend)
    (root / "images").mkdir()
    assert data(root, generated=False) == Check("data", "ok", str(root))


def test_s3_round_trip_leaves_nothing_behind(s3: Any) -> None:
    assert s3_round_trip("s3://models/team/") == Check("s3", "ok", "s3://models/team/: wrote, read and deleted an object")
    assert s3.objects == {}
    keys = {request.split()[1] for request in s3.requests}
    assert [request.split()[0] for request in s3.requests] == ["PUT", "GET", "DELETE"]
    assert len(keys) == 1
    assert keys.pop().startswith("/models/team/.cwbass-doctor-")


def test_s3_without_a_prefix_takes_the_bucket(s3: Any) -> None:
    assert s3_round_trip("s3://models").status == "ok"
    assert s3.requests[0].startswith("PUT /models/.cwbass-doctor-")


def test_s3_that_may_not_be_read_is_cleaned_up_and_an_error(s3: Any) -> None:
    s3.statuses = [200, 403]
    check = s3_round_trip("s3://models/team")
    assert check.status == "error"
    assert "refused" in check.value
    assert "get and delete objects" in check.mend
    assert s3.objects == {}


def test_s3_that_gives_back_something_else_is_an_error(s3: Any) -> None:
    class Stale(dict[str, bytes]):
        def get(self, key: str, default: Any = None) -> Any:
            return b"old"

    s3.objects = Stale()
    assert "not what was written" in s3_round_trip("s3://models/team").value


@pytest.mark.parametrize("uri", ["s3://", "models/team", "gs://models"])
def test_s3_uri_of_another_form_is_an_error(uri: str, s3: Any) -> None:
    check = s3_round_trip(uri)
    assert check.status == "error"
    assert "not of the form s3://bucket/key" in check.value
    assert s3.requests == []


def test_no_secret_is_shown(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:endpoint-password@127.0.0.1:{free.getsockname()[1]}")
        report = json.dumps(diagnose(s3="s3://models").to_dict())
    assert '"s3", "status": "error"' in report
    for secret in ("test-key", "test-secret", "endpoint-password"):
        assert secret not in report


def test_report_is_plain_json_with_every_check_once(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    diagnosis = diagnose(load_params({"data": {"root": str(tmp_path)}}, Params))
    values = json.loads(json.dumps(diagnosis.to_dict()))
    names = [check["name"] for check in values["checks"]]
    assert len(set(names)) == len(names)
    assert {"python", "cwbass", "torch", "timm", "kfp", "dvc"} <= set(names)
    assert {"gpu", "precision", "cpu", "memory", "disk", "/dev/shm", "data"} <= set(names)
    assert "s3" not in names
    by_name = {check.name: check for check in diagnosis.checks}
    assert by_name["python"].value.startswith(platform.python_version())
    assert by_name["torch"].value == metadata.version("torch")
    assert by_name["data"] == Check("data", "ok", str(tmp_path))
    assert values["ok"] is (not diagnosis.errors)


def test_plan_decides_what_is_an_error(tmp_path: Path) -> None:
    planned = load_params({"data": {"root": str(tmp_path / "none")}, "train": {"steps": 5, "precision": "bfloat16"}}, Params)
    diagnosis = diagnose(planned)
    assert [check.name for check in diagnosis.errors] == ["data"]
    assert next(check.value for check in diagnosis.checks if check.name == "precision") == "bfloat16: bfloat16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_plan_for_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    diagnosis = diagnose(load_params({"data": {"root": str(tmp_path)}, "train": {"steps": 5, "device": "cuda"}}, Params))
    assert [check.name for check in diagnosis.errors] == ["gpu"]


def test_one_error_is_enough_not_to_be_ok() -> None:
    good, odd, bad = Check("a", "ok", ""), Check("b", "warning", ""), Check("c", "error", "")
    assert Diagnosis((good, odd)).to_dict()["ok"] is True
    assert Diagnosis((good, bad, odd)).to_dict()["ok"] is False
    assert Diagnosis((good, bad)).errors == (bad,)


def test_a_folder_that_cannot_be_written_is_a_warning() -> None:
    check = disk(Path("/workspace"), 9 * GIB, writable=False)
    assert (check.status, check.value) == ("warning", "9.0 GiB free at /workspace, which cannot be written")
    assert "--out" in check.mend


def test_without_a_plan_no_data_is_looked_for() -> None:
    assert "data" not in {check.name for check in diagnose().checks}
    assert next(check for check in diagnose(Params()).checks if check.name == "data").value.startswith("data/shapes")


def test_the_image_says_which_commit_it_was_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwbass.doctor.code_revision", lambda: None)  # there is no checkout in it
    monkeypatch.setenv("CWBASS_REVISION", "0123abc")
    assert next(check.value for check in diagnose().checks if check.name == "cwbass").endswith(", git 0123abc")


def test_stores_that_parameters_name_are_looked_at_and_written_to_by_nobody(s3_env: S3Server) -> None:
    uri = s3_env.location()
    settings = {"train": {"steps": 5, "checkpoint_uri": f"{uri}/runs"}, "registry": {"store": f"{uri}/models"}}
    found = list(stores(load_params({"data": {"root": f"{uri}/data"}, **settings}, Params)))
    assert [(check.name, check.status) for check in found] == [
        ("data.root", "ok"),
        ("train.checkpoint_uri", "ok"),
        ("registry.store", "ok"),
    ]
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    assert s3_env.client().list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0


@pytest.mark.parametrize(
    ("variables", "store", "words"),
    [
        ({}, "s3://no-such-bucket/models", "no such bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://{bucket}/models", "refused"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://{bucket}/models", "out of reach"),
        ({}, "gs://models", "registry.store is 'gs://models'"),
    ],
)
def test_a_store_that_does_not_let_us_look_is_an_error(
    s3_env: S3Server, variables: dict[str, str], store: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (check,) = stores(load_params({"registry": {"store": store.format(bucket=BUCKET)}}, Params))
    assert (check.name, check.status, words in check.value, bool(check.mend)) == ("registry.store", "error", True, True)


def test_folders_are_no_stores_to_look_at() -> None:
    assert list(stores(Params())) == []


def test_the_pushgateway_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CWBASS_PUSHGATEWAY", raising=False)
    assert list(pushgateway()) == []
    with real_pushgateway(tmp_path) as gateway:
        monkeypatch.setenv("CWBASS_PUSHGATEWAY", gateway.url.replace("://", "://user:gateway-password@"))
        assert list(pushgateway()) == [Check("pushgateway", "ok", f"{gateway.url} answers")]
        assert "cwbass" not in gateway.get("/metrics")
    (check,) = pushgateway()
    assert (check.status, "Connection refused" in check.value, bool(check.mend)) == ("warning", True, True)
    assert "gateway-password" not in str(check)


def test_another_service_is_no_pushgateway(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWBASS_PUSHGATEWAY", s3.url)
    (check,) = pushgateway()
    assert (check.status, "does not answer as one (HTTPError: HTTP Error 404" in check.value) == ("warning", True)


def test_a_variable_that_no_step_would_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWBASS_METRICS_PORT", "http")
    (check,) = pushgateway()
    assert (check.name, check.status, "CWBASS_METRICS_PORT is 'http'" in check.value) == ("metrics", "error", True)
