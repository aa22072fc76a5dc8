"""``python -m pipeline``: compile the pipeline, run it on this machine, or submit it to a cluster.

kfp, and torch behind the parameters, take seconds to load, so commands import them inside.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwbass.cli.comparing import BudgetOption, Labels, Methods, Seeds
from cwbass.cli.options import PARAMS, Overrides, ParamsFile
from cwbass.cli.stdio import outlive_readers
from cwbass.errors import CwbassError, ParamsError, disk_failures

if TYPE_CHECKING:
    from pipeline.service import Service

app = typer.Typer(
    name="pipeline",
    help="The Kubeflow pipeline of cwbass; run it from a checkout.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FOLDER|s3://...", help="The dataset, in place of data.root; see docs/pipeline.md."),
]
Host = Annotated[str | None, typer.Option("--host", envvar="CWBASS_KFP_HOST", help="Address of Kubeflow Pipelines.")]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", envvar="CWBASS_KFP_NAMESPACE", help="Namespace of the experiment; none on a single-user cluster."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="CWBASS_KFP_TOKEN", help="Bearer token. Better in the environment or a file: others see your options."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="CWBASS_KFP_TOKEN_FILE", help="File that holds the token, read again for each request."),
]
Credentials = Annotated[
    Path | None,
    typer.Option(
        "--credentials",
        envvar="CWBASS_KFP_CREDENTIALS",
        help="YAML file with any of host, namespace, token, token_file, cookies, ca_cert.",
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")]
Runs = Annotated[Path, typer.Option("--out", help="Folder for runs.", file_okay=False)]


@app.callback()
def _main(quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors alone.")] = False) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING if quiet else logging.INFO, format="%(levelname)s %(message)s")


def _needs_kfp() -> None:
    try:
        import kfp
        import kfp.kubernetes  # noqa: F401
    except ImportError as error:
        raise ParamsError("kfp is not installed. Run: pip install -c constraints.txt -e '.[pipeline]'") from error


def _grid(methods: list[str] | None, seeds: list[str] | None, labels: list[str] | None, budget: str | None) -> dict[str, str]:
    """What a comparison is of, as texts that a pipeline can take."""
    lists = {"methods": methods, "seeds": seeds, "labels": labels}
    return {name: ",".join(texts or ()) for name, texts in lists.items()} | {"budget": budget or ""}


def _arguments(
    params: Path, overrides: list[str] | None, data: str | None, grid: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Parameters of the pipeline; with a grid, of a comparison's."""
    _needs_kfp()
    from cwbass.params import read_params
    from pipeline.arguments import compare_arguments, pipeline_arguments

    values = read_params(params, overrides or ())
    arguments = compare_arguments(values, **grid) if grid else pipeline_arguments(values)
    return arguments | ({"data": data} if data else {})


def _service(
    context: typer.Context,
    host: str | None,
    namespace: str | None,
    token: str | None,
    token_file: Path | None,
    credentials: Path | None,
) -> Service:
    from pipeline.service import Service, read_service

    if token and token_file:  # an option goes before the environment; else the file, which is renewed
        sources = {name: context.get_parameter_source(name) for name in ("token", "token_file")}
        optional = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        token, token_file = (token, None) if optional == {"token"} else (None, token_file)
    return read_service(Service(host, namespace, token, None if token_file is None else str(token_file)), credentials)


def _print(values: Any) -> None:
    typer.echo(json.dumps(values, indent=2))


@app.command()
def compile(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)] = Path("pipeline.yaml"),
) -> None:
    """Write the pipeline as YAML, with the parameters of a file as its defaults."""
    import hashlib

    arguments = _arguments(params, overrides, data)
    from components.image import IMAGE
    from pipeline.compile import compile_pipeline

    path = compile_pipeline(arguments, out)
    _print({"pipeline": str(path), "image": IMAGE, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


@app.command("compile-compare")
def compile_compare(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)] = Path("pipeline-compare.yaml"),
) -> None:
    """Write the pipeline of a comparison, a loop over its cells, as YAML; `submit --package` starts it."""
    arguments = _arguments(params, overrides, data, _grid(methods, seeds, labels, budget))
    from pipeline.compare import build
    from pipeline.compile import compile_pipeline

    _print({"pipeline": str(compile_pipeline(arguments, out, build=build))})


