"""What validation found, as JSON: every failed check with count and examples, and how the sound rows are made up."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fusetune.manifest.checks import BY_BASE, SEVERITIES, Failure, ValidationSettings
from fusetune.manifest.schema import SPLITS, Modality

EXAMPLES = 5
# what a histogram shows of a kind, and its unit
SIZES = {
    "text": ("length", "characters"),
    "image": ("largest", "pixels, the longer side"),
    "audio": ("seconds", "seconds"),
    "video": ("largest", "pixels, the longer side"),
    "sequence": ("length", "tokens"),
}


def make_report(
    facts: pd.DataFrame,
    kept: np.ndarray,
    failures: list[Failure],
    labels: list[str],
    modalities: Mapping[str, Modality],
    settings: ValidationSettings,
) -> dict[str, Any]:
    """JSON-ready.

    Args:
        facts: of all rows.
        kept: which rows are sound.
    """
    grouped: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        grouped.setdefault((failure.check, failure.column), []).append(failure)
    checks = [
        {
            "check": name,
            "severity": settings.level(name),
            "column": column,
            "rows": len({f.row for f in some}),
            "examples": [
                {"row": f.row, "sample_id": str(facts["sample_id"][f.row]) if f.row >= 0 else None, "value": f.value}
                for f in some[:EXAMPLES]
            ],
        }
        for (name, column), some in sorted(grouped.items())
    ]
    aside = int((~kept).sum())
    stopped = [
        f"{c['check']} ({c['column']})" if c["column"] else c["check"] for c in checks if c["severity"] == "error"
    ]
    if aside > settings.max_quarantined * len(facts):
        stopped.append(f"max_quarantined: {aside} of {len(facts)} rows, more than {settings.max_quarantined:.1%}")
    sound = facts[kept]
    return {
        "rows": len(facts),
        "sound_rows": len(sound),
        "quarantined_rows": aside,
        "stopped_by": stopped,
        "rows_per_split": {split: int((sound["split"] == split).sum()) for split in SPLITS},
        "labels": {name: _counts(sound, name) for name in labels if name != "group_id"},
        "missing": {name: int((~sound[f"{name}: present"]).sum()) for name in modalities} if len(facts) else {},
        "sizes": {name: _histogram(sound, name, modality.kind) for name, modality in modalities.items() if len(sound)},
        "checked": sorted(name for name in SEVERITIES if settings.level(name) != "off" and name not in BY_BASE),
        "checks": checks,
    }


def _counts(sound: pd.DataFrame, label: str) -> dict[str, dict[str, int]]:
    """Rows by label and split."""
    counts = sound.groupby([sound[label].astype(str), "split"]).size().unstack(fill_value=0)
    return {str(name): {s: int(row.get(s, 0)) for s in SPLITS} for name, row in counts.iterrows()}


def _histogram(sound: pd.DataFrame, name: str, kind: str) -> dict[str, Any]:
    fact, unit = SIZES.get(kind, ("", ""))
    if f"{name}: {fact}" not in sound:
        return {}
    values = sound[f"{name}: {fact}"].dropna().astype(float)
    counts, edges = np.histogram(values, bins=min(30, max(1, values.nunique())))
    return {"unit": unit, "counts": counts.tolist(), "edges": edges.tolist()}
