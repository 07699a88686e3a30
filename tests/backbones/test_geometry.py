"""Which part of a picture an encoder sees, and where its tokens lie, against markers that go through the processor."""

import numpy as np
import pytest
import transformers
from PIL import Image

from fusetune.backbones.geometry import grid, seen_part
from fusetune.errors import FusetuneError
from fusetune.tokens import Lattice

PROCESSORS = {
    "resize and crop": lambda: transformers.CLIPImageProcessor(),
    "squash": lambda: transformers.ViTImageProcessor(),
    "crop by a share": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 224}),
    "pad": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 160}, crop_size={"height": 224, "width": 224}
    ),
}


@pytest.mark.parametrize("size", [(640, 480), (301, 500), (64, 64)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_marker_lies_where_the_view_says(name, size):
    processor = PROCESSORS[name]()

    def process(pictures):
        return processor(images=pictures, return_tensors="pt")["pixel_values"]

    left, top, right, bottom = seen_part(process, size)
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    box = [width * 0.4, height * 0.45, width * 0.55, height * 0.65]
    box = [round(value) for value in box]
    picture[box[1] : box[3], box[0] : box[2]] = 255
    seen = process([Image.fromarray(picture)])[0, 0].numpy()
    bright = seen > (seen.min() + seen.max()) / 2
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    count = np.array([seen.shape[1], seen.shape[0]] * 2)
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / count
    expected = (np.array(box) - [left, top, left, top]) / ([right - left, bottom - top] * 2)
    assert np.abs(found - expected).max() < 1.2 / seen.shape[0], (found, expected)
    if name == "resize and crop" and width > height:
        assert (left, right) == pytest.approx(((width - height) / 2, (width + height) / 2), abs=0.004 * width)
    if name == "squash":
        assert (left, top, right, bottom) == pytest.approx((0, 0, width, height))
    if name == "pad":
        assert min(left, top) < 0 and (right > width or bottom > height)


def test_a_picture_of_a_few_pixels_is_refused():
    process = PROCESSORS["squash"]()
    with pytest.raises(FusetuneError, match="a picture of 1 pixels, as this model's processor brings it to 224"):
        seen_part(lambda pictures: process(images=pictures, return_tensors="pt")["pixel_values"], (64, 1))


@pytest.mark.parametrize(
    ("tokens", "height", "width", "expected"),
    [
        (197, 224, 224, Lattice(1, rows=14, columns=14)),
        (198, 224, 224, Lattice(2, rows=14, columns=14)),
        (261, 224, 224, Lattice(5, rows=16, columns=16)),  # DINOv2 with registers
        (49, 224, 224, Lattice(0, rows=7, columns=7)),
        (1 + 10 * 14, 160, 224, Lattice(1, rows=10, columns=14)),
        (32, 224, 224, None),  # a Q-Former's queries
    ],
)
def test_rows_and_columns_by_the_number_of_tokens(tokens, height, width, expected):
    assert grid(tokens, height, width) == expected
