from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cwbass.data.base import DatasetSpec
from cwbass.errors import DataError
from cwbass.reporting.gallery import GalleryItem, draw_panels

SPEC = DatasetSpec(("road", "sky"), ((10, 20, 30), (200, 100, 0)))
ITEM = GalleryItem(
    "a7",
    image=np.zeros((2, 2, 3), dtype=np.uint8),
    truth=np.array([[0, 0], [1, 255]], dtype=np.uint8),
    prediction=np.array([[0, 1], [1, 1]], dtype=np.uint8),
    baseline=np.array([[1, 1], [1, 1]], dtype=np.uint8),
    pseudo_label=np.array([[0, 255], [255, 255]], dtype=np.uint8),
    confidence=np.array([[0.9, 0.5], [0.6, 0.4]], dtype=np.float32),
)


def test_a_full_item_has_seven_panels_with_their_shares() -> None:
    notes = {panel.caption: panel.note for panel in draw_panels(ITEM, SPEC, "CW-BASS", "supervised only")}
    assert notes == {
        "Image": "",
        "Truth": "",  # border pixels have no label; that says nothing of a model
        "CW-BASS": "66.7% right",  # 2 of the 3 labelled pixels
        "Supervised only": "33.3% right",
        "Pseudo-label": "25.0% kept, 100.0% right",
        "Confidence": "mean 60.0%",
        "Change": "since supervised only",
    }


def test_an_unlabelled_image_has_no_truth_and_no_shares() -> None:
    item = replace(ITEM, truth=None, baseline=None, confidence=None)
    assert [(panel.caption, panel.note) for panel in draw_panels(item, SPEC, "CW-BASS", "supervised only")] == [
        ("Image", ""),
        ("Prediction", ""),
        ("Pseudo-label", "25.0% kept"),
    ]


def test_a_map_of_another_size_is_refused() -> None:
    item = replace(ITEM, prediction=np.zeros((3, 2), dtype=np.uint8))
    with pytest.raises(DataError, match=r"'a7': prediction has shape \(3, 2\), the image \(2, 2\)"):
        list(draw_panels(item, SPEC, "CW-BASS", "supervised only"))


def test_a_class_out_of_range_is_refused() -> None:
    item = replace(ITEM, truth=np.full((2, 2), 7, dtype=np.uint8))
    with pytest.raises(DataError, match="truth holds 7, but there are 2 classes and ignore_index 255"):
        list(draw_panels(item, SPEC, "CW-BASS", "supervised only"))
