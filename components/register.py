"""Components ``register``, which decides, and ``verdict``, which makes a refusal visible."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    params: str,
    data_version: str,
    run_id: str,
    image: str,
    train: dsl.Input[dsl.Model],
    reports: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
):
    """Write the model into the registry, or refuse it by the gate and say why.

    A refusal is an outcome of this step, not an error: the launcher uploads nothing of a step that fails, so the
    reasons would be lost. The step after it, verdict, then fails the run.

    Args:
        params: Section registry of params.yaml, as YAML.
        data_version: Any text that says which version of the data this is.
        run_id: Id of this run.
        image: Of its pods.
        train: From train.
        reports: From evaluate.

    Returns:
        registration: registration.json: decision, version, reasons.
        summary: The decision, and why.
    """
    from contextlib import suppress
    from pathlib import Path

    from cwbass.errors import GateError, disk_failures
    from cwbass.params import load_text
    from cwbass.reporting.summary import decision_page, read_decision
    from cwbass.steps import register as step
    from cwbass.telemetry import observe_here

    with disk_failures():
        out_dir, evaluated = Path(registration.path), Path(reports.path)
        files = {"checkpoint": Path(train.path), "metrics": evaluated / "metrics.json", "report": evaluated / "report.html"}
        # A refusal is told, and goes no further: registration.json holds the reasons.
        with suppress(GateError), observe_here("register", run_id=run_id) as telemetry, telemetry.registry_operation("register"):
            loaded = load_text(params, "register_params", step.RegisterParams)
            listing = train.metadata.get("data_listing", "")
            origin = {"data_version": data_version, "data_listing": listing, "run_id": run_id, "image": image}
            step.register(loaded, **files, origin=origin, out_dir=out_dir, telemetry=telemetry)
        decision = read_decision(out_dir)
        shown = ("name", "decision", "version", "uri", "manifest_sha256")
        registration.metadata.update({key: decision[key] for key in shown if decision.get(key)})
        Path(summary.path).write_text(decision_page(decision), encoding="utf-8")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def verdict(registration: dsl.Input[dsl.Artifact]):
    """Fail the run where the model was refused; the summary of register says why.

    Args:
        registration: From register.
    """
    from pathlib import Path

    from cwbass.errors import GateError
    from cwbass.reporting.summary import read_decision

    decision = read_decision(Path(registration.path))
    if decision["decision"] != "registered":
        raise GateError(f"{decision['name']} is not registered: {'; '.join(decision['reasons'])}.")
