"""Component ``split``."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(params: str, data: str, data_version: str, run_id: str, split: dsl.Output[dsl.Dataset]):
    """Give each image its role: labelled, unlabelled, held out for selection, or test.

    Args:
        params: Sections seed, data and split of params.yaml, as YAML.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        data_version: Any text that says which version of the data this is; it goes into the registry.
        run_id: Id of this run.

    Returns:
        split: manifest.json with roles, classes, seed and hash; one list of ids for each role.
    """
    from pathlib import Path

    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.errors import disk_failures
    from cwbass.params import load_text
    from cwbass.reporting.summary import facts
    from cwbass.steps import split as step
    from cwbass.telemetry import observe_here

    with disk_failures():
        with observe_here("split", run_id=run_id):
            loaded = load_text(params, "split_params", step.SplitParams, data=data)
            report = step.split(loaded, data_root=local_dataset(data, DATASETS), out_dir=Path(split.path))
        split.metadata.update({"data": data, "data_version": data_version, **facts(report.to_dict())})
