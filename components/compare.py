"""Components of a comparison: plan the grid, run one cell of it, set the numbers side by side.

All three work in one folder of the work volume, which a retried pod finds by the id of the run.
"""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(params: str, methods: list[str], seeds: str, labels: str, budget: str, data: str, runs: str, run_id: str) -> list[str]:
    """Write down what is compared; where the budget is of minutes or passes, take a few steps of each method.

    Args:
        params: All of params.yaml, as YAML.
        methods: Names; supervised is always among them.
        seeds: Whole numbers, with commas between.
        labels: As of cwbass compare --labels; empty takes those of the parameters.
        budget: As of cwbass compare --budget; empty takes train.steps.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        runs: Folder of the work volume for runs.
        run_id: Id of this run.

    Returns:
        Groups: each has a split, and a supervised baseline from whose warm-up the others start.
    """
    from pathlib import Path

    from cwbass.comparison.variants import method_variants
    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.errors import disk_failures
    from cwbass.params import Params, load_text
    from cwbass.steps.compare import asked_plan, listed, prepare
    from cwbass.steps.runs import run_folder

    with disk_failures():
        loaded = load_text(params, "params", Params, data=str(local_dataset(data, DATASETS)))
        folder = run_folder(Path(runs), run_id, "compare")
        names = {"seeds": listed(seeds), "labels": listed(labels)}
        variants = method_variants(methods, loaded)
        return prepare(asked_plan(loaded, variants, **names, budget=budget or None, out_dir=folder)).groups


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def cell(group: str, variant: str, runs: str, run_id: str) -> str:
    """Split, warm up, train and evaluate one method on one split, as far as that is not done.

    Args:
        group: Labels and seed.
        variant: The method.
        runs: Folder of the work volume for runs.
        run_id: Id of this run.

    Returns:
        Id of the cell.
    """
    from pathlib import Path

    from cwbass.comparison.plan import Plan
    from cwbass.errors import disk_failures
    from cwbass.steps.compare import run_cells
    from cwbass.steps.runs import run_folder

    with disk_failures():
        plan = Plan.read(run_folder(Path(runs), run_id, "compare"))
        run_cells(plan, [plan.cell(f"{group}/{variant}")])
        return f"{group}/{variant}"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def table(runs: str, run_id: str, cells: list[list[str]], page: dsl.Output[dsl.HTML], summary: dsl.Output[dsl.Markdown]):
    """Set the numbers of all cells side by side.

    Args:
        runs: Folder of the work volume for runs.
        run_id: Id of this run.
        cells: What has been run, by group; the table waits for it.

    Returns:
        page: The comparison as one page.
        summary: Its tables.
    """
    import shutil
    from pathlib import Path

    from cwbass.errors import disk_failures
    from cwbass.steps.compare import PAGE, write_table
    from cwbass.steps.runs import run_folder

    with disk_failures():
        folder = run_folder(Path(runs), run_id, "compare")
        Path(summary.path).write_text(write_table(folder), encoding="utf-8")
        shutil.copyfile(folder / PAGE, page.path)
