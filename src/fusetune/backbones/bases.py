"""Where frozen bases lie: each under its own fingerprint, never written over; an experiment holds a reference.

data/06_models/bases/<fingerprint>/   a backbone that `save_pretrained` wrote
data/06_models/bases/recipes/         settings and data that a base was made from -> its fingerprint
data/06_models/<experiment>/base.json the reference: which of them an experiment uses
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check, digest
from fusetune.errors import FusetuneError
from fusetune.scratch import scratch

INDEX, RECIPES, FORMAT = "backbone.json", "recipes", 3


def save_base(backbone: Any, bases: Path) -> Path:
    """The folder of this very backbone below `bases`: written if it isn't there yet, else left alone.

    A backbone that is referenced, not copied, may have moved: then the reference is mended.
    """
    fingerprint = backbone.fingerprint()
    folder, half = bases / fingerprint, scratch(bases / f".{fingerprint}")
    bases.mkdir(parents=True, exist_ok=True)
    try:
        backbone.save_pretrained(half)
        if not (folder / INDEX).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            appear(half, folder, INDEX)
        elif (folder / INDEX).read_bytes() != (half / INDEX).read_bytes():
            (half / INDEX).replace(folder / INDEX)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def appear(half: Path, folder: Path, index: str) -> None:
    """Give a folder that has been written its name, unless another process was faster with the very same one.

    Args:
        index: a file of it, by which one knows that it is there.
    """
    try:
        half.rename(folder)
    except OSError:
        check((folder / index).is_file(), f"{folder}: the base can't be written there.")


def reference(base: Path, file: Path) -> dict[str, str]:
    """What a reference in `file` to the base in folder `base` holds."""
    return {"fingerprint": read_index(base)["fingerprint"], "base": os.path.relpath(base, file.parent)}


def opened(source: str | Path) -> str | Path:
    """The folder that a reference names; anything else as it is."""
    file = Path(source)
    if file.suffix != ".json" or not file.is_file():
        return source
    try:
        found = json.loads(file.read_text())
        folder = Path(os.path.normpath(file.parent / found["base"]))
    except (ValueError, KeyError, TypeError):
        raise FusetuneError(f"{file}: expected a reference to a base; `kedro run --pipelines pretrain`.") from None
    check(
        (folder / INDEX).is_file(),
        f"{file}: the base {folder} is not there. `dvc pull`, or `kedro run --pipelines pretrain`.",
    )
    return folder


def find_base(bases: Path, fingerprint: str, modalities: Sequence[str], use_trunk: bool) -> Path:
    """The base whose weights and preprocessing of these modalities have this fingerprint.

    Raises:
        FusetuneError: there is none; it lists what there is.
    """
    there = list(_indices(bases))
    for folder, index in there:
        towers = index["towers"]
        if all(name in towers for name in modalities):
            parts = {name: towers[name]["fingerprint"] for name in sorted(modalities)}
            if use_trunk and index["trunk"]:
                parts["trunk"] = index["trunk_fingerprint"]
            if digest(parts) == fingerprint:
                return folder
    known = ", ".join(folder.name[:12] for folder, _ in there) or "none"
    raise FusetuneError(
        f"{bases}: no base whose {', '.join(modalities)} have the fingerprint {fingerprint[:12]}, on which the adapter "
        f"was trained. There are {known}. `dvc pull`, or run `pretrain` with the settings of that experiment."
    )


def made_before(bases: Path, recipe: str) -> Path | None:
    """The base that was made from this recipe, if it is still there."""
    try:
        folder = bases / (bases / RECIPES / recipe).read_text().strip()
    except OSError:
        return None
    return folder if (folder / INDEX).is_file() else None


def remember_recipe(bases: Path, recipe: str, base: Path) -> None:
    """The next experiment with the same settings and data takes this base and makes none."""
    file = bases / RECIPES / recipe
    file.parent.mkdir(parents=True, exist_ok=True)
    half = scratch(file)
    half.write_text(f"{base.name}\n")
    half.replace(file)


def read_index(folder: Path) -> dict[str, Any]:
    """`backbone.json` of a base; raises FusetuneError for one of another format."""
    index = json.loads((folder / INDEX).read_text())
    found = index.get("format")
    check(
        found == FORMAT,
        f"{folder / INDEX}: format {found}, this version reads {FORMAT}. Run `kedro run --pipelines pretrain`.",
    )
    return index


def _indices(bases: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(bases.glob(f"*/{INDEX}")):
        try:
            yield file.parent, read_index(file.parent)
        except (FusetuneError, ValueError):
            continue  # of an older version: nothing that is asked for
