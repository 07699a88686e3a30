"""An artifact: a trained adapter as a folder that names the base it belongs to.

adapter_config.json         plan, task and labels, modalities, streams, base, metrics' names
adapter_model.safetensors   the trained tensors, nothing else
README.md                   the card
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusetune import __version__
from fusetune.adapters.adapter import Stream
from fusetune.adapters.trained import CONFIG, WEIGHTS, self_contained
from fusetune.backbones.backbone import Backbone
from fusetune.config import build, to_plain
from fusetune.errors import FusetuneError
from fusetune.plan import AdaptedModel, Plan
from fusetune.training.experiment import DataSettings, load_backbone, make_task

FORMAT = 1
CARD = "README.md"


@dataclass(frozen=True)
class Artifact:
    """What `save_pretrained` writes and `from_pretrained` reads.

    Attributes:
        config: JSON-ready; see `describe`.
        tensors: trained parameters by name in `AdaptedModel`.
        card: Markdown.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    card: str = ""

    @classmethod
    def of(cls, model: AdaptedModel, data: DataSettings, method: str, card: str) -> "Artifact":
        """The artifact of a trained and folded model; call it before the backbone is used for anything else."""
        tensors = {name: p.detach().cpu().contiguous().clone() for name, p in model.kept().items()}
        config = {
            "format": FORMAT,
            "fusetune_version": __version__,
            "method": method,
            "plan": self_contained(to_plain(model.plan)),
            "data": to_plain(data),
            "task_state": model.task.state(),
            "streams": to_plain(model.streams),
            "kept_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "base_parameters": model.base_count(),
        }
        return cls(config, tensors, card)

    def with_base(self, fingerprint: str) -> "Artifact":
        """The same artifact, bound to the base that it was trained on."""
        return Artifact({**self.config, "base_fingerprint": fingerprint}, self.tensors, self.card)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(to_plain(self.config), indent=2) + "\n")
        save_file(dict(self.tensors), folder / WEIGHTS)
        (folder / CARD).write_text(self.card)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Artifact":
        """Raises FusetuneError for a folder that is none, of a newer format, or with a broken weights file."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise FusetuneError(f"{folder}: expected an adapter's folder with {CONFIG} in it.")
        try:
            config = json.loads((folder / CONFIG).read_text())
        except ValueError as error:
            raise FusetuneError(
                f"{folder / CONFIG}: no JSON ({error}). Restore the file, e.g. by `dvc pull`."
            ) from None
        if config.get("format") != FORMAT:
            raise FusetuneError(
                f"{folder / CONFIG}: format {config.get('format')}, this version reads {FORMAT}. Update fusetune."
            )
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise FusetuneError(
                f"{folder / WEIGHTS}: can't be read ({error}). Restore the file, e.g. by `dvc pull`."
            ) from None
        card = folder / CARD
        return cls(config, tensors, card.read_text() if card.is_file() else "")

    def data(self) -> DataSettings:
        return build(DataSettings, self.config["data"], "adapter_config.data")

    def build(self, base: Path) -> AdaptedModel:
        """The trained model on a fresh backbone from `base`.

        Raises:
            FusetuneError: the base is not the one that the adapter was trained on, or tensors are missing, too many,
                or of another shape.
        """
        data = self.data()
        backbone = load_backbone(base, data)
        check_base(backbone, data, self.config["base_fingerprint"], base)
        task = make_task(data.task)
        task.restore(self.config["task_state"])
        streams = {name: build(Stream, s, f"streams.{name}") for name, s in self.config["streams"].items()}
        plan = build(Plan, self.config["plan"], "adapter_config.plan")
        model = AdaptedModel(backbone, plan, task, streams, self.config["method"])
        model.fold()
        wanted = model.kept()
        for name in sorted(set(wanted) ^ set(self.tensors)):
            state = "is missing" if name in wanted else "belongs to no part of the plan"
            raise FusetuneError(f"{WEIGHTS}: tensor '{name}' {state}. The file is not from this adapter_config.json.")
        with torch.no_grad():
            for name, parameter in wanted.items():
                if parameter.shape != self.tensors[name].shape:
                    raise FusetuneError(
                        f"{WEIGHTS}: tensor '{name}' has shape {tuple(self.tensors[name].shape)}, the plan says "
                        f"{tuple(parameter.shape)}."
                    )
                parameter.copy_(self.tensors[name])
        model.set_epoch(model.stages()[-1])  # gradual unfreezing is over
        return model.eval()


def check_base(backbone: Backbone, data: DataSettings, expected: str, base: str | Path) -> None:
    """Raise FusetuneError unless the backbone's weights are the very ones of `expected`."""
    found = backbone.fingerprint(list(data.modalities))
    if found != expected:
        raise FusetuneError(
            f"base '{base}': its fingerprint is {found[:12]}, but the adapter was trained on {expected[:12]}. "
            "Give the base that it was trained on (FUSETUNE_BASE, or `dvc checkout`), or train again."
        )
