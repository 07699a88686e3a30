"""What a label is: text. Every other value becomes text by one rule, so that the same label is one class anywhere."""

import re
import unicodedata
from typing import Any

from fusetune.errors import FusetuneError

_WHOLE = re.compile(r"[+-]?\d+(?=\.0+$)")


def label_text(value: Any) -> str | None:
    """A cell of a label column as the class that it names; None for a missing one.

    Text is taken without the white space around it. A whole number has no fraction (1, 1.0 and "1.0" are "1"; "007"
    stays what it is), a boolean is "true" or "false", any other number is as Python writes it.

    Raises:
        FusetuneError: lists, mappings and bytes are no labels.
    """
    if type(value) is str:
        text = value.strip()
        whole = _WHOLE.match(text) if text.endswith("0") else None
        return whole.group() if whole else text
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise FusetuneError(f"a {type(value).__name__} is no label: {str(value)[:60]!r}. Expected text or a number.")
    return label_text(str(value))


def label_problem(value: Any) -> str | None:
    """Why a value is no class; None for one that is, or is missing."""
    try:
        text = label_text(value)
    except FusetuneError as error:
        return str(error)
    if isinstance(value, float) and text is not None and value % 1:
        return f"{text} is a fraction, no class"
    return None


def alike(text: str) -> str:
    """The same for labels that a reader takes for the same: case, white space, forms of Unicode, leading zeros."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    try:
        return f"{float(folded):g}"
    except ValueError:
        return folded
