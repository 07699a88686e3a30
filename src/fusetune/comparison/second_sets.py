"""How the methods of a comparison do on second sets; see `manifest.second_sets`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.bank.artifact import Artifact
from fusetune.comparison.record import Compared
from fusetune.comparison.statistics import interval
from fusetune.features.extraction import Progress
from fusetune.features.index import CacheSettings
from fusetune.features.storage import Store
from fusetune.runs.second_sets import SecondRows, evaluate_on
from fusetune.training.evaluation import EvaluationSettings

Elsewhere = Mapping[str, Mapping[str, Mapping[str, Any]]]  # set -> variant -> numbers


def on_second_sets(
    found: Sequence[Compared],
    sets: Sequence[SecondRows],
    backbone: Backbone,
    base: Path,
    store: Store,
    cache: CacheSettings,
    evaluation: EvaluationSettings,
    device: torch.device,
    progress: Progress = lambda *_: None,
    tell: Callable[[str, str, Mapping[str, Any]], None] = lambda *_: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each set and variant: mean over seeds, interval, deviation, each seed's value, and the rows.

    Args:
        backbone: of `base`, that all adapters are put on in turn.
        tell: called with set, variant and numbers as they come.
    """
    elsewhere: dict[str, dict[str, dict[str, Any]]] = {rows.name: {} for rows in sets}
    for one in (one for one in found if one.compared and one.cells):
        results: dict[str, list[Any]] = {rows.name: [] for rows in sets}
        for _, cell in sorted(one.cells.items()):
            artifact = Artifact.from_pretrained(cell.adapter)
            model = artifact.onto(backbone, base)
            try:
                for rows in sets:
                    results[rows.name].append(
                        evaluate_on(artifact, model, rows, store, cache, evaluation, device, progress)
                    )
            finally:
                model.detach()
        for rows in sets:
            several = results[rows.name]
            matrix = np.stack([result.scores for result in several]).astype(float)
            low, high = interval(matrix, several[0].groups, evaluation.confidence, evaluation.seed)
            by_seed = matrix.mean(1)
            elsewhere[rows.name][one.name] = {
                "mean": float(matrix.mean()),
                "low": low,
                "high": high,
                "deviation": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
                "by_seed": by_seed.tolist(),
                "rows": several[0].rows,
                "rows_left_out": several[0].left_out,
                "rows_too_long": several[0].too_long,
                "set_aside": rows.set_aside,
            }
            tell(rows.name, one.name, elsewhere[rows.name][one.name])
    return elsewhere


def told(elsewhere: Elsewhere, rows: Mapping[str, Mapping[str, Any]], confidence: float) -> list[str]:
    """A sentence a set: how the winner does there, and who does best.

    Args:
        rows: of the summary, the winner first.
    """
    sentences = []
    winner = next(iter(rows))
    for name, own in elsewhere.items():
        here, best = own[winner], max(own, key=lambda variant: own[variant]["mean"])
        text = (
            f"On '{name}' ({here['rows']} rows) {winner} has {here['mean']:.3f} ({confidence:.0%} CI {here['low']:.3f} "
            f"to {here['high']:.3f}), {100 * (here['mean'] - rows[winner]['mean']):+.1f} points to the test split"
        )
        if best != winner:
            text += f"; the highest mean there is that of {best}, {own[best]['mean']:.3f}"
        sentences.append(text + ".")
    return sentences
