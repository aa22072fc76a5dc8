"""What pods of every pipeline are given: volume, secret, labels, deadlines; and those that train, their hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kfp import dsl, kubernetes

from cwbass import __version__
from cwbass.config import TrainConfig

WORK_VOLUME, WORK_DIR = "cwbass-work", "/workspace"  # the image's working directory: relative paths of params mean the volume
RUNS = "artifacts/runs"  # on it: checkpoints by run id
S3_SECRET = "cwbass-s3"
S3_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL_S3",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "CWBASS_S3_CHECKSUM",
)
USER = 10001  # of the image
RETRIES = 3
HOUR = 3600
LONGEST = 14 * 24 * HOUR  # of a training
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


class Hardware(NamedTuple):
    """What pods that train ask for. Numbers are text: the back end reads them so, and would take a number for none."""

    cpu: str
    memory: str  # request and limit
    accelerator_type: str  # a resource of the nodes; empty trains on CPUs
    accelerator_count: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, str]]


def default_hardware(train: TrainConfig) -> Hardware:
    """What pods that train ask for unless a run says otherwise: an accelerator for each process, none on the CPU."""
    accelerator = "" if train.device == "cpu" else "nvidia.com/gpu"
    return Hardware("4", "16Gi", accelerator, str(train.processes), {}, [GPU_TAINT])


def monitoring(pipeline: str) -> dict[str, str]:
    """What k8s/base/monitoring expects of what trains again and again. A gateway that is not there costs a step one warning."""
    return {
        "CWBASS_METRICS_PORT": "9095",
        "CWBASS_METRICS_ADDRESS": "0.0.0.0",
        "CWBASS_PUSHGATEWAY": "http://pushgateway:9091",
        "CWBASS_PIPELINE": pipeline,
    }


def secure(task: dsl.PipelineTask, name: str, *, retries: int, seconds: int) -> None:
    """A deadline for each attempt, no rights, and labels."""
    if retries:
        # The longest that all attempts and waits may take together: beyond it Argo starts no other, and ends the one that runs.
        longest = (retries + 1) * seconds + HOUR
        task.set_retry(retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration=f"{longest}s")
    kubernetes.set_timeout(task, seconds)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    labels = {"name": "cwbass", "component": name, "part-of": "cwbass", "version": __version__}
    for key, value in {**labels, "managed-by": "kubeflow-pipelines"}.items():
        kubernetes.add_pod_label(task, f"app.kubernetes.io/{key}", value)


def connect(task: dsl.PipelineTask, environment: Mapping[str, str]) -> None:
    """The work volume, the keys of S3, and variables."""
    kubernetes.mount_pvc(task, WORK_VOLUME, WORK_DIR)
    # Optional, the secret and each of its keys: with a role for the service account (IRSA) there is none.
    kubernetes.use_secret_as_env(task, S3_SECRET, {key: key for key in S3_KEYS}, optional=True)
    for key, value in environment.items():
        task.set_env_variable(key, value)


def small(task: dsl.PipelineTask) -> None:
    """Of a step that needs no accelerator."""
    task.set_cpu_request("1").set_memory_request("4Gi").set_memory_limit("8Gi")


def one_process(task: dsl.PipelineTask, hardware: Hardware) -> None:
    """Of a step that scores or measures, which it does in one process however many train."""
    training(task, hardware._replace(accelerator_count="1"))


def training(task: dsl.PipelineTask, hardware: Hardware) -> None:
    """Of a step that trains; what is no text in ``hardware`` is a parameter of the pipeline."""
    task.set_cpu_request(hardware.cpu).set_memory_request(hardware.memory).set_memory_limit(hardware.memory)
    task.set_accelerator_type(hardware.accelerator_type).set_accelerator_limit(hardware.accelerator_count)
    # A loop has those parameters alone that its tasks register, and kfp 2.17.0 does not do it for these.
    resources = (hardware.cpu, hardware.memory, hardware.accelerator_type, hardware.accelerator_count)
    task.register_pipeline_channels([each for each in resources if not isinstance(each, str)])
    kubernetes.add_node_selector_json(task, hardware.node_selector)
    kubernetes.add_toleration_json(task, hardware.tolerations)
    # Loader processes hand over batches in /dev/shm; a pod has 64 MB of it.
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory")
