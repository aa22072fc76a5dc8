"""The DAG: which step takes what from which, and what its pod is given. Nothing is decided here."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

import components
from components.image import IMAGE
from cwbass import __version__

NAME = "cwbass-train-eval-register"
WORK_VOLUME, WORK_DIR = "cwbass-work", "/workspace"  # the image's working directory: relative paths of params mean the volume
RUNS = "artifacts/runs"  # on it: checkpoints by run id
S3_SECRET = "cwbass-s3"
USER = 10001  # of the image
RETRIES = 3
HOUR = 3600
TIMEOUTS = {"split": 2 * HOUR, "warmup": 14 * 24 * HOUR, "train": 14 * 24 * HOUR, "evaluate": 24 * HOUR, "register": 2 * HOUR}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


# What k8s/base/monitoring expects. A gateway that is not there costs a step one warning.
MONITORING = {
    "CWBASS_METRICS_PORT": "9095",
    "CWBASS_METRICS_ADDRESS": "0.0.0.0",
    "CWBASS_PUSHGATEWAY": "http://pushgateway:9091",
    "CWBASS_PIPELINE": NAME,
}


def build(
    arguments: Mapping[str, str], *, runs: str = RUNS, retries: int = RETRIES, environment: Mapping[str, str] = MONITORING
) -> Any:
    """The pipeline.

    Args:
        arguments: Defaults of its parameters, from ``pipeline_arguments``.
        runs: Folder for checkpoints of runs, relative to the working directory of the pods.
        retries: How often a step that fails is started again.
        environment: Variables of every step's pod.
    """

    # Numbers of pods are text: the back end reads them so, and would take a number for none.
    @dsl.pipeline(name=NAME)
    def cwbass(
        split_params: str = arguments["split_params"],
        warmup_params: str = arguments["warmup_params"],
        train_params: str = arguments["train_params"],
        evaluate_params: str = arguments["evaluate_params"],
        register_params: str = arguments["register_params"],
        data: str = arguments["data"],
        data_version: str = "",
        cpu: str = "4",
        memory: str = "16Gi",
        accelerator_type: str = "nvidia.com/gpu",
        accelerator_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [GPU_TAINT],  # noqa: B006
    ):
        """CW-BASS: split, warm up, train semi-supervised, evaluate, register.

        Args:
            split_params: Sections of params.yaml that the split depends on, as YAML.
            warmup_params: Likewise of the warm-up.
            train_params: Likewise of training.
            evaluate_params: Likewise of evaluation.
            register_params: Likewise of registration.
            data: The dataset: s3://bucket/prefix, or a folder of the work volume.
            data_version: Any text that changes with the data; a new one draws the split anew in place of a cached one.
            cpu: CPUs that each pod of warm-up, training and evaluation asks for.
            memory: Their memory, request and limit.
            accelerator_type: Their accelerator, a resource of the nodes.
            accelerator_count: How many of it; 0 trains on CPUs.
            node_selector: Labels of the nodes they may run on.
            tolerations: Taints of those nodes that they bear.
        """
        run = {"runs": runs, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        split = components.split(params=split_params, data=data, data_version=data_version)
        splits = split.outputs["split"]
        warmup = components.warmup(params=warmup_params, data=data, split=splits, **run)
        warm = warmup.outputs["warmup"]
        pods = {"image": IMAGE, "cpu": cpu, "memory": memory, "accelerator": accelerator_type}
        train = components.train(params=train_params, data=data, split=splits, warmup=warm, **run, **pods)
        trained = train.outputs["train"]
        evaluate = components.evaluate(params=evaluate_params, data=data, split=splits, warmup=warm, train=trained)
        register = components.register(params=register_params, train=trained, reports=evaluate.outputs["reports"])
        verdict = components.verdict(registration=register.outputs["registration"])

        for task in (split, warmup, train, evaluate, register):
            _pod(task, retries=retries)
            _storage(task)
            for key, value in environment.items():
                task.set_env_variable(key, value)
        _pod(verdict, retries=0)  # a refusal is final
        for task in (split, register, verdict):
            task.set_cpu_request("1").set_memory_request("4Gi").set_memory_limit("8Gi")
        for task in (warmup, train, evaluate):
            task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(memory)
            task.set_accelerator_type(accelerator_type).set_accelerator_limit(accelerator_count)
            kubernetes.add_node_selector_json(task, node_selector)
            kubernetes.add_toleration_json(task, tolerations)
            # Loader processes hand over batches in /dev/shm; a pod has 64 MB of it.
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory")
        # What follows from its inputs alone may be cached. Training resumes by run id, and registration writes.
        for task in (split, evaluate):
            task.set_caching_options(True)
        for task in (warmup, train, register, verdict):
            task.set_caching_options(False)

    return cwbass


def _pod(task: dsl.PipelineTask, *, retries: int) -> None:
    if retries:
        task.set_retry(retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="1800s")
    kubernetes.set_timeout(task, TIMEOUTS.get(task.name, HOUR))  # of one attempt
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    labels = {"name": "cwbass", "component": task.name, "part-of": "cwbass", "version": __version__}
    for key, value in {**labels, "managed-by": "kubeflow-pipelines"}.items():
        kubernetes.add_pod_label(task, f"app.kubernetes.io/{key}", value)


def _storage(task: dsl.PipelineTask) -> None:
    kubernetes.mount_pvc(task, WORK_VOLUME, WORK_DIR)
    # Optional: with a role for the service account (IRSA) there is no secret.
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3")
    kubernetes.use_secret_as_env(task, S3_SECRET, {key: key for key in keys}, optional=True)
