from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cwbass.errors import DataError
from cwbass.evaluation.per_image import PerImage


def test_matrices_of_another_number_of_images_say_how_to_make_them_again(tmp_path: Path) -> None:
    path = tmp_path / "confusions.npz"
    path.write_bytes(PerImage(("a",), ("road", "sky"), np.zeros((2, 2, 2), dtype=np.int64)).serialize())
    message = r"shape \(2, 2, 2\) for 1 image and 2 classes\. Run `cwbass eval --per-image` again; `cwbass compare` does\.$"
    with pytest.raises(DataError, match=message):
        PerImage.read(path)
