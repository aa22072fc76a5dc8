"""Reading of images and masks: what the decoder makes of every kind of file."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwbass.data.base import (
    UNKNOWN,
    DatasetSpec,
    class_pixels,
    count_values,
    default_palette,
    map_mask,
    read_image,
    read_mask,
    read_raw_mask,
    spread,
    upright_size,
)
from cwbass.data.inspection import inspect_image
from cwbass.errors import DataError

TWO = DatasetSpec(class_names=("ground", "tree"), palette=((0, 0, 0), (0, 128, 0)), ids={0: 0, 1: 1, 255: 255})
COLORED = DatasetSpec(
    class_names=("ground", "tree"), palette=((0, 0, 0), (0, 128, 0)), colors={(0, 0, 0): 0, (0, 128, 0): 1, (224, 224, 192): 255}
)
INDICES = [[0, 1, 255], [1, 1, 0]]


def array(values: list) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def test_palette_mask_gives_indices_not_colours(tmp_path: Path) -> None:
    mask = Image.fromarray(array(INDICES), mode="P")
    mask.putpalette([7, 8, 9] * 256)
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", TWO).tolist() == INDICES


def test_grey_and_sixteen_bit_masks_give_indices(tmp_path: Path) -> None:
    Image.fromarray(array(INDICES)).save(tmp_path / "grey.png")
    Image.fromarray(np.array(INDICES, dtype=np.uint16)).save(tmp_path / "wide.png")
    assert read_mask(tmp_path / "grey.png", TWO).tolist() == INDICES
    assert read_mask(tmp_path / "wide.png", TWO).tolist() == INDICES


def one_row_png(width: int, bits: int, color_type: int, row: bytes) -> bytes:
    """A PNG as Pillow does not write it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "bytes_"), [(2, [0b00_01_10_11]), (4, [0x01, 0x23])])
def test_grey_masks_of_two_and_four_bits_give_their_values(tmp_path: Path, bits: int, bytes_: list[int]) -> None:
    (tmp_path / "m.png").write_bytes(one_row_png(4, bits, 0, bytes(bytes_)))
    assert read_raw_mask(tmp_path / "m.png").tolist() == [[0, 1, 2, 3]]


def test_one_bit_mask_holds_zero_and_one(tmp_path: Path) -> None:
    """As 0 and 255 all of the object would be ignored."""
    Image.fromarray(np.array([[False, True], [True, True]])).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", TWO).tolist() == [[0, 1], [1, 1]]


def test_sixteen_bit_mask_with_large_ids_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000]], dtype=np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: mask values reach 1000; ids must lie in 0\.\.255"):
        read_mask(tmp_path / "m.png", TWO)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_mask_that_is_no_png_but_for_its_name_is_refused(tmp_path: Path, kind: str) -> None:
    """Its values are near the true ones, and so those of other classes where there are many."""
    Image.fromarray(array(INDICES)).save(tmp_path / "m.png", kind)
    with pytest.raises(DataError, match=rf"m\.png: the mask is stored as {kind}, which changes values\. Export it as PNG"):
        read_raw_mask(tmp_path / "m.png")


def test_an_rgb_mask_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    """Read by its upper bytes alone, class 1 and 2 would both be black."""
    (tmp_path / "m.png").write_bytes(one_row_png(2, 16, 2, struct.pack(">6H", 1, 1, 1, 2, 2, 2)))
    with pytest.raises(DataError, match=r"m\.png: the mask has 16 bits a colour, of which 8 would be read"):
        read_raw_mask(tmp_path / "m.png")


@pytest.mark.parametrize(("top", "dim"), [(4095, True), (65535, False)])
def test_an_rgb_image_of_sixteen_bits_is_dim_where_it_holds_twelve(tmp_path: Path, top: int, dim: bool) -> None:
    (tmp_path / "i.png").write_bytes(one_row_png(2, 16, 2, struct.pack(">6H", 0, 0, 0, top, top, top)))
    assert inspect_image(tmp_path / "i.png").dim == dim


