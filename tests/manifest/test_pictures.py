"""Pictures come out as a viewer shows them, or are refused; what vanishes is said by a check."""

import io

import numpy as np
import pyarrow as pa
import pytest
from media import SPLIT, tone
from PIL import Image

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import decoder_of
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.decoders import decode
from fusetune.manifest.schema import Modality
from fusetune.manifest.validation import validate


def saved(image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def shown(data: bytes, **options) -> np.ndarray:
    (picture,) = decode("image", data, "row 0", **options)
    assert picture.mode in ("L", "RGB")
    return np.asarray(picture)


def ramp(most: float, kind) -> np.ndarray:
    return np.linspace(0, most, 24).reshape(4, 6).astype(kind)


def test_sixteen_bits_are_scaled_and_stay_apart():
    ramps = [ramp(65535 * (i + 1) / 6, np.uint16) for i in range(6)]
    found = [shown(saved(Image.fromarray(values))) for values in ramps]
    assert len({picture.tobytes() for picture in found}) == 6, "six pictures, not one white one"
    for picture, values in zip(found, ramps, strict=True):
        np.testing.assert_array_equal(picture, np.round(values / 257.0))


def test_floats_from_0_to_1_are_scaled_and_others_refused():
    np.testing.assert_array_equal(
        shown(saved(Image.fromarray(ramp(1, np.float32)), "tiff")), np.round(ramp(1, np.float32) * 255.0)
    )
    for values, said in ((ramp(800, np.float32), "0 to 800"), (np.full((4, 6), np.nan, np.float32), "nan")):
        with pytest.raises(FusetuneError, match=rf"row 0: a picture of floats from .*{said}.*expected 0 to 1"):
            shown(saved(Image.fromarray(values), "tiff"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_tag_says(orientation):
    from PIL import ImageOps

    image = Image.fromarray((np.arange(24, dtype=np.uint8) * 10).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(shown(data), expected)
    assert (orientation == 1) == np.array_equal(expected, np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_ground_and_not_its_hidden_colour(mode):
    hidden = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    hidden.putpixel((0, 0), (0, 0, 255, 255))
    data = saved(hidden.convert(mode)) if mode != "P" else saved(hidden.quantize(), transparency=1)
    if mode == "P":
        data = saved(hidden, "gif")
    assert (shown(data)[1:] == 255).all()
    assert (shown(data, background="#102030")[1:] == (16, 32, 48)).all()
    assert decoder_of(Modality("image")) != decoder_of(Modality("image", background="black")), "another cache key"


def test_a_ground_that_is_no_colour_is_refused():
    with pytest.raises(FusetuneError, match="background: expected a colour such as white, found 'wihte'"):
        Modality("image", background="wihte")


def report_of(column, kind):
    rows = len(SPLIT)
    filled = [column[i] if i < len(column) else column[-1] for i in range(rows)]
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(rows)],
            "split": SPLIT,
            "group_id": [f"g{i}" for i in range(rows)],
            "label": ["a", "b"] * (rows // 2),
            "x": pa.array(filled),
        }
    )
    settings = build(ValidationSettings, {"max_quarantined": 1.0, "workers": 1}, "validate")
    found = validate(table, {"x": Modality(kind)}, ["label"], settings).report["checks"]
    return {(c["check"], c["severity"]): [e["row"] for e in c["examples"]] for c in found}


def test_checks_name_blank_pictures_and_modes_that_were_changed():
    sixteen = saved(Image.fromarray(ramp(65535, np.uint16)))
    plain = saved(Image.fromarray(ramp(255, np.uint8)))
    blank = saved(Image.new("RGB", (9, 9), (3, 3, 3)))
    found = report_of([plain, blank, sixteen, plain], "image")
    assert found[("image.constant", "warn")] == [1] and found[("image.mode", "warn")] == [2]


def stereo(left, right) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], 1), 8000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_a_check_names_stereo_that_vanishes_in_the_mean():
    loud = tone(1)
    found = report_of([stereo(loud, loud), stereo(loud, -loud), stereo(loud, 0 * loud), stereo(loud, loud)], "audio")
    assert found[("audio.phase", "warn")] == [1]
    assert decode("audio", stereo(loud, 0 * loud), "x").kept == pytest.approx(0.5, abs=1e-3)
