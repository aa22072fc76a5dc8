"""Step ``report``: everything a run has to show, from files that evaluation wrote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cwbass.data.base import DatasetSpec
from cwbass.errors import CwbassError, DataError
from cwbass.evaluation.probes import ProbeBook
from cwbass.evaluation.sweep import SWEEP, Sweep
from cwbass.files import naming, write_whole
from cwbass.params import parse_yaml
from cwbass.reporting import scores
from cwbass.reporting.flight import write_flight
from cwbass.reporting.gallery import GalleryItem
from cwbass.reporting.html import write_report
from cwbass.training.flight import PROBES
from cwbass.training.history import HISTORY, write_rows

CURVES = (
    "stage",
    "step",
    "loss",
    "loss_sup",
    "loss_unsup",
    "selection_miou",
    "retention",
    "precision",
    "mean_confidence",
    "data_wait",
)
METRICS, REPORT, FLIGHT = "metrics.json", "report.html", "flight.html"
SPEC, GALLERY = "spec.json", "gallery.npz"
CONFUSION_ROWS = 20_000  # DVC counts rows: pixels are scaled down to about this many


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What the report is drawn from."""

    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    gallery: Sequence[GalleryItem]
    spec: DatasetSpec
    params_text: str
    probes: ProbeBook | None = None
    sweep: Sweep | None = None

    @property
    def name(self) -> str:
        """For a title: method, folder of the data, seed."""
        values = parse_yaml(self.params_text, "params.yaml")  # of any version: they are shown, not run
        data = Path((values.get("data") or {}).get("root") or "").name
        trained = f" trained on {data}" if data else ""
        return f"{scores.ours(self.metrics)}{trained}, seed {self.metrics['seed']}"


def write_run_files(files: RunFiles, out_dir: Path) -> Path:
    """Write history.jsonl, gallery.npz, params.yaml, probes.zip, sweep.json, plots for DVC, the pages, and metrics.json.

    That is gone at first and comes back last: what stops half-way leaves no scores beside the pages of an earlier model.

    Returns:
        Path of the report.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with naming(out_dir):
        (out_dir / METRICS).unlink(missing_ok=True)
        _write_json(out_dir / SPEC, files.spec.to_dict())
        (out_dir / "params.yaml").write_text(files.params_text, encoding="utf-8")
        write_rows(out_dir / HISTORY, files.history)
        _write_gallery(out_dir / GALLERY, files.gallery)
        (out_dir / PROBES).write_bytes((files.probes or ProbeBook()).serialize())
        _write_json(out_dir / SWEEP, {} if files.sweep is None else files.sweep.to_dict(), indent=None)
        _write_plots(out_dir / "plots", files)
        report = draw(files, out_dir)
        _write_json(out_dir / METRICS, files.metrics)
    return report


def report(out_dir: Path) -> Path:
    """Draw report.html and flight.html again from the files beside them.

    Raises:
        DataError: A file is missing or broken.
    """
    with _broken_files_named(out_dir):
        return draw(_read(out_dir), out_dir)


def report_alone(out_dir: Path, path: Path) -> None:
    """Draw the report of a folder elsewhere, for a viewer that shows this one file: it links to no other.

    Raises:
        DataError: A file of the folder is missing or broken.
    """
    with _broken_files_named(out_dir):
        _draw_report(_read(out_dir), path, flight=None)


def _read(out_dir: Path) -> RunFiles:
    """Inverse of :func:`write_run_files`."""
    metrics = json.loads((out_dir / METRICS).read_text(encoding="utf-8"))
    spec = DatasetSpec.from_dict(json.loads((out_dir / SPEC).read_text(encoding="utf-8")))
    lines = (out_dir / HISTORY).read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    params_text = (out_dir / "params.yaml").read_text(encoding="utf-8")
    gallery = _read_gallery(out_dir / GALLERY)
    swept = json.loads((out_dir / SWEEP).read_text(encoding="utf-8"))
    sweep = Sweep.from_dict(swept) if swept else None
    probes = ProbeBook.read(out_dir / PROBES)
    return RunFiles(metrics, history, gallery, spec, params_text, probes, sweep)


@contextmanager
def _broken_files_named(out_dir: Path) -> Iterator[None]:
    """What a broken file raises when it is read, or drawn, as a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file. `cwbass eval --out {out_dir}` writes it.") from error
    except CwbassError as error:
        if isinstance(error.__cause__, OSError):  # of the disk that the pages go to
            raise
        raise _broken(out_dir, error) from error
    except Exception as error:  # a value of another kind, deep in a table, raises whatever it happens to cause
        raise _broken(out_dir, error) from error


def _broken(out_dir: Path, error: Exception) -> DataError:
    return DataError(f"{out_dir} holds a broken file ({error!r}). Run `cwbass eval --out {out_dir}` again.")


def draw(files: RunFiles, out_dir: Path) -> Path:
    """Write report.html and flight.html; returns the path of the report."""
    write_flight(
        out_dir / FLIGHT,
        name=files.name,
        history=files.history,
        probes=files.probes,
        sweep=files.sweep,
        spec=files.spec,
    )
    _draw_report(files, out_dir / REPORT, flight=FLIGHT)
    return out_dir / REPORT


def _draw_report(files: RunFiles, path: Path, *, flight: str | None) -> None:
    write_report(
        path,
        name=files.name,
        metrics=files.metrics,
        history=files.history,
        gallery=files.gallery,
        spec=files.spec,
        params_text=files.params_text,
        flight=flight,
    )


def _write_json(path: Path, values: Mapping[str, Any], *, indent: int | None = 2) -> None:
    write_whole(path, f"{json.dumps(values, indent=indent, allow_nan=False)}\n".encode())


def _write_gallery(path: Path, gallery: Sequence[GalleryItem]) -> None:
    arrays: dict[str, Any] = {"titles": np.array([item.title for item in gallery], dtype=np.str_)}
    for index, item in enumerate(gallery):
        for field in fields(item):
            value = getattr(item, field.name)
            if field.name != "title" and value is not None:
                arrays[f"{index}/{field.name}"] = value
    np.savez_compressed(path, **arrays)


def _read_gallery(path: Path) -> list[GalleryItem]:
    with np.load(path, allow_pickle=False) as file:
        maps: list[dict[str, Any]] = [{"title": str(title), "truth": None, "prediction": None} for title in file["titles"]]
        for key in file.files:
            index, slash, name = key.partition("/")
            if slash:
                maps[int(index)][name] = file[key]
    return [GalleryItem(**values) for values in maps]


def _write_plots(folder: Path, files: RunFiles) -> None:
    folder.mkdir(exist_ok=True)
    _write_csv(folder / "curves.csv", CURVES, [[row.get(key, "") for key in CURVES] for row in files.history])
    names, matrix = files.spec.class_names, np.array(files.metrics["confusion"]["matrix"], dtype=np.float64)
    scaled = np.rint(matrix * (CONFUSION_ROWS / max(1.0, matrix.sum()))).astype(int)
    pairs = [(names[i], names[j]) for i in range(len(names)) for j in range(len(names)) for _ in range(scaled[i, j])]
    _write_csv(folder / "confusion.csv", ("actual", "predicted"), pairs)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
