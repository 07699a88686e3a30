"""Node functions of `rollout`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.predict.nodes import PredictSettings, adapter_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutPipelineSettings:
    """
    Attributes:
        adapter: NAME@ALIAS or NAME/VERSION of a registered model, or an adapter's folder; None: the champion of this
            experiment.
        batch_size: episodes that are answered at once.
        device: auto, cpu, cuda or cuda:N.
    """

    adapter: str | None = None
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.batch_size > 0, f"rollout.batch_size: expected at least 1, found {self.batch_size}.")


def roll_out(
    bases: Path, rollout: Mapping[str, Any], register: Mapping[str, Any], evaluate: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """What became of the episodes of `evaluate.rollouts`, and strips of some of them."""
    from fusetune.bank.artifact import Artifact
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.pipelines.tracking import describe, log_dict, log_figures, log_metrics
    from fusetune.report.figures import Figures
    from fusetune.report.rollout_figure import strips
    from fusetune.runs.rollouts import rolled_out, success
    from fusetune.training.evaluation import EvaluationSettings
    from fusetune.worlds.world import SUCCESS

    settings = build(RolloutPipelineSettings, rollout, "rollout")
    judged = build(EvaluationSettings, evaluate, "evaluate")
    check(judged.rollouts.world is not None, "evaluate.rollouts.world: expected the name of a world to act in.")
    reference, folder = adapter_of(PredictSettings(adapter=settings.adapter), register)
    artifact = Artifact.from_pretrained(folder)
    model, device = artifact.build(artifact.base_in(bases)), pick_device(settings.device)
    found = rolled_out(
        model, artifact.data().modalities, judged.rollouts, judged.confidence, settings.batch_size, device
    )
    assert found is not None  # there is a world
    logger.info("%s: %s", reference, success(found.numbers))
    told = {"adapter": reference, "world": judged.rollouts.world, **found.numbers[""], "shifts": {
        name: one for name, one in found.numbers.items() if name
    }}  # fmt: skip
    describe(f"{found.numbers[''][SUCCESS]:.0%} {reference}, rolled out", f"{reference}: {success(found.numbers)}")
    log_dict(told, "rolled_out.json")
    log_metrics(found.flat())
    title = f"{reference} in its world"
    log_figures(figures := Figures({"rollouts": lambda: strips(found.strips, found.numbers, title)}))
    return told, figures


def _outside(inputs: Mapping[str, Any]) -> list[str]:
    """The adapter, which no catalog knows."""
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.conf_source import project_root
    from fusetune.pipelines.hashing import content_hash

    use_tracking(project_root())
    named = inputs["params:rollout"].get("adapter")
    reference, folder = adapter_of(PredictSettings(adapter=named), inputs["params:register"])
    return [reference, content_hash(folder)]


roll_out.outside = _outside  # type: ignore[attr-defined]