def test_rgb_mask_is_mapped_by_colour(tmp_path: Path) -> None:
    Image.fromarray(array([[[0, 0, 0], [0, 128, 0], [224, 224, 192]]])).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", COLORED).tolist() == [[0, 1, 255]]


def test_rgb_mask_without_colour_map_names_file_and_mend(tmp_path: Path) -> None:
    Image.fromarray(array([[[0, 0, 0], [0, 128, 0]]])).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: mask is RGB.*labelmap\.txt"):
        read_mask(tmp_path / "m.png", TWO)


def test_index_mask_with_colour_map_only_is_refused(tmp_path: Path) -> None:
    Image.fromarray(array(INDICES)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: mask holds indices"):
        read_mask(tmp_path / "m.png", COLORED)


def test_unknown_index_names_value_count_and_first_position(tmp_path: Path) -> None:
    Image.fromarray(array([[0, 0, 0, 0], [0, 1, 9, 9], [9, 0, 0, 0]])).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: value 9 belongs to no class \(3 pixels, first at x=2, y=1\)"):
        read_mask(tmp_path / "m.png", TWO)


def test_unknown_colour_names_the_colour_and_what_it_may_come_from(tmp_path: Path) -> None:
    Image.fromarray(array([[[0, 0, 0], [0, 64, 0], [1, 2, 3]]])).save(tmp_path / "m.png")
    with pytest.raises(
        DataError,
        match=r"value \[0, 64, 0\] belongs to no class \(1 pixel, first at x=1, y=0\)\. .*A colour between two others comes from smoothing",
    ):
        read_mask(tmp_path / "m.png", COLORED)


def test_mapped_ids_may_differ_from_raw_ids() -> None:
    spec = DatasetSpec(class_names=("a", "b"), palette=default_palette(2), ids={7: 0, 33: 1, 3: 255})
    assert map_mask(array([[7, 33, 3, 8]]), spec).tolist() == [[0, 1, 255, 256]]


def test_image_is_turned_upright_by_exif_and_mask_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image must be turned a quarter clockwise
    stored = np.zeros((2, 3, 3), dtype=np.uint8)
    stored[0, 0] = 255  # top left, and after a quarter clockwise top right
    Image.fromarray(stored).save(tmp_path / "i.png", exif=exif)
    upright = read_image(tmp_path / "i.png")
    assert upright.shape == (3, 2, 3)
    assert upright[0, 1].tolist() == [255, 255, 255]
    Image.fromarray(array(INDICES)).save(tmp_path / "m.png", exif=exif)
    assert read_raw_mask(tmp_path / "m.png").shape == (2, 3)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_upright_image(tmp_path: Path, kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"i.{kind}"
    Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8)).save(path, exif=exif)  # two rows of five pixels
    expected = (5, 2) if turn >= 5 else (2, 5)
    assert read_image(path).shape == (*expected, 3)
    assert upright_size(path) == expected
    assert inspect_image(path).size == expected[::-1]  # width first


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGBA"])
@pytest.mark.parametrize(("turn", "quarters"), [(6, -1), (8, 1)])
def test_a_tiff_on_its_side_keeps_its_pixels_in_their_places(tmp_path: Path, mode: str, turn: int, quarters: int) -> None:
    """Pillow alone scrambles them where it maps the file into memory."""
    grey = Image.fromarray(array([[0, 51, 102, 153], [204, 255, 17, 34]]))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "i.tif", exif=exif)
    assert read_image(tmp_path / "i.tif")[..., 0].tolist() == np.rot90(np.asarray(grey), quarters).tolist()
    facts = inspect_image(tmp_path / "i.tif")
    assert (facts.error, facts.size) == (None, (2, 4))


def test_sixteen_bit_image_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png")[..., 0].tolist() == [[0, 128, 255]]  # 32768 / 65535 * 255 = 127.5


@pytest.mark.parametrize(("values", "read"), [([0.2, 1.0], [51, 255]), ([3.0, 120.0], [3, 120]), ([257.0, 25700.0], [1, 100])])
def test_float_images_keep_their_brightness(tmp_path: Path, values: list[float], read: list[int]) -> None:
    """Whatever their highest value: two images of one set are read alike."""
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "i.tif")
    assert read_image(tmp_path / "i.tif")[0, :, 0].tolist() == read


