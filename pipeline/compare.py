"""The comparison as a DAG: a loop over splits, and inside it one over methods. Nothing is decided here."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components import compare as components
from pipeline.pods import GPU_TAINT, HOUR, LONGEST, RETRIES, RUNS, connect, monitoring, secure, small, training

NAME = "cwbass-compare"
AT_ONCE = 8  # pods of each loop


def build(
    arguments: Mapping[str, str], *, runs: str = RUNS, retries: int = RETRIES, environment: Mapping[str, str] | None = None
) -> Any:
    """The pipeline.

    Args:
        arguments: Defaults of ``params`` (all of params.yaml, as YAML), ``methods``, ``seeds``, ``labels``, ``budget`` and ``data``.
        runs: Folder for runs, relative to the working directory of the pods.
        retries: How often a step that fails is started again.
        environment: Variables of every step's pod; None is what monitoring asks for.
    """
    variables = monitoring(NAME) if environment is None else environment

    @dsl.pipeline(name=NAME)
    def compare(
        params: str = arguments["params"],
        methods: str = arguments["methods"],
        seeds: str = arguments["seeds"],
        labels: str = arguments["labels"],
        budget: str = arguments["budget"],
        data: str = arguments["data"],
        cpu: str = "4",
        memory: str = "16Gi",
        accelerator_type: str = "nvidia.com/gpu",
        accelerator_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [GPU_TAINT],  # noqa: B006
    ):
        """Methods x seeds x labels on one budget, side by side.

        Args:
            params: All of params.yaml, as YAML.
            methods: Names, with commas between; supervised is always among them.
            seeds: Whole numbers, with commas between.
            labels: As of cwbass compare --labels; empty takes those of the parameters.
            budget: As of cwbass compare --budget; empty takes train.steps.
            data: The dataset: s3://bucket/prefix, or a folder of the work volume.
            cpu: CPUs that each pod that trains asks for.
            memory: Their memory, request and limit.
            accelerator_type: Their accelerator, a resource of the nodes.
            accelerator_count: How many of it; 0 trains on CPUs.
            node_selector: Labels of the nodes they may run on.
            tolerations: Taints of those nodes that they bear.
        """
        run = {"runs": runs, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        plan = components.plan(params=params, methods=methods, seeds=seeds, labels=labels, budget=budget, data=data, **run)
        with dsl.ParallelFor(plan.outputs["groups"], parallelism=AT_ONCE) as group:
            # Methods start from its warm-up: without it first, each of their pods would wait for the same one.
            baseline = components.cell(group=group, variant="supervised", **run)
            with dsl.ParallelFor(plan.outputs["variants"], parallelism=AT_ONCE) as variant:
                cell = components.cell(group=group, variant=variant, **run).after(baseline)
        table = components.table(cells=dsl.Collected(cell.output), **run)

        for task, seconds in ((plan, 2 * HOUR), (baseline, LONGEST), (cell, LONGEST), (table, HOUR)):
            secure(task, task.component_spec.name, retries=retries, seconds=seconds)
            connect(task, variables)
            task.set_caching_options(False)  # all is on the volume, and done once
        for task in (plan, baseline, cell):
            training(
                task,
                cpu=cpu,
                memory=memory,
                accelerator_type=accelerator_type,
                accelerator_count=accelerator_count,
                node_selector=node_selector,
                tolerations=tolerations,
            )
        small(table)

    return compare
