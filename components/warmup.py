"""Component ``warmup``."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def warmup(params: str, data: str, runs: str, run_id: str, split: dsl.Input[dsl.Dataset], warmup: dsl.Output[dsl.Model]):
    """Train supervised: the warm-up that training starts from, and the baseline it is compared with.

    Args:
        params: Sections of params.yaml that the warm-up depends on, as YAML.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        runs: Folder of the work volume for checkpoints of runs.
        run_id: Id of this run: a retried pod finds its checkpoints by it.
        split: From split.

    Returns:
        warmup: warmup.pt, baseline_last.pt, baseline_best.pt and the history.
    """
    import functools
    import shutil
    from pathlib import Path

    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.errors import disk_failures
    from cwbass.params import load_text
    from cwbass.reporting.summary import facts
    from cwbass.steps.launch import WarmupTask, warmup_where_asked
    from cwbass.steps.runs import run_folder
    from cwbass.steps.training import WarmupParams
    from cwbass.telemetry import observe_failure, observe_here

    with disk_failures():
        out_dir = run_folder(Path(runs), run_id, "warmup")
        with observe_failure(telemetry := functools.partial(observe_here, "warmup", out_dir=out_dir, run_id=run_id)):
            loaded = load_text(params, "warmup_params", WarmupParams, data=data)
            manifest, root = Path(split.path) / "manifest.json", local_dataset(data, DATASETS)
        task = WarmupTask(params=loaded, manifest=manifest, data_root=root, out_dir=out_dir, run_id=run_id)
        report = warmup_where_asked(task, telemetry=telemetry)
        shutil.copytree(out_dir, warmup.path, dirs_exist_ok=True)
        warmup.metadata.update(facts(report.to_dict()))
