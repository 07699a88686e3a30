"""The section of a comparison's page with test samples: what they are, what is right, what each method answered."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from fusetune.comparison.examples import Example, Examples
from fusetune.errors import FusetuneError
from fusetune.features.source import Source
from fusetune.report.charts import Look

HEIGHT = 150  # pixels, of a picture on the page
PICTURES = 4  # of a sample
SECONDS = 10  # of a sound
CHARACTERS = 320  # of a text
KINDS = {
    "disagreed": "methods disagree",
    "nobody": "the worst answered",
    "everybody": "the best answered",
}


def sample_section(
    found: Examples,
    source: Source,
    look: Look,
    corners: Callable[[Sequence[float]], Sequence[float]] | None = None,
    target: str = "",
) -> str:
    """
    Args:
        source: of a manifest that has the samples.
        corners: of a box as the manifest has it; None: boxes aren't asked for.
        target: the modality that boxes lie in.
    """
    places = {sample: place for place, sample in enumerate(source.table["sample_id"].to_pylist())}
    cards = []
    for example in found.shown:
        boxes = {}
        if corners and example.region:
            boxes = {"#ffffff": corners(example.region)}
            boxes |= {look.color(n): answer.region for n, answer in example.answers.items() if answer.region}
        shown = "".join(
            _modality(source, name, places[example.sample], boxes if name == target else {})
            for name in source.modalities
        )
        cards.append(_card(example, shown, found.graded, look))
    white = " White on a picture: what is right; in colour: the methods' boxes." if corners else ""
    note = (
        f"{len(found.shown)} of {found.samples:,} test samples: those on which methods disagree the most, and some "
        f"that were answered worst and best. An answer is that of most seeds.{white}"
    )
    shown = f"{_chooser(found)}<div class='cards'>{''.join(cards)}</div>"
    return f"<div class='samples'>{shown}</div><p class='note'>{note}</p>"


def _chooser(found: Examples) -> str:
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in found.shown)]
    options = "".join(f"<option value='{kind}'>{KINDS[kind]}</option>" for kind in kinds)
    which = (
        f"<label>Samples <select data-by='kind'><option value=''>all that are here</option>{options}</select></label>"
    )
    if not found.graded:
        return which
    names = [*found.shown[0].answers] if found.shown else []
    graded = "".join(
        f"<option value='{sign}{escape(name, quote=True)}'>{escape(name)} is {told}</option>"
        for name in names
        for sign, told in (("-", "wrong"), ("+", "right"))
    )
    return f"{which} <label>where <select data-by='right'><option value=''>any</option>{graded}</select></label>"


def _card(example: Example, shown: str, graded: bool, look: Look) -> str:
    rows = ""
    for name, answer in example.answers.items():
        told, style = _grade(answer.score) if graded else ("", "")
        dot = f"<i style='background:{look.color(name)}'></i>"
        rows += f"<tr class='{style}'><td>{dot}{escape(name)}</td><td>{escape(answer.told)}</td><td>{told}</td></tr>"
    right = escape(
        "|".join(f"{'+' if answer.score > 0.5 else '-'}{name}" for name, answer in example.answers.items()), quote=True
    )
    return (
        f"<article class='card' data-kind='{example.kind}' data-right='|{right}|'>{shown}"
        f"<p>right: <b>{escape(example.truth)}</b> <span class='note'>{escape(example.sample)}</span></p>"
        f"<table>{rows}</table></article>"
    )


def _grade(score: float) -> tuple[str, str]:
    """'right', 'wrong', or the share of seeds that are right; and a class."""
    if score in (0.0, 1.0):
        return ("right", "yes") if score else ("wrong", "no")
    return f"{score:.0%} of seeds", "yes" if score > 0.5 else "no"


def _modality(source: Source, name: str, place: int, boxes: Mapping[str, Sequence[float]]) -> str:
    """One modality of a sample; that it is missing, or can't be read any more, is said in its place."""
    kind = source.modalities[name].kind
    try:
        sample = source.decoded(name, [place])[0]
    except (FusetuneError, OSError) as error:
        return f"<p class='note'>{escape(name)}: {escape(str(error))}</p>"
    if sample is None:
        return f"<p class='note'>no {escape(name)}</p>"
    if kind in ("image", "video"):
        step = -(-len(sample) // PICTURES)
        return "".join(_picture(picture, name, boxes if i == 0 else {}) for i, picture in enumerate(sample[::step]))
    if kind == "audio":
        return _sound(sample, name)
    if kind == "text":
        text = sample if len(sample) <= CHARACTERS else f"{sample[: CHARACTERS - 3]}..."
        return f"<p>{escape(text)}</p>"
    return f"<p class='note numbers'>{escape(name)}: {' x '.join(str(n) for n in sample.shape)} numbers</p>"


def _picture(picture: Any, name: str, boxes: Mapping[str, Sequence[float]]) -> str:
    from PIL import Image, ImageDraw

    scale = HEIGHT / picture.height
    size = max(1, round(picture.width * scale)), HEIGHT
    shown = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1.5 else Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(shown)
    for colour, corners in boxes.items():
        left, top, right, bottom = (scale * value for value in corners)
        box = min(left, right), min(top, bottom), max(left, right), max(top, bottom)
        draw.rectangle(box, outline=colour, width=3 if colour == "#ffffff" else 2)
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=80)
    return f"<img alt='{escape(name, quote=True)}' src='{_inline('image/webp', buffer)}'>"


def _sound(sample: Any, name: str) -> str:
    import soundfile

    heard = sample.waveform[: SECONDS * sample.sampling_rate]
    buffer = io.BytesIO()
    soundfile.write(buffer, heard, sample.sampling_rate, format="OGG", subtype="VORBIS")
    long = len(sample.waveform) / sample.sampling_rate
    cut = f" <span class='note'>the first {SECONDS} of {long:.0f} s</span>" if long > SECONDS else ""
    source = _inline("audio/ogg", buffer)
    return f"<audio controls preload='none' title='{escape(name, quote=True)}' src='{source}'></audio>{cut}"


def _inline(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
