"""A trained adapter folded into the whole of its base, as `transformers` opens it: nothing of ours is needed then."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource, save_processor
from fusetune.bank.artifact import Artifact
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.speaking import spoken
from fusetune.training.data import answering

logger = logging.getLogger(__name__)
REPORT, CARD = "fusetune_export.json", "README.md"
ROUNDING = {torch.float32: 1e-4}  # of logits, against the largest
IN_HALF = 0.1  # there the changed weights are rounded too
AT_ONCE = 8  # samples that are answered together


@dataclass
class Export:
    """A model that answers in words, with an adapter folded into its weights.

    Args:
        samples: by modality, decoded; on these the written model has to answer as the adapter does.
    """

    artifact: Artifact
    base: str | Path
    samples: Mapping[str, Sequence[Any]]

    def save_pretrained(self, folder: Path) -> dict[str, Any]:
        """Write model, processor and chat template, open them again, and compare; returns what was found.

        Raises:
            FusetuneError: an adapter that is more than a change of weights, a base that is no whole model, or a written
                model that answers otherwise.
        """
        model = self.artifact.build(self.base)
        origin, method = model.backbone.origin, self.artifact.config["method"]
        check(
            model.task.speaks and origin is not None,
            f"export: '{method}' answers by a head of its own, which no model of `transformers` has a place for. An "
            "adapter of the task `generation` can be exported; LoRA of towers lies in the adapter's folder peft/.",
        )
        assert origin is not None
        check(
            not origin.quantise,
            f"export: the base's weights are in {origin.quantise}; what is folded into them would be rounded away. "
            "Serve the adapter by the registry or the bank, or open its folder peft/model on the base.",
        )
        expected = _heard(model, self.samples)
        composite = model.backbone.trunk.composite
        dtype = next(composite.model.parameters()).dtype
        try:
            model.merge()
        except TypeError as error:
            raise FusetuneError(
                f"export: '{method}': {error} LoRA and its kin, biases, norms and opened blocks can be folded in; "
                "serve the adapter by the registry or the bank, or train one of those."
            ) from None
        composite.model.save_pretrained(folder)
        save_processor(origin, composite.family, folder)
        name = type(composite.model).__name__
        del model, composite  # one of them in memory at a time
        found = self._reopened(replace(origin, source=str(folder), revision=None))
        report = self._compared(expected, found, dtype)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (folder / CARD).write_text(_card(report, name))
        logger.info(
            "export: %s in %s; of %d samples %d have the same answer, logits differ by %.1e of the largest",
            method, self.base, report["samples"], report["same_answers"], report["logits_differ_by"],
        )  # fmt: skip
        return report

    def _reopened(self, source: CompositeSource) -> AdaptedModel:
        """What was written, by itself."""
        data = self.artifact.data()
        kinds = {name: modality.kind for name, modality in data.modalities.items()}
        backbone = answering(Backbone.from_composite(source, kinds).part(list(kinds), data.use_trunk), data)
        return self.artifact.with_plan({"placements": [{"where": "head", "adapter": "linear"}]}).placed(backbone).eval()

    def _compared(self, expected: tuple[Tensor, Tensor], model: AdaptedModel, dtype: torch.dtype) -> dict[str, Any]:
        answers, logits = _heard(model, self.samples)
        written = {p.dtype for p in model.backbone.trunk.composite.model.parameters()}
        check(written == {dtype}, f"export: the base is in {dtype}, what was written in {written}.")
        off = float((logits - expected[1]).abs().max() / expected[1].abs().max())
        same = int((answers == expected[0]).all(1).sum())
        most = ROUNDING.get(dtype, IN_HALF)
        check(
            off <= most,
            f"export: the written model's logits are {off:.1e} of the largest off on {len(answers)} samples, at most "
            f"{most:.0e} is rounding; {same} have the same answer. Nothing was exported.",
        )
        return {
            "method": self.artifact.config["method"],
            "base": self.artifact.config["base_sources"],
            "base_fingerprint": self.artifact.config["base_fingerprint"],
            "prompt": str(model.backbone.origin.prompt or "the chat template"),  # type: ignore[union-attr]
            "dtype": str(dtype).removeprefix("torch."),
            "samples": len(answers),
            "same_answers": same,
            "logits_differ_by": off,
            "versions": self.artifact.config["versions"],
        }


@torch.no_grad()
def _heard(model: AdaptedModel, samples: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
    """What a model says of samples, (rows, tokens) ids, and the logits behind their prompts, (rows, vocabulary)."""
    task: Any = model.task
    said, logits = [], []
    for start in range(0, len(next(iter(samples.values()))), AT_ONCE):
        streams = model.backbone.prepare({name: column[start : start + AT_ONCE] for name, column in samples.items()})
        ground = Frontier(dict.fromkeys(streams, 0))
        said.append(spoken(model, streams, ground, task.decoding()))
        logits.append(model(streams, ground)[:, 0].float())
    return torch.cat(said), torch.cat(logits)


def _card(report: Mapping[str, Any], name: str) -> str:
    base = ", ".join(sorted(set(report["base"].values()))) or report["base_fingerprint"]
    return (
        f"# {name}, adapted by {report['method']}\n\nThe base {base} with the adapter folded into its weights, "
        f"{report['dtype']}. Prompt: {report['prompt']}. On {report['samples']} samples {report['same_answers']} "
        f"answers are those of the adapter; logits differ by at most {report['logits_differ_by']:.1e} of the largest."
        f"\n\n```python\nfrom transformers import AutoProcessor, {name}\n\nmodel = {name}.from_pretrained(folder)\n"
        "processor = AutoProcessor.from_pretrained(folder)\n```\n"
    )
