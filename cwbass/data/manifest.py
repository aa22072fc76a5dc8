"""The split as one file: which image plays which role, and a hash that names it.

Counts are derived from the file and stored nowhere else. The hash goes with every number that
was measured on the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _quote
from pathlib import Path
from typing import Any

from cwbass.data.base import DatasetSpec, Sample
from cwbass.errors import DataError
from cwbass.files import write_whole
from cwbass.memory import collector_paused

SCHEMA = 1
ROLES = ("labeled", "unlabeled", "selection", "test")
KEYS = {"schema", "hash", "seed", "spec", "notes", *ROLES}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every image's role. Unlabelled samples have no mask, so that nothing can open one.

    Raises:
        DataError: No image is labelled or tested on, one has two roles, or a mask is missing or
            too many.
    """

    spec: DatasetSpec
    labeled: tuple[Sample, ...]  # with mask and pixels
    unlabeled: tuple[Sample, ...]  # without
    selection: tuple[Sample, ...]  # labelled, held out to choose checkpoints; with mask and pixels
    test: tuple[Sample, ...]  # with mask
    notes: tuple[str, ...]  # what the reader of a report should know of the draw; not hashed
    seed: int
    hash: str = field(init=False)  # sha256, hex, of everything but notes

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "hash", hashlib.sha256(self._canonical()).hexdigest())

    @property
    def counts(self) -> dict[str, int]:
        """Images of each role."""
        return {role: len(self.samples(role)) for role in ROLES}

    def samples(self, role: str) -> tuple[Sample, ...]:
        """The samples of ``labeled``, ``unlabeled``, ``selection`` or ``test``."""
        samples: tuple[Sample, ...] = getattr(self, role)
        return samples

    def write(self, path: Path) -> None:
        """Write as JSON, one sample a line; the same manifest gives the same bytes."""
        lines = [
            f'"schema": {SCHEMA}',
            f'"hash": "{self.hash}"',
            f'"seed": {self.seed}',
            f'"spec": {json.dumps(self.spec.to_dict())}',
            f'"notes": {_one_a_line([_quote(note) for note in self.notes])}',
            *(f'"{role}": {_one_a_line([_text(sample, ", ", ": ") for sample in self.samples(role)])}' for role in ROLES),
        ]
        write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    @classmethod
    @collector_paused()
    def read(cls, path: Path) -> Manifest:
        """Read a file of :meth:`write`.

        Raises:
            DataError: The file is missing, not a manifest, of another schema, or was edited.
        """
        values = _load(path)
        if values.get("schema") != SCHEMA:
            raise DataError(f"{path} has schema {values.get('schema')!r}; this cwbass reads {SCHEMA}. Run `cwbass split` again.")
        if values.keys() != KEYS:
            odd = ", ".join(sorted(values.keys() ^ KEYS))
            raise DataError(f"{path} is no manifest: missing or foreign keys {odd}. Run `cwbass split` again.")
        try:
            manifest = cls(
                spec=DatasetSpec.from_dict(values["spec"]),
                notes=tuple(values["notes"]),
                seed=values["seed"],
                **{role: tuple(_sample(item) for item in values[role]) for role in ROLES},
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no manifest ({error!r}). Run `cwbass split` again.") from error
        if manifest.hash != values["hash"]:
            raise DataError(
                f"{path} was edited: it says hash {str(values['hash'])[:12]}, its content has {manifest.hash[:12]}. "
                "Change the split's parameters or lists and run `cwbass split` again."
            )
        return manifest

    def _canonical(self) -> bytes:
        """Compact JSON with sorted keys, of everything that is hashed."""
        few = {"schema": SCHEMA, "seed": self.seed, "spec": self.spec.to_dict()}
        texts = {key: json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in few.items()}
        for role in ROLES:
            texts[role] = f"[{','.join([_text(sample, ',', ':') for sample in self.samples(role)])}]"
        return "{{{}}}".format(",".join(f'"{key}":{text}' for key, text in sorted(texts.items()))).encode()

    def _check(self) -> None:
        for role in ("labeled", "test"):
            if not self.samples(role):
                raise DataError(f"the split has no {role} image. Change split.{role} or the list files.")
        seen: dict[str, str] = {}
        for role in ROLES:
            bare, counted = role == "unlabeled", role in ("labeled", "selection")
            for sample in self.samples(role):
                if sample.id in seen:
                    raise DataError(
                        f"{sample.id!r} is both {seen[sample.id]} and {role}; an image has one role. Run `cwbass split` again."
                    )
                seen[sample.id] = role
                if (sample.mask is None) != bare:
                    has = "no mask" if sample.mask is None else "a mask"
                    raise DataError(f"{sample.id!r} is {role}, but has {has}. Run `cwbass split` again.")
                if (sample.pixels is not None) != counted:
                    raise DataError(
                        f"{sample.id!r} is {role}; exactly labelled images carry pixel counts. Run `cwbass split` again."
                    )


def _sample(plain: dict[str, Any]) -> Sample:
    return Sample(**plain | {name: tuple(plain[name]) for name in ("pixels", "tags") if name in plain})


def _text(sample: Sample, comma: str, colon: str) -> str:
    """A sample as JSON, without what is None. ``json.dumps`` takes six times as long: of a million samples, five seconds."""
    mask = "" if sample.mask is None else f'{comma}"mask"{colon}{_quote(sample.mask)}'
    pixels = "" if sample.pixels is None else f'{comma}"pixels"{colon}[{comma.join(map(str, sample.pixels))}]'
    tags = "" if sample.tags is None else f'{comma}"tags"{colon}[{comma.join(map(str, sample.tags))}]'
    return f'{{"id"{colon}{_quote(sample.id)}{comma}"image"{colon}{_quote(sample.image)}{mask}{pixels}{tags}}}'


def _one_a_line(items: Sequence[str]) -> str:
    return "[\n" + ",\n".join(items) + "\n]" if items else "[]"


def _load(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such manifest. Run `cwbass split` first.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no manifest ({error}). Run `cwbass split` again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is no manifest: it holds a {type(values).__name__}. Run `cwbass split` again.")
    return values
