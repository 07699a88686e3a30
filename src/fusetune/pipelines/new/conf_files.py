"""An experiment's files, with their comments, from what was guessed of its data."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fusetune.manifest.guessing import Guess

BASES = {  # by kind, where to begin: README, 'Which base'
    "text": "sentence-transformers/all-MiniLM-L6-v2",
    "image": "facebook/dinov2-small",
    "audio": "openai/whisper-base",
    "video": "MCG-NJU/videomae-base",
    "vector": "features",
    "sequence": "features",
}
SPEAKS = "llava-hf/llava-1.5-7b-hf"
KINDS = "image, text, audio, video, sequence, vector; `optional: true` where a sample may be without it"
WAIT = 2.0  # seconds for the hub to answer


def conf_files(name: str, table: Path, rows: int, found: Guess, bases: Mapping[str, str]) -> dict[str, str]:
    """The text of each file by its name.

    Args:
        bases: source of the frozen encoder, by modality.
    """
    speaks = found.task["name"] == "generation"
    files = {
        "globals.yml": _yaml({"experiment": name}),
        "parameters_ingest.yml": _ingest(table, found),
        "parameters_data.yml": _data(found, rows, speaks),
        "parameters_backbone.yml": _backbone(found, bases, speaks),
    }
    return {file: text for file, text in files.items() if text}


def modality_name(column: str) -> str:
    """A column's name as that of a stream: letters, digits and underscores."""
    return re.sub(r"\W", "_", column)


def bases_of(found: Guess) -> tuple[dict[str, str], bool]:
    """A frozen encoder for each modality, and whether the hub's could not be had: then a small one is fitted here."""
    wanted = {modality_name(column): BASES[kind] for column, kind in found.modalities.items()}
    away = {name for name, source in wanted.items() if "/" in source and not _at_hand(source)}
    missing = bool(away) and not _hub_answers()
    return {name: "align" if missing and name in away else source for name, source in wanted.items()}, missing


def _ingest(table: Path, found: Guess) -> str:
    settings: dict[str, Any] = {"file": str(table), **found.parts}
    ingest: dict[str, Any] = {"reader": "manifest", "settings": settings}
    if "split" not in found.parts:
        ingest["split"] = {"train": 0.7, "val": 0.15, "test": 0.15, "seed": 0}
        if found.stratify:
            ingest["split"]["stratify"] = found.task["label"]
    text = _yaml({"ingest": ingest})
    if "group_id" in found.parts:
        text = text.replace(
            f"group_id: {found.parts['group_id']}\n",
            f"group_id: {found.parts['group_id']} # what must not stand in two splits\n",
        )
    else:
        text = text.replace(
            "  settings:\n", "  settings: # group_id: <column>, if rows of one group must not stand in two splits\n"
        )
    return text


def _data(found: Guess, rows: int, speaks: bool) -> str:
    modalities = {}
    for column, kind in found.modalities.items():
        name = modality_name(column)
        modalities[name] = {"kind": kind} | ({"column": column} if column != name else {})
        if column in found.roots:
            modalities[name]["root"] = found.roots[column]
    data = {"modalities": modalities, "task": found.task, "use_trunk": speaks}
    text = _yaml({"data": data}).replace("  modalities:\n", f"  modalities: # {KINDS}\n", 1)
    least = max(1, min(50, rows // 20))
    return text + f"validate:\n  min_rows_per_split: {least}\n"


def _backbone(found: Guess, bases: Mapping[str, str], speaks: bool) -> str:
    if speaks:
        return f"backbone: # answers in words need a model that speaks: README, 'Which base'\n  source: {SPEAKS}\n"
    kinds = {modality_name(column): kind for column, kind in found.modalities.items()}
    lines = ["backbone: # of each modality: a hub id or a folder; README, 'Which base'", "  towers:"]
    for name, source in bases.items():
        better = f" # fitted here without labels; better: {BASES[kinds[name]]}, or a folder with such files"
        lines.append(f"    {name}: {{source: {source}}}{better if source == 'align' else ''}")
    return "\n".join(lines) + "\n"


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _at_hand(source: str) -> bool:
    """Whether a hub's model lies in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json"), str)


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), WAIT):
            return True
    except OSError:
        return False
