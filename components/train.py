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
    image: str,
    cpu: str,
    memory: str,
    accelerator: str,
    warmup: dsl.Input[dsl.Model],
    train: dsl.Output[dsl.Model],
):
    """Train semi-supervised with a teacher, from the warm-up on.

    Args:
        params: Sections of params.yaml that training depends on, as YAML.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        runs: Folder of the work volume for checkpoints of runs.
        run_id: Id of this run: a retried pod finds its checkpoints by it.
        image: Of the pods of a job on several machines (train.nodes).
        cpu: CPUs of each of them.
        memory: Their memory.
        accelerator: Resource of which each process gets one.
        split: From split.
        warmup: From warmup.

    Returns:
        train: last.pt, best.pt (the one that counts by the selection slice) and the history.
    """
    import functools
    import shutil
    from pathlib import Path

    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.errors import disk_failures
    from cwbass.params import load_text
    from cwbass.reporting.summary import facts
    from cwbass.steps.launch import Cluster, TrainTask, train_where_asked
    from cwbass.steps.runs import run_folder
    from cwbass.steps.train import TrainParams
    from cwbass.telemetry import observe_failure, observe_here

    with disk_failures():
        out_dir = run_folder(Path(runs), run_id, "train")
        files = {"manifest": Path(split.path) / "manifest.json", "warmup": Path(warmup.path) / "warmup.pt"}
        with observe_failure(telemetry := functools.partial(observe_here, "train", out_dir=out_dir, run_id=run_id)):
            loaded = load_text(params, "train_params", TrainParams, data=data)
            root = local_dataset(data, DATASETS)
        task = TrainTask(params=loaded, **files, data_root=root, out_dir=out_dir, run_id=run_id)
        cluster = Cluster(image, cpu=cpu, memory=memory, accelerator=accelerator or None)
        report = train_where_asked(task, cluster=cluster, telemetry=telemetry)
        shutil.copytree(out_dir, train.path, dirs_exist_ok=True)
        listing = {"data_listing": root.name} if "://" in data else {}  # a copy is named by the digest of what was there
        train.metadata.update({**listing, **facts(report.to_dict())})
