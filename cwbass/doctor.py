"""What this machine has, what a run would lack on it, and how to mend that."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

import cwbass
from cwbass.config import TrainConfig
from cwbass.data.streams import PREFETCH
from cwbass.errors import CwbassError, ParamsError
from cwbass.params import Params
from cwbass.plugins import load_plugins
from cwbass.provenance import REVISION, code_revision
from cwbass.storage import OBJECT_STORES, open_store
from cwbass.storage.s3 import s3_client, s3_failures, split_uri
from cwbass.telemetry import TelemetrySettings
from cwbass.telemetry.export import look_for_gateway
from cwbass.training.device import resolve_device, resolve_precision

REQUIRED = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "torchmetrics", "boto3")
OPTIONAL = {"kfp": "pipeline", "kfp-kubernetes": "pipeline", "dvc": "dvc"}  # package -> extra of cwbass
GIB = 1 << 30
LOW_MEMORY, LOW_DISK = 2 * GIB, 5 * GIB
_CGROUP = Path("/sys/fs/cgroup")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warning", "error"]
    value: str  # what was seen
    mend: str = ""  # what to do; empty where nothing need be done


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at."""

    checks: tuple[Check, ...]

    @property
    def errors(self) -> tuple[Check, ...]:
        """What a run would fail on."""
        return tuple(check for check in self.checks if check.status == "error")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"ok": not self.errors, "checks": [asdict(check) for check in self.checks]}


def diagnose(params: Params | None = None, *, s3: str | None = None) -> Diagnosis:
    """Look at software, hardware, data, and the services that parameters and environment name; writes nothing but one object with ``s3``.

    Args:
        params: The run that is planned. None: no data is looked for, and of the rest what a run with the defaults needs.
        s3: ``s3://bucket/prefix`` below which an object is written, read and deleted again.
    """
    planned = params or Params()
    return Diagnosis(
        (
            *_software(),
            *_compute(planned.train),
            memory(_read(Path("/proc/meminfo")), _read(_CGROUP / "memory.max")),
            disk(Path.cwd(), shutil.disk_usage(Path.cwd()).free, writable=os.access(Path.cwd(), os.W_OK)),
            shared_memory(shared_memory_need(planned.train, planned.augment.crop_size), _free(Path("/dev/shm"))),
            *(
                [data(Path(params.data.root), generated=params.synthesize is not None)]
                if params and "://" not in params.data.root
                else []
            ),
            *(stores(params) if params else ()),
            *([s3_round_trip(s3)] if s3 else []),
            *pushgateway(),
        )
    )


def _software() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    revision = code_revision() or os.environ.get(REVISION)
    yield Check("cwbass", "ok", cwbass.__version__ + (f", git {revision}" if revision else ""))
    for name in REQUIRED:
        yield package(name)
    for name, extra in OPTIONAL.items():
        yield package(name, extra)
    for plugin in load_plugins():
        yield Check(f"plugin {plugin.name}", "ok", f"{plugin.path}, source {plugin.sha256[:12]}")


def package(name: str, extra: str | None = None) -> Check:
    """Version of an installed package; it is not imported.

    Args:
        name: On PyPI.
        extra: The extra of cwbass that it belongs to; None: cwbass does not work without it.
    """
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        if extra is None:
            return Check(name, "error", "not installed", "pip install cwbass, in this environment")
        return Check(name, "ok", f"not installed; only needed for cwbass[{extra}]")


def _compute(train: TrainConfig) -> Iterator[Check]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    yield gpu(names, wanted=train.device, cuda=torch.version.cuda, driver=_read(_DRIVER))
    if names or train.device != "cuda":
        dtype = resolve_precision(train.precision, resolve_device(train.device))
        yield Check("precision", "ok", f"{train.precision}: {str(dtype or torch.float32).removeprefix('torch.')}")
    yield cpu(len(os.sched_getaffinity(0)), torch.get_num_threads(), _read(_CGROUP / "cpu.max"))


def gpu(names: list[str], *, wanted: str, cuda: str | None, driver: str | None = None) -> Check:
    """The GPUs that torch sees.

    Args:
        names: Of the devices.
        wanted: ``train.device``.
        cuda: Version that torch is built for; None: a CPU build.
        driver: What NVIDIA's driver says of itself; None: it is not there.
    """
    version = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", driver or "")
    seen = f"driver {version[1]}" if version else "a driver" if driver else "no driver"
    build = f"{seen}, torch is built for CUDA {cuda}" if cuda else f"{seen}, torch is built without CUDA"
    if names:
        return Check("gpu", "ok", f"{', '.join(names)}; {build}")
    if wanted == "cuda":
        return Check("gpu", "error", f"none seen; {build}", "check driver and nvidia.com/gpu limit, or set train.device: auto")
    return Check("gpu", "ok", f"none seen, training runs on the CPU; {build}")


def cpu(cores: int, threads: int, cgroup: str | None) -> Check:
    """Cores against threads; threads beyond a container's share wait for each other.

    Args:
        cores: That this process may run on.
        threads: That torch starts.
        cgroup: Content of ``cpu.max``: microseconds in a period, or ``max``, and the period.
    """
    quota, _, period = (cgroup or "max").partition(" ")
    limit = float(cores) if quota == "max" else min(cores, int(quota) / int(period))
    value = f"{limit:g} of {cores} cores, {threads} threads"
    if threads > max(1.0, limit):
        return Check("cpu", "warning", value, f"set OMP_NUM_THREADS={max(1, int(limit))}")
    return Check("cpu", "ok", value)


