"""Verbs that say what a run would find: the machine, and its parameters."""

from __future__ import annotations

from typing import Annotated

import typer

from cwbass.cli.common import load, print_json
from cwbass.cli.options import PARAMS, Overrides, ParamsFile
from cwbass.errors import ParamsError, counted


def doctor(
    params: ParamsFile = PARAMS,
    s3: Annotated[str | None, typer.Option(help="Also write, read and delete an object below this s3:// URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, not a table.")] = False,
) -> None:
    """Say what this machine has, and what it lacks; exit code 3 where training could not run."""
    from cwbass.doctor import diagnose
    from cwbass.params import Params

    loaded = load(Params, params, None) if params.is_file() else None
    found = diagnose(loaded, s3=s3)
    if as_json:
        print_json(found.to_dict())
    else:
        from cwbass.cli.console import print_diagnosis

        print_diagnosis(found)
    if found.errors:
        raise ParamsError(f"{counted(len(found.errors), 'thing')} would stop a run here; see above.")


def config_show(
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say of each value whether it is given, or a default.")] = False,
) -> None:
    """Print every parameter as it will be used, as YAML."""
    from cwbass.params import Params, apply_overrides, dump_origins, dump_params, read_params

    loaded = load(Params, params, overrides)
    if origin:
        given = {str(params): read_params(params), "--set": apply_overrides({}, overrides or ())}
        typer.echo(dump_origins(loaded, given), nl=False)
    else:
        typer.echo(dump_params(loaded), nl=False)


def config_schema() -> None:
    """Print the JSON schema of params.yaml, for editors."""
    from cwbass.params import json_schema

    print_json(json_schema())