def test_grey_image_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(array([[3, 4]])).save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png").tolist() == [[[3, 3, 3], [4, 4, 4]]]


def test_transparent_image_drops_alpha(tmp_path: Path) -> None:
    Image.fromarray(array([[[10, 20, 30, 0]]]), mode="RGBA").save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png").tolist() == [[[10, 20, 30]]]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_any_truncation_is_a_data_error_or_a_whole_image(tmp_path: Path, kind: str) -> None:
    """A decoder may forgive a missing end; no other exception may get out."""
    buffer = BytesIO()
    Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)).save(buffer, kind)
    path = tmp_path / "broken"
    refused = 0
    for length in range(0, len(buffer.getvalue()), 7):
        path.write_bytes(buffer.getvalue()[:length])
        try:
            assert read_image(path).shape == (12, 10, 3)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 0


def test_text_file_and_missing_file_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "i.png").write_text("no image")
    with pytest.raises(DataError, match=r"i\.png: cannot be decoded as an image .* Replace or remove the file"):
        read_image(tmp_path / "i.png")
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such mask"):
        read_raw_mask(tmp_path / "gone.png")


def test_spec_survives_plain_json_values() -> None:
    assert DatasetSpec.from_dict(TWO.to_dict()) == TWO
    assert DatasetSpec.from_dict(COLORED.to_dict()) == COLORED


def test_default_palette_is_that_of_voc() -> None:
    assert default_palette(16)[1] == (128, 0, 0)
    assert default_palette(16)[8] == (64, 0, 0)
    assert default_palette(16)[15] == (192, 128, 128)  # person


def test_a_part_of_an_image_is_that_part_of_the_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(pixels).save(tmp_path / "i.jpg", exif=exif)
    whole = read_image(tmp_path / "i.jpg")
    assert whole.shape == (30, 20, 3)
    assert np.array_equal(read_image(tmp_path / "i.jpg", (3, 5, 14, 28)), whole[5:28, 3:14])


@pytest.mark.parametrize("ids", [{0: 0, 1: 1, 255: 255}, {0: 1, 1: 0, 255: 255}, {0: 0, 1: 1, 2: 1, 255: 255}])
def test_a_mask_is_what_mapping_each_pixel_gives_and_cannot_be_written_to(tmp_path: Path, ids: dict[int, int]) -> None:
    spec = DatasetSpec(("a", "b"), default_palette(2), ids=ids)
    raw = np.random.default_rng(0).choice(list(ids), (40, 50)).astype(np.uint8)
    Image.fromarray(raw).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", spec)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, map_mask(raw, spec))
    assert not mask.flags.writeable
    raw[3, 4] = 9
    Image.fromarray(raw).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"value 9 belongs to no class \(1 pixel, first at x=4, y=3\)"):
        read_mask(tmp_path / "m.png", spec)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (1, 4), (3, 3), (40, 50), (41, 51)])
def test_values_are_counted_as_if_one_by_one(size: tuple[int, int]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(count_values(raw), np.bincount(raw.ravel(), minlength=256))


def test_pixels_of_classes_are_counted_as_if_each_pixel_was_mapped() -> None:
    spec = DatasetSpec(("a", "b"), default_palette(2), ids={0: 1, 3: 0, 7: 1, 255: 255})
    raw = np.random.default_rng(0).choice([0, 3, 7, 9, 255], (40, 50)).astype(np.uint8)
    counted = class_pixels(count_values(raw), spec)
    assert np.array_equal(counted, np.bincount(map_mask(raw, spec).ravel(), minlength=UNKNOWN + 1))
    assert counted[UNKNOWN] == (raw == 9).sum() > 0


@pytest.mark.parametrize(
    ("wanted", "found"), [(0, []), (1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_items_are_spread_as_far_apart_as_they_can_be(wanted: int, found: list[int]) -> None:
    assert spread(range(5), wanted) == found
    assert spread([], wanted) == []