def memory(meminfo: str | None, cgroup: str | None) -> Check:
    """Memory of the machine, or of the container where that is less.

    Args:
        meminfo: Content of ``/proc/meminfo``.
        cgroup: Content of ``memory.max``: bytes, or ``max``.
    """
    lines = (line.split() for line in (meminfo or "").splitlines())
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3}
    if "MemAvailable" not in sizes:
        return Check("memory", "ok", "unknown")
    total, available = sizes["MemTotal"], sizes["MemAvailable"]
    if cgroup is not None and cgroup.strip() != "max":
        total, available = min(total, int(cgroup)), min(available, int(cgroup))
    value = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if available < LOW_MEMORY:
        return Check("memory", "warning", value, "free memory or raise the pod's limit; a small run takes 2 GiB")
    return Check("memory", "ok", value)


def disk(folder: Path, free: int, *, writable: bool = True) -> Check:
    """Room for checkpoints and the image cache."""
    value = f"{free / GIB:.1f} GiB free at {folder}"
    if not writable:
        return Check(
            "disk", "warning", f"{value}, which cannot be written", "mount a volume there, or write elsewhere with --out"
        )
    if free < LOW_DISK:
        return Check("disk", "warning", value, "free some; checkpoints and the cache of decoded images (train.cache) take GiB")
    return Check("disk", "ok", value)


def shared_memory_need(train: TrainConfig, crop_size: int) -> int:
    """Bytes of /dev/shm that the loader processes fill at most.

    A labelled crop has four bytes a pixel (RGB, mask), an unlabelled one seven (two views, valid).
    """
    pixels = crop_size * crop_size
    return train.workers * PREFETCH * pixels * (4 * train.batch_labeled + 7 * train.batch_unlabeled)


def shared_memory(need: int, free: int | None) -> Check:
    """Loader processes hand batches over in /dev/shm, of which a container has 64 MiB by default."""
    name = "/dev/shm"
    if need == 0:
        return Check(name, "ok", "not used: train.workers is 0")
    if free is None:
        return Check(name, "warning", "cannot be read", "mount one, or set train.workers: 0")
    value = f"{free / GIB:.2f} GiB free, {need / GIB:.2f} needed"
    if free < need:
        return Check(name, "error", value, "mount an emptyDir with medium: Memory (docker: --shm-size), or lower train.workers")
    return Check(name, "ok", value)


def data(root: Path, *, generated: bool) -> Check:
    """The dataset's folder; what is in it, `cwbass check` says."""
    if root.is_dir() and any(root.iterdir()):
        return Check("data", "ok", str(root))
    if generated:
        return Check("data", "ok", f"{root} does not exist yet; `cwbass synthesize` makes it")
    return Check("data", "error", f"{root} is no folder, or empty", "set data.root, or mount the dataset there")


def stores(params: Params) -> Iterator[Check]:
    """The stores that parameters name by a URL."""
    named = {
        "data.root": params.data.root,
        "train.checkpoint_uri": params.train.checkpoint_uri,
        "registry.store": params.registry.store,
    }
    for setting, url in named.items():
        scheme, separator, _ = (url or "").partition("://")
        if url and separator and (scheme in OBJECT_STORES or setting != "data.root"):  # data have kinds of their own, too
            yield store(setting, url)


def store(setting: str, url: str) -> Check:
    """Whether a store answers and lets us look; nothing is written."""
    try:
        open_store(url, setting).exists("cwbass-doctor")
    except CwbassError as error:
        return Check(setting, "error", str(error), "a pod needs the secret cwbass-s3 or a role, and a way there")
    return Check(setting, "ok", f"{url} can be listed; whether it can be written to, --s3 says")


def pushgateway() -> Iterator[Check]:
    """The Pushgateway of ``CWBASS_PUSHGATEWAY``. A run without one ends well, and says nothing to Prometheus."""
    try:
        settings = TelemetrySettings.from_environment(os.environ)
    except ParamsError as error:
        yield Check("metrics", "error", str(error), "correct the variable")
        return
    if settings.pushgateway is not None:
        target, problem = look_for_gateway(settings.pushgateway, seconds=settings.push_timeout)
        if problem is None:
            yield Check("pushgateway", "ok", f"{target} answers")
        else:
            mend = "correct or unset CWBASS_PUSHGATEWAY; no alert will know how a run ended"
            yield Check("pushgateway", "warning", f"{target} does not answer as one ({problem})", mend)


def s3_round_trip(uri: str) -> Check:
    """Write, read and delete an object below ``uri``."""
    content = secrets.token_bytes(32)
    try:
        with s3_failures(uri):
            bucket, key = split_uri(f"{uri.rstrip('/')}/.cwbass-doctor-{secrets.token_hex(8)}")
            client = s3_client()
            client.put_object(Bucket=bucket, Key=key, Body=content)
            try:
                same = client.get_object(Bucket=bucket, Key=key)["Body"].read() == content
            finally:
                client.delete_object(Bucket=bucket, Key=key)
    except CwbassError as error:
        return Check(
            "s3", "error", str(error), "let the credentials put, get and delete objects there; AWS_ENDPOINT_URL names the store"
        )
    if not same:
        return Check(
            "s3", "error", f"{uri}: what was read is not what was written", "use a store with read-after-write consistency"
        )
    return Check("s3", "ok", f"{uri}: wrote, read and deleted an object")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
