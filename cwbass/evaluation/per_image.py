"""Confusion matrices image by image, as a file: what a comparison resamples."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cwbass.errors import DataError, counted

CONFUSIONS = "confusions.npz"  # of a folder of reports
_AGAIN = "Run `cwbass eval --per-image` again; `cwbass compare` does."


@dataclass(frozen=True, slots=True, eq=False)
class PerImage:
    """How one network did on every image of a test split."""

    ids: tuple[str, ...]  # [N]
    class_names: tuple[str, ...]  # [C]
    matrices: NDArray[np.int64]  # [N, C, C] pixels, a row per true class

    def serialize(self) -> bytes:
        """A compressed .npz."""
        file = io.BytesIO()
        np.savez_compressed(file, ids=np.array(self.ids), class_names=np.array(self.class_names), matrices=self.matrices)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> PerImage:
        """Read a file that :meth:`serialize` made.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, names = (tuple(map(str, file[key])) for key in ("ids", "class_names"))
                matrices = np.asarray(file["matrices"], dtype=np.int64)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no confusion matrices ({error}). {_AGAIN}") from error
        if matrices.shape != (len(ids), len(names), len(names)):
            made_for = f"{counted(len(ids), 'image')} and {counted(len(names), 'class', 'classes')}"
            raise DataError(f"{path} holds matrices of shape {matrices.shape} for {made_for}. {_AGAIN}")
        return cls(ids, names, matrices)
