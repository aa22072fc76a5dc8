"""The DAG: which step takes what from which, and what its pod is given. Nothing is decided here."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

import components
from components.image import IMAGE
from cwbass.params import load_text
from cwbass.steps.train import TrainParams
from pipeline.arguments import model_name
from pipeline.pods import (
    HOUR,
    LONGEST,
    RETRIES,
    RUNS,
    Hardware,
    connect,
    default_hardware,
    monitoring,
    one_process,
    secure,
    small,
    training,
)

NAME = "cwbass-train-eval-register"
TIMEOUTS = {"split": 2 * HOUR, "warmup": LONGEST, "train": LONGEST, "evaluate": 24 * HOUR, "register": 2 * HOUR, "verdict": HOUR}


def build(
    arguments: Mapping[str, str],
    *,
    runs: str = RUNS,
    image: str = IMAGE,
    retries: int = RETRIES,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """The pipeline.

    Args:
        arguments: Defaults of its parameters, from ``pipeline_arguments``.
        runs: Folder for checkpoints of runs, relative to the working directory of the pods.
        image: What is recorded of the pods' image; empty where there are no pods.
        retries: How often a step that fails is started again.
        environment: Variables of every step's pod; None is what monitoring asks for, under the model's name: of each model it is
            known by itself when it was last trained.
    """
    variables = monitoring(model_name(arguments["register_params"])) if environment is None else environment
    asked = load_text(arguments["train_params"], "train_params", TrainParams).train
    usual = default_hardware(asked)

    @dsl.pipeline(name=NAME)
    def cwbass(
        split_params: str = arguments["split_params"],
        warmup_params: str = arguments["warmup_params"],
        train_params: str = arguments["train_params"],
        evaluate_params: str = arguments["evaluate_params"],
        register_params: str = arguments["register_params"],
        data: str = arguments["data"],
        data_version: str = "",
        cpu: str = usual.cpu,
        memory: str = usual.memory,
        accelerator_type: str = usual.accelerator_type,
        accelerator_count: str = usual.accelerator_count,
        node_selector: dict = usual.node_selector,
        tolerations: list = usual.tolerations,
    ):
        """CW-BASS: split, warm up, train semi-supervised, evaluate, register.

        Args:
            split_params: Sections of params.yaml that the split depends on, as YAML.
            warmup_params: Likewise of the warm-up.
            train_params: Likewise of training.
            evaluate_params: Likewise of evaluation.
            register_params: Likewise of registration.
            data: The dataset: s3://bucket/prefix, or a folder of the work volume.
            data_version: Any text that says which version of the data this is; it goes into the registry.
            cpu: CPUs that each pod of warm-up, training and evaluation asks for.
            memory: Their memory, request and limit.
            accelerator_type: Their accelerator, a resource of the nodes; empty trains on CPUs.
            accelerator_count: How many of it warm-up and training ask for: as many as processes. Evaluation asks for one.
            node_selector: Labels of the nodes they may run on.
            tolerations: Taints of those nodes that they bear.
        """
        run = {"runs": runs, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        split = components.split(params=split_params, data=data, data_version=data_version, run_id=run["run_id"])
        splits = split.outputs["split"]
        warmup = components.warmup(params=warmup_params, data=data, split=splits, **run)
        warm = warmup.outputs["warmup"]
        pods = {"image": image, "cpu": cpu, "memory": memory, "accelerator": accelerator_type}
        train = components.train(params=train_params, data=data, split=splits, warmup=warm, **run, **pods)
        trained = train.outputs["train"]
        evaluate = components.evaluate(
            params=evaluate_params, data=data, run_id=run["run_id"], split=splits, warmup=warm, train=trained
        )
        register = components.register(
            params=register_params,
            data_version=data_version,
            run_id=run["run_id"],
            image=image,
            train=trained,
            reports=evaluate.outputs["reports"],
        )
        verdict = components.verdict(registration=register.outputs["registration"])

        launcher = train if asked.nodes > 1 else None  # it starts a TrainJob, and waits
        for task in (split, warmup, train, evaluate, register, verdict):
            label = "launch" if task is launcher else task.name  # it serves no metrics, and pods of `train` are scraped
            secure(task, label, retries=0 if task is verdict else retries, seconds=TIMEOUTS[task.name])  # a refusal is final
        for task in (split, warmup, train, evaluate, register):
            connect(task, variables)
        for task in (split, register, verdict):
            small(task)
        hardware = Hardware(cpu, memory, accelerator_type, accelerator_count, node_selector, tolerations)
        training(warmup, hardware)
        if launcher is None:
            training(train, hardware)
        else:
            small(launcher)
        one_process(evaluate, hardware)
        # The cache goes by texts. Data may change below the same name, training resumes by run id, and registration writes.
        for task in (split, warmup, train, evaluate, register, verdict):
            task.set_caching_options(False)

    return cwbass
