"""Component ``evaluate``."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: str,
    data: str,
    run_id: str,
    split: dsl.Input[dsl.Dataset],
    warmup: dsl.Input[dsl.Model],
    train: dsl.Input[dsl.Model],
    reports: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
):
    """Score the model and its supervised baseline on the test split, once, and write the report.

    Args:
        params: Section eval of params.yaml, as YAML.
        data: The dataset: s3://bucket/prefix, or a folder of the work volume.
        run_id: Id of this run.
        split: From split.
        warmup: From warmup: the baseline.
        train: From train: the selected checkpoint counts.

    Returns:
        reports: metrics.json, report.html, flight.html, history and plots.
        metrics: The headline scores, fractions in [0, 1].
        confusion: Test pixels; rows are the true classes.
        report: One page with table, curves and images.
        summary: The table alone.
    """
    from pathlib import Path

    from cwbass.data.remote import DATASETS, local_dataset
    from cwbass.errors import disk_failures
    from cwbass.params import load_text
    from cwbass.reporting.summary import confusion_matrix, headline, scores_page
    from cwbass.steps import evaluate as step
    from cwbass.steps.report import report_alone
    from cwbass.telemetry import observe_here

    with disk_failures():
        out_dir = Path(reports.path)
        files = {"checkpoint": Path(train.path), "baseline": Path(warmup.path), "manifest": Path(split.path) / "manifest.json"}
        with observe_here("evaluate", run_id=run_id) as telemetry:
            loaded = load_text(params, "evaluate_params", step.EvaluateParams)
            step.evaluate(loaded, **files, data_root=local_dataset(data, DATASETS), out_dir=out_dir, telemetry=telemetry)
        for name, value in headline(out_dir).items():
            metrics.log_metric(name, value)
        confusion.log_confusion_matrix(*confusion_matrix(out_dir))
        report_alone(out_dir, Path(report.path))
        Path(summary.path).write_text(scores_page(out_dir), encoding="utf-8")
