"""A LoRA that Hugging Face `peft` has saved, as the beginning of one of ours."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from fusetune.adapters.trained import CONFIG, WEIGHTS, read_folder
from fusetune.config import check

logger = logging.getLogger(__name__)
A = ".lora_A.weight"


class PeftFolder:
    """Reads config and factors; raises FusetuneError for a folder that is none, or is no plain LoRA."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        expected = f"{CONFIG} and {WEIGHTS}, as peft's save_pretrained writes them"
        self.config, tensors = read_folder(folder, expected, "Give such a folder as `pretrained`.")
        kind = self.config.get("peft_type")
        plain = not (self.config.get("use_dora") or self.config.get("bias", "none") != "none")
        check(
            kind == "LORA" and plain,
            f"pretrained '{folder}': expected a LoRA without DoRA or biases, found {kind}, use_dora "
            f"{self.config.get('use_dora')}, bias {self.config.get('bias')}.",
        )
        self.tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}

    def factors(self, layers: Mapping[str, Any], adapter: str) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of each of `layers`, peft's own by path in the model; a path may be longer here or there, in front.

        Raises:
            FusetuneError: a layer has none in the folder, or rank or scale differ.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in layers.items():
            match = self._saved_as(name)
            a, b = (self.tensors[f"{match}.lora_{side}.weight"] for side in "AB")
            own = [tuple(getattr(layer, f"lora_{side}")[adapter].weight.shape) for side in "AB"]
            theirs = [tuple(a.shape), tuple(b.shape)]
            check(own == theirs, f"pretrained '{self.folder}': '{name}' has shapes {theirs}, here {own}. Set the rank.")
            scale = self._scale(match, len(a))
            check(
                abs(layer.scaling[adapter] - scale) < 1e-6,
                f"pretrained '{self.folder}': '{name}' is scaled by {scale:g}, here by {layer.scaling[adapter]:g}. Set "
                f"alpha: {scale * len(a):g}.",
            )
            found[name] = (a.clone(), b.clone())
        return found

    def check_all_taken(self, layers: Iterable[str], unread: Sequence[str] = ()) -> None:
        """Raise FusetuneError for a layer that it changes and nobody takes.

        Args:
            unread: paths of blocks whose states nobody reads: a change there does nothing, which is said.
        """
        rest = set(self.saved) - {self._saved_as(name) for name in layers}
        idle = {name for name in rest if any(f"{name}.".startswith(f"{path}.") for path in unread)}
        if idle:
            logger.info("%s: left out is what nobody reads: %s", self.folder, ", ".join(sorted(idle)))
        rest -= idle
        check(not rest, f"pretrained '{self.folder}': it also changes {', '.join(sorted(rest)[:4])}; choose them too.")

    @cached_property
    def saved(self) -> list[str]:
        """The layers that it changes."""
        return sorted(name.removesuffix(A) for name in self.tensors if name.endswith(A))

    def _saved_as(self, name: str) -> str:
        """What it calls a layer; raises FusetuneError where it has none, or several."""
        exact = [saved for saved in self.saved if saved == name]
        match = exact or [s for s in self.saved if f".{name}".endswith(f".{s}") or f".{s}".endswith(f".{name}")]
        check(
            len(match) == 1,
            f"pretrained '{self.folder}': no factors for layer '{name}'. It changes {len(self.saved)} layers, e.g. "
            f"{', '.join(self.saved[:4])}; choose blocks and targets that are these.",
        )
        return match[0]

    def _scale(self, layer: str, rank: int) -> float:
        alphas = self.config.get("alpha_pattern") or {}
        own = [value for pattern, value in alphas.items() if layer.endswith(pattern.strip("^$"))]
        alpha = own[0] if own else self.config["lora_alpha"]
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
