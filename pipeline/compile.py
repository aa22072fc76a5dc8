"""The pipeline as one YAML file, for the UI, for ``submit``, and for a diff in review."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfp import compiler

from cwbass.errors import ParamsError
from pipeline.dag import build


def compile_pipeline(arguments: Mapping[str, Any], out: Path, *, build: Callable[[Mapping[str, Any]], Any] = build) -> Path:
    """Write the pipeline; the same arguments and image give the same bytes.

    Args:
        arguments: Defaults of its parameters, from ``pipeline_arguments``, or for a comparison from ``compare_arguments``.
        out: The file, ``.yaml``; its folder is made.
        build: Makes the pipeline; default: that of the five steps.

    Raises:
        ParamsError: The file has another suffix, or cannot be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ParamsError(f"--out is {str(out)!r}; a compiled pipeline is YAML, so name it .yaml.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(build(arguments), str(out))
        out.write_text(_short_header(out.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    except OSError as error:
        raise ParamsError(f"{out} cannot be written: {error.strerror or error}.") from error
    return out


def _short_header(text: str) -> str:
    """Without the list of inputs on top: kfp 2.17.0 writes defaults there with their line breaks, and mappings in any order."""
    lines = text.splitlines()
    return "\n".join([*lines[: lines.index("# Inputs:")], *lines[lines.index("components:") :]]) + "\n"
