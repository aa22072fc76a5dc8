"""The pipeline as one YAML file, for the UI, for ``submit``, and for a diff in review."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfp import compiler

from cwbass.errors import ParamsError
from cwbass.files import write_whole
from pipeline.dag import build


def compile_pipeline(arguments: Mapping[str, Any], out: Path, *, build: Callable[[Mapping[str, Any]], Any] = build) -> Path:
    """Write the pipeline; the same arguments and image give the same bytes.

    Args:
        arguments: Defaults of its parameters, from ``pipeline_arguments``, or for a comparison from ``compare_arguments``.
        out: The file, ``.yaml``; its folder is made.
        build: Makes the pipeline; default: that of the five steps.

    Raises:
        ParamsError: The file has another suffix, or may not be written there.
        ServiceError: The disk is full; what was there before is whole.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ParamsError(f"--out is {str(out)!r}; a compiled pipeline is YAML, so name it .yaml.")
    with TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(build(arguments), str(compiled))
        write_whole(out, _short_header(compiled.read_text(encoding="utf-8")).encode())
    return out


def _short_header(text: str) -> str:
    """Without the list of inputs on top: kfp 2.17.0 writes defaults there with their line breaks, and mappings in any order."""
    lines = text.splitlines()
    return "\n".join([*lines[: lines.index("# Inputs:")], *lines[lines.index("components:") :]]) + "\n"
