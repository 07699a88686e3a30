"""From trained adapters to task vectors, and back to adapters of the same tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.adapters import adapters
from fusetune.adapters.peft_tuners import LoRA, PeftTuner
from fusetune.bank.artifact import Artifact
from fusetune.bank.merging import MergeSettings, low_rank_factors, merge_vectors
from fusetune.config import build, check, to_plain
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.data import load_backbone

ROUNDING = 1e-5  # of a product of factors in float32, against its largest singular value


@dataclass(frozen=True)
class Merged:
    """
    Attributes:
        artifacts: one for each of the given: the merged change under its own head, for its own task.
        error: the part of the merged change that its low-rank factors lack (0 to 1, a ratio of Frobenius norms).
    """

    artifacts: dict[str, Artifact]
    error: float

    def save_pretrained(self, folder: Path) -> None:
        """Each in a folder of its name."""
        for name, artifact in self.artifacts.items():
            artifact.save_pretrained(folder / name)


def merge(given: Mapping[str, Artifact], weights: Sequence[float], base: str | Path, settings: MergeSettings) -> Merged:
    """Merge adapters of one base by their task vectors; each task keeps its head.

    Raises:
        FusetuneError: an adapter that is more than a change of weights (a fusion of streams, a bottleneck, a prefix),
            or two that change different places.
    """
    models = {name: artifact.build(base) for name, artifact in given.items()}
    vectors = {}
    for name, model in models.items():
        try:
            vectors[name] = model.changes()
        except TypeError as error:
            raise FusetuneError(
                f"merge: adapter '{name}': {error} LoRA and its kin, biases, norms and opened blocks can be "
                "merged; for the rest there is the method `adapter_fusion`."
            ) from None
    merged = merge_vectors(vectors, weights, settings)
    matrices = {place: merged[place] for model in models.values() for place in _low_rank_places(model)}
    ranks = [int(torch.linalg.matrix_rank(matrix.double(), rtol=ROUNDING)) for matrix in matrices.values()]
    rank = settings.rank or max(ranks, default=0) or 1
    factors = {place: low_rank_factors(matrix, rank) for place, matrix in matrices.items()}
    told = f"Merged by {settings.how} from {', '.join(given)}. The metrics above are those before merging."
    made = {name: _with_change(given[name], models[name], merged, factors, rank, base, told) for name in given}
    lost = sum(float((b @ a - matrices[place]).square().sum()) for place, (a, b) in factors.items())
    whole = sum(float(matrix.square().sum()) for matrix in matrices.values())
    return Merged(made, (lost / whole) ** 0.5 if whole else 0.0)


def _with_change(
    artifact: Artifact,
    trained: AdaptedModel,
    change: Mapping[str, Tensor],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    rank: int,
    base: str | Path,
    told: str,
) -> Artifact:
    """The artifact's task and head on another change of the base."""
    sites: dict[int, list[str]] = {}
    for placed in trained.placed:
        sites.setdefault(placed.number, []).append(placed.site)
    plan = to_plain(artifact.config["plan"])
    plan["placements"] = [_as_lora(p, sites.get(i, []), rank) for i, p in enumerate(plan["placements"])]
    model = artifact.with_plan(plan).untrained(load_backbone(base, artifact.data()), base)
    with torch.no_grad():
        model.head.load_state_dict(trained.head.state_dict())
        for placed in model.placed:
            if isinstance(placed.adapter, LoRA):
                places = {layer: f"{placed.site}.{layer}.weight" for layer in placed.adapter.layers}
                biased = [p for n in places if (p := f"{placed.site}.{n}.bias") in change and change[p].any()]
                check(
                    not biased,
                    f"merge: '{''.join(biased[:1])}' is changed too (IA3 scales it); low-rank factors can't hold that.",
                )
                placed.adapter.set_factors({n: factors[place] for n, place in places.items()})
        for place, parameter in model.opened().items():
            parameter.add_(change[place])
    card = f"{artifact.card}\n{told}\n"
    return Artifact.of(model, artifact.data(), artifact.config["method"], card, artifact.frontier)


def _as_lora(placement: Mapping[str, Any], sites: Sequence[str], rank: int) -> dict[str, Any]:
    """The placement with plain LoRA of one rank in the place of whatever changes linear layers."""
    cls = adapters.get(placement["adapter"])
    if not issubclass(cls, PeftTuner):
        return dict(placement)
    targets = list(build(cls.Config, placement["config"], "config").targets)
    blocks = placement["blocks"] if isinstance(placement["blocks"], Mapping) else {"take": placement["blocks"]}
    blocks = {key: value for key, value in blocks.items() if key != "adaptive_rank"}
    ranks = dict.fromkeys(sites, rank)
    return {**placement, "adapter": "lora", "config": {"targets": targets}, "blocks": {**blocks, "ranks": ranks}}


def _low_rank_places(model: AdaptedModel) -> list[str]:
    """The weights whose merged change low-rank factors will hold."""
    return [
        f"{placed.site}.{layer}.weight"
        for placed in model.placed
        if isinstance(placed.adapter, PeftTuner)
        for layer in placed.adapter.layers
    ]
