"""The comparison as a DAG: a loop over splits, and inside it one over methods. Nothing is decided here."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

from components import compare as components
from cwbass.comparison.variants import SUPERVISED
from cwbass.params import Params, load_text
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

NAME = "cwbass-compare"
AT_ONCE = 8  # pods of each loop


def build(
    arguments: Mapping[str, Any],
    *,
    runs: str = RUNS,
    run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    at_once: int = AT_ONCE,
    retries: int = RETRIES,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """The pipeline.

    Args:
        arguments: Defaults of ``params`` (all of params.yaml, as YAML), ``methods``, ``seeds``, ``labels``, ``budget`` and ``data``.
        runs: Folder for runs, relative to the working directory of the pods.
        run_id: Names the run's folder there; a run of the same name goes on in it.
        at_once: How many pods of each loop may run at a time.
        retries: How often a step that fails is started again.
        environment: Variables of every step's pod; None is what monitoring asks for.
    """
    variables = monitoring(f"compare-{model_name(arguments['params'])}") if environment is None else environment
    usual = default_hardware(load_text(arguments["params"], "params", Params).train)
    run = {"runs": runs, "run_id": run_id}

    def dress(task: dsl.PipelineTask, seconds: int) -> None:
        secure(task, task.component_spec.name, retries=retries, seconds=seconds)
        connect(task, variables)
        task.set_caching_options(False)  # all is on the volume, and done once

    # Not a loop in the loop: there kfp 2.17.0's local runner puts the inner item in place of the outer one.
    @dsl.pipeline(name="group")
    def split_group(
        group: str,
        methods: list,
        cpu: str,
        memory: str,
        accelerator_type: str,
        accelerator_count: str,
        node_selector: dict,
        tolerations: list,
    ) -> list[str]:
        """Methods on one split, side by side, after the baseline from whose warm-up they start."""
        hardware = Hardware(cpu, memory, accelerator_type, accelerator_count, node_selector, tolerations)
        # Without it first, each pod of the loop would wait for the same warm-up.
        baseline = components.cell(group=group, variant=SUPERVISED, **run)
        with dsl.ParallelFor(methods, parallelism=at_once) as method:
            cell = components.cell(group=group, variant=method, **run).after(baseline)
        for task in (baseline, cell):
            dress(task, LONGEST)
            training(task, hardware)
        return dsl.Collected(cell.output)

    @dsl.pipeline(name=NAME)
    def compare(
        params: str = arguments["params"],
        methods: list = arguments["methods"],
        seeds: str = arguments["seeds"],
        labels: str = arguments["labels"],
        budget: str = arguments["budget"],
        data: str = arguments["data"],
        cpu: str = usual.cpu,
        memory: str = usual.memory,
        accelerator_type: str = usual.accelerator_type,
        accelerator_count: str = usual.accelerator_count,
        node_selector: dict = usual.node_selector,
        tolerations: list = usual.tolerations,
    ):
        """Methods x seeds x labels on one budget, side by side.

        Args:
            params: All of params.yaml, as YAML.
            methods: Names, beside supervised, which is always there.
            seeds: Whole numbers, with commas between.
            labels: As of cwbass compare --labels; empty takes those of the parameters.
            budget: As of cwbass compare --budget; empty takes train.steps.
            data: The dataset: s3://bucket/prefix, or a folder of the work volume.
            cpu: CPUs that each pod that trains asks for.
            memory: Their memory, request and limit.
            accelerator_type: Their accelerator, a resource of the nodes; empty trains on CPUs.
            accelerator_count: How many of it a cell asks for: as many as processes.
            node_selector: Labels of the nodes they may run on.
            tolerations: Taints of those nodes that they bear.
        """
        hardware = Hardware(cpu, memory, accelerator_type, accelerator_count, node_selector, tolerations)
        plan = components.plan(params=params, methods=methods, seeds=seeds, labels=labels, budget=budget, data=data, **run)
        with dsl.ParallelFor(plan.output, parallelism=at_once) as group:
            cells = split_group(group=group, methods=methods, **hardware._asdict())
        table = components.table(cells=dsl.Collected(cells.output), **run)
        dress(plan, 2 * HOUR)
        one_process(plan, hardware)
        dress(table, HOUR)
        small(table)

    return compare
