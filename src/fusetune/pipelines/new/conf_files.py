"""An experiment's files, with their comments, from what was guessed of its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.backbones.first_choice import FIRST, SPEAKS
from fusetune.manifest.guessing import Guess, modality_name

KINDS = "image, text, audio, video, sequence, vector; `optional: true` where a sample may be without it"


def conf_files(name: str, table: Path, rows: int, found: Guess, bases: Mapping[str, str]) -> dict[str, str]:
    """The text of each file by its name.

    Args:
        bases: source of the frozen encoder, by modality.
    """
    speaks = found.task["name"] == "generation"
    files = {
        "globals.yml": _globals(name),
        "parameters_ingest.yml": _ingest(table, found),
        "parameters_data.yml": _data(found, rows, speaks),
        "parameters_backbone.yml": _backbone(found, bases, speaks),
    }
    return {file: text for file, text in files.items() if text}


def _globals(name: str) -> str:
    own = {"store": f"data/04_feature/{name}", "bases": f"data/06_models/{name}/bases"}
    why = f"# folders of its own, so that DVC can keep them: `kedro run --pipelines dvc --env {name}`"
    return f"experiment: {name}\n{why}\n{_yaml(own)}"


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
        better = f" # fitted here without labels; better: {FIRST[kinds[name]]}, or a folder with such files"
        lines.append(f"    {name}: {{source: {source}}}{better if source == 'align' else ''}")
    return "\n".join(lines) + "\n"


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