@app.command("run-local")
def run_local(
    params: ParamsFile = PARAMS, overrides: Overrides = None, data: Data = None, out: Runs = Path("artifacts/run-local")
) -> None:
    """Run all steps on this machine, without a container and without a cluster."""
    arguments = _arguments(params, overrides, data)
    from cwbass.cli.console import print_scores
    from cwbass.jsonfile import read_metrics
    from pipeline.local import run_local

    folder = run_local(arguments, out)
    reports = folder / "evaluate" / "reports"
    print_scores(read_metrics(reports / "metrics.json"), reports / "report.html")


@app.command("run-local-compare")
def run_local_compare(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    labels: Labels = None,
    budget: BudgetOption = None,
    data: Data = None,
    out: Runs = Path("artifacts/run-local-compare"),
) -> None:
    """Run the pipeline of a comparison on this machine; the same command goes on where it was stopped."""
    arguments = _arguments(params, overrides, data, _grid(methods, seeds, labels, budget))
    from cwbass.steps.compare import MARKDOWN, PAGE
    from pipeline.local import run_local_compare

    folder = run_local_compare(arguments, out)
    typer.echo((folder / MARKDOWN).read_text(encoding="utf-8"), nl=False)
    typer.echo(f"page: {folder / PAGE}")


@app.command()
def submit(
    context: typer.Context,
    params: Annotated[
        Path | None, typer.Option("--params", help=f"File of parameters; default: {PARAMS}.", dir_okay=False)
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    argument: Annotated[
        list[str] | None,
        typer.Option("--argument", metavar="NAME=VALUE", help="A parameter of the pipeline, as cpu=8; see docs/pipeline.md."),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(help="A compiled pipeline, with its parameters; takes no --params and --set.", dir_okay=False),
    ] = None,
    host: Host = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    credentials: Credentials = None,
    experiment: Annotated[str, typer.Option(help="Experiment of the run; it must be there, or --create-experiment.")] = "Default",
    create_experiment: Annotated[bool, typer.Option("--create-experiment", help="Make the experiment if there is none.")] = False,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; the default has the date.")] = None,
    service_account: Annotated[str, typer.Option(help="Service account of the pods.")] = "cwbass-runner",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the request and send nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until the run has ended; exit code 5 where the model is refused.")
    ] = False,
    timeout: Timeout = 30.0,
    poll: Annotated[float, typer.Option(min=0.01, help="--wait: seconds between looks.")] = 15.0,
) -> None:
    """Start a run on a cluster."""
    if package is None:
        arguments = _arguments(params or PARAMS, overrides, data)
    elif params or overrides:
        raise ParamsError(f"{package} was compiled with its parameters. Leave --params and --set out, or compile it with them.")
    else:
        _needs_kfp()
        arguments, argument = {}, [*([f"data={data}"] if data else ()), *(argument or ())]
    from pipeline import submit as sender

    spec = sender.run_spec(arguments, argument or (), name=run_name, service_account=service_account, package=package)
    if dry_run:
        _print({"experiment": experiment, **spec.to_dict()})
        return
    service = _service(context, host, namespace, token, token_file, credentials)
    run_id, url = sender.submit(spec, service, experiment=experiment, create_experiment=create_experiment, seconds=timeout)
    logging.info("run %s: %s", run_id, url)
    state = sender.wait(run_id, service, url=url, seconds=timeout, poll=poll) if wait else "SUBMITTED"
    _print({"run_id": run_id, "url": url, "state": state})


@app.command()
def doctor(
    context: typer.Context,
    host: Host = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    credentials: Credentials = None,
    timeout: Timeout = 30.0,
) -> None:
    """Say whether Kubeflow Pipelines answers and takes the token; nothing is sent. Of stores and gateway, `cwbass doctor` says it."""
    _needs_kfp()
    from pipeline.service import connect, list_experiments

    service = _service(context, host, namespace, token, token_file, credentials)
    found = list_experiments(connect(service), service.namespace, seconds=timeout)
    _print({"host": service.host, "namespace": service.namespace, "experiments": found})


def main() -> None:
    """Entry point: runs the command and turns our errors into one line and an exit code."""
    outlive_readers()
    try:
        with disk_failures():
            app()
    except CwbassError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
