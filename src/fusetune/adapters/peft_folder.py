"""A LoRA that Hugging Face `peft` has saved, as the beginning of one of ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusetune.adapters.trained import CONFIG, WEIGHTS, read_folder
from fusetune.config import check
from fusetune.errors import FusetuneError


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
        """(A, B) of each of `layers`, peft's own by path in a stack; a path may be longer here or there, in front.

        Raises:
            FusetuneError: a layer has none in the folder, one in the folder is not among the layers, or rank or scale
                differ.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        saved = {name.removesuffix(".lora_A.weight") for name in self.tensors if name.endswith(".lora_A.weight")}
        rest = set(saved)
        for name, layer in layers.items():
            match = [s for s in saved if f".{name}".endswith(f".{s}") or f".{s}".endswith(f".{name}")]
            if len(match) != 1:
                raise FusetuneError(
                    f"pretrained '{self.folder}': no factors for layer '{name}'. It changes {len(saved)} layers, e.g. "
                    f"{', '.join(sorted(saved)[:4])}; choose blocks and targets that are these."
                )
            rest -= set(match)
            a, b = (self.tensors[f"{match[0]}.lora_{side}.weight"] for side in "AB")
            own = [tuple(getattr(layer, f"lora_{side}")[adapter].weight.shape) for side in "AB"]
            theirs = [tuple(a.shape), tuple(b.shape)]
            check(own == theirs, f"pretrained '{self.folder}': '{name}' has shapes {theirs}, here {own}. Set the rank.")
            scale = self._scale(match[0], len(a))
            check(
                abs(layer.scaling[adapter] - scale) < 1e-6,
                f"pretrained '{self.folder}': '{name}' is scaled by {scale:g}, here by {layer.scaling[adapter]:g}. Set "
                f"alpha: {scale * len(a):g}.",
            )
            found[name] = (a.clone(), b.clone())
        check(not rest, f"pretrained '{self.folder}': it also changes {', '.join(sorted(rest)[:4])}; choose them too.")
        return found

    def _scale(self, layer: str, rank: int) -> float:
        alphas = self.config.get("alpha_pattern") or {}
        own = [value for pattern, value in alphas.items() if layer.endswith(pattern.strip("^$"))]
        alpha = own[0] if own else self.config["lora_alpha"]
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
