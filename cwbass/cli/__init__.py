"""The command line: parse, call one step, print its report as JSON.

Results go to stdout, talk to stderr. Heavy imports live inside the commands: torch takes
seconds to load, and ``--help`` should not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from cwbass import __version__
from cwbass.cli import comparing, data, environment, models, registry, training
from cwbass.cli.json_lines import FORMAT, JsonLines, asks_for_json
from cwbass.cli.stdio import outlive_readers
from cwbass.errors import CwbassError, disk_failures

app = typer.Typer(
    name="cwbass",
    help="Semi-supervised semantic segmentation with CW-BASS. A folder of images: `cwbass init FOLDER`, `cwbass check`, then split, "
    "warmup, train, eval and register, or all at once by `dvc repro`. `cwbass VERB --help` explains each.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# `cwbass --help` lists them in this order.
app.command("synthesize")(data.synthesize)
app.command("init")(data.init)
app.command("import")(data.import_)
app.command("split")(data.split)
app.command("check")(data.check)
app.command("warmup")(training.warmup)
app.command("train")(training.train)
app.command("launch")(training.launch)
app.command("eval")(models.eval_)
app.command("thresholds")(models.thresholds)
app.command("measure")(training.measure)
app.command("compare")(comparing.compare)
app.command("ablate")(comparing.ablate)
app.command("predict")(models.predict)
app.command("register")(models.register)
app.command("report")(models.report)
app.command("doctor")(environment.doctor)
app.command("export")(models.export)

config_app = typer.Typer(help="Show and check parameters.", no_args_is_help=True)
config_app.command("show")(environment.config_show)
config_app.command("schema")(environment.config_schema)
app.add_typer(config_app, name="config")

registry_app = typer.Typer(help="Look at registered models, and move their aliases.", no_args_is_help=True)
registry_app.command("list")(registry.list_models)
registry_app.command("show")(registry.show)
registry_app.command("promote")(registry.promote)
registry_app.command("rollback")(registry.rollback)
app.add_typer(registry_app, name="registry")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cwbass {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors alone.")] = False,
) -> None:
    level = logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if asks_for_json() else logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.ERROR if _rank() else level, handlers=[handler])  # of many processes the first one talks
    for noisy in ("httpx", "botocore", "PIL", "torch", "timm", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _rank() -> int:
    """Of this process among those of torchrun; 0 is the only one, or the first."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def _find_verb() -> None:
    """A verb that is none of ours may be a plugin's, which adds it to ``app``. Any other verb loads plugins where it needs them."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if words and words[0] not in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        from cwbass.plugins import load_plugins

        load_plugins()


def main() -> None:
    """Entry point: runs the command and turns our errors into one line and an exit code."""
    # The first process of a container gets no default action: without a handler SIGTERM would do nothing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outlive_readers()
    try:
        with disk_failures():
            _find_verb()
            app()
    except CwbassError as error:
        who = f" (process {_rank()} of {os.environ['WORLD_SIZE']})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        if os.environ.get(FORMAT) == "json":
            said = {"levelname": "ERROR", "msg": f"{error}{who}", "exit_code": error.exit_code}
            typer.echo(JsonLines().format(logging.makeLogRecord(said)), err=True)
        else:
            typer.echo(f"error{who}: {error}", err=True)
        sys.exit(error.exit_code)
