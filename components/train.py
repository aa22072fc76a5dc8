"""Component ``train``."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    params: str,
    data: str,
    runs: str,
    run_id: str,
    split: dsl.Input[dsl.Dataset],
    warmup: dsl.Input[dsl.Model],
    train: dsl.Output[dsl.Model],
):
    """Train semi-supervised with a teacher, from the warm-up on.

    Args:
        params: Sections of params.yaml that training depends on, as YAML.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        runs: Folder of the work volume for checkpoints of runs.
        run_id: Id of this run: a retried pod finds its checkpoints by it.
        split: From split.
        warmup: From warmup.

    Returns:
        train: last.pt, best.pt (the one that counts by the selection slice) and the history.
    """
    import shutil
    from pathlib import Path

    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.params import flatten, load_params, parse_yaml
    from cwbass.steps import train as step
    from cwbass.steps.runs import run_folder

    loaded = load_params(parse_yaml(params, "train_params"), step.TrainParams)
    out_dir = run_folder(Path(runs), run_id, "train")
    manifest, data_root = Path(split.path) / "manifest.json", local_dataset(data, DATASETS)
    start = Path(warmup.path) / "warmup.pt"
    # The one place for more than one machine: what launches a job takes these same arguments.
    report = step.train(loaded, manifest=manifest, warmup=start, data_root=data_root, out_dir=out_dir)
    shutil.copytree(out_dir, train.path, dirs_exist_ok=True)
    train.metadata.update(flatten(report.to_dict()))
