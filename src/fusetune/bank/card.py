"""The model card: what a stranger needs to know of an adapter."""

from collections.abc import Mapping
from typing import Any

from fusetune.config import to_plain
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.data import DataSettings


def card(method: str, metrics: Mapping[str, Any], data: DataSettings, model: AdaptedModel) -> str:
    """Markdown with the metadata block that model hubs read."""
    test, name = metrics["test"], metrics["metric"]
    task = to_plain(data.task)
    streams = "\n".join(f"| {m} | {s.width} | {s.max_tokens} |" for m, s in model.streams.items())
    alone = "\n".join(f"| {m} alone | {value:.3f} | |" for m, value in metrics["unimodal"].items())
    if "before_training" in metrics:
        alone += f"| before any training | {metrics['before_training']:.3f} | |"
    plain = "\n".join(f"| plain: {m} | {value:.3f} | |" for m, value in metrics["plain"].items())
    share = 100 * metrics["trainable_parameters"] / max(metrics["base_parameters"], 1)
    return f"""---
library_name: fusetune
tags: [adapter, multimodal, {method}]
---

# {method}: an adapter for `{task.get("name")}`

Trained by fusetune on {metrics["train_samples"]:,} samples, seed {metrics["seed"]}, best epoch {metrics["best_epoch"]}.
{metrics["trainable_parameters"]:,} trainable parameters, {share:.2f}% of the frozen base's
{metrics["base_parameters"]:,}.

| on {metrics["test_samples"]:,} test samples | {name} | 95% interval (bootstrap) |
| --- | --- | --- |
| **{method}** | **{test[name]:.3f}** | {test[name + "_low"]:.3f} to {test[name + "_high"]:.3f} |
{alone}
{plain}

| modality | width at the junction | most tokens |
| --- | --- | --- |
{streams}

Intended for the task and the kind of data above, on the base whose fingerprint `adapter_config.json` names; loading it
on another base is refused.

```python
from fusetune.bank.artifact import Artifact

model = Artifact.from_pretrained("this/folder").build("the/base")
```

A registered version of it is served by `mlflow models serve -m models:/NAME/VERSION --env-manager local`, in an
environment that has this package: it is on no index, so MLflow can't install it into one of its own.
"""
