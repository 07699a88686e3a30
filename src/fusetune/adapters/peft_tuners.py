"""Changes of linear layers, by Hugging Face `peft`: LoRA, DoRA, VeRA, IA3; `adalora` is in a file of its own.

With y = W x + b of a chosen layer, W: d_out x d_in, trained parts named:

    lora      y + (alpha / r) B A x                            A, B        Hu et al., ICLR 2022, arXiv 2106.09685
    dora      m (W + (alpha / r) B A) / ||.||_row x + b         m, A, B     Liu et al., ICML 2024, arXiv 2402.09353
    vera      y + diag(b') B diag(d) A x, A and B random       b', d       Kopiczko et al., ICLR 2024, arXiv 2310.11454
    ia3       l * y; of the MLP's last layer W (l * x) + b      l           Liu et al., NeurIPS 2022, arXiv 2205.05638

All of them begin as the identity and fold into W. `fusion_lora` is `lora` on the cross-attention of the trunk. The
layers are peft's own, so what holds of them there holds here; their parameters stand in the tower, beside the layers
that they change.
"""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fusetune.adapters.adapter import Adapter, Block, BlockAdapter, Stack
from fusetune.adapters.parts import has_parts, linear, name_in
from fusetune.adapters.peft_folder import PeftFolder
from fusetune.config import check


@dataclass(frozen=True)
class LoRAConfig:
    """
    Attributes:
        rank: r.
        alpha: the change is scaled by alpha / r; None: alpha = r.
        dropout: of what the change reads.
        targets: roles or paths of linear layers in a block.
        pretrained: a folder of a LoRA that `peft` has saved: training begins with its factors. Rank, alpha and targets
            have to be those of the folder.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    pretrained: str | None = None

    def __post_init__(self) -> None:
        check(self.rank > 0, f"rank: expected at least 1, found {self.rank}.")
        check(0 <= self.dropout < 1, f"dropout: expected a share from 0 to below 1, found {self.dropout}.")
        check(bool(self.targets), "targets: expected at least one role or path, found none.")


class PeftTuner(BlockAdapter):
    """One of peft's tuners on linear layers of the chosen blocks of one stack."""

    tuner: ClassVar[str]  # its name in `peft`
    changes_weights = True

    def __init__(self, config: Any, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self.config, self._stack = config, stack
        self._layers: dict[str, Any] = {}  # the chosen layers, then peft's in their place, by path in the stack
        self._ranks: dict[str, int] = {}
        for block in blocks:
            for target in config.targets:
                if has_parts(stack, block, [target]):
                    name = name_in(stack, linear(stack, block, target))
                    self._layers[name] = linear(stack, block, target)
                    self._ranks[name] = block.rank or int(getattr(config, "rank", 0))
        self.missing = frozenset(t for t in config.targets if not any(has_parts(stack, b, [t]) for b in blocks))
        self._tuner: list[Any] = []  # peft's, which holds the whole stack: not to be registered as a part of ours
        self._trained: list[nn.Parameter] = []

    @abstractmethod
    def peft_config(self) -> Any:
        """The config of peft, without the names of layers."""

    def attach(self) -> None:
        if self._tuner:
            for name, layer in self._layers.items():
                self._stack.module.set_submodule(name, layer)
        elif self._layers:
            self._inject()

    def _inject(self) -> None:
        import peft

        stack = self._stack.module
        before = {parameter: parameter.requires_grad for parameter in stack.parameters()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified to not save vera_A")  # drawn again from the seed
            config = self.peft_config()
        config.target_modules = set(self._layers)
        self._tuner = [getattr(peft, self.tuner)(stack, config, type(self).__name__.lower())]
        stack.__dict__.pop("peft_config", None)  # peft would take the next placement for a second adapter of this one
        for parameter, trained in before.items():
            parameter.requires_grad_(trained)  # peft freezes what other placements train
        self._layers = {name: stack.get_submodule(name) for name in self._layers}
        self._trained = [p for p in stack.parameters() if p not in before and p.requires_grad]
        for parameter in self._trained:  # of a base in half precision: small steps would be lost
            parameter.data = parameter.data.float()

    def detach(self) -> None:
        if self._tuner:
            for name, layer in self._layers.items():
                self._stack.module.set_submodule(name, layer.get_base_layer())

    def trained(self) -> list[nn.Parameter]:
        return self._trained

    @property
    def layers(self) -> list[str]:
        """Paths in the stack of the layers that are changed."""
        return list(self._layers)

    def claims(self) -> list[str]:
        return [f"{name}.weight" for name in self._layers]

    def set_active(self, active: bool) -> None:
        super().set_active(active)
        for layer in self._layers.values():
            layer.enable_adapters(active)

    def train(self, mode: bool = True) -> "PeftTuner":
        for layer in self._layers.values():
            for name, module in layer.named_children():
                if name != "base_layer":  # frozen: it stays in eval mode
                    module.train(mode)
        return super().train(mode)

    def delta(self) -> Mapping[str, Tensor]:
        factors = self.low_rank()
        if factors is not None:
            return {f"{name}.weight": (b @ a).detach() for name, (a, b) in factors.items()}
        changes = {}
        for name, layer in self._layers.items():
            merged = copy.deepcopy(layer)
            merged.merge(safe_merge=True)
            base, new = layer.get_base_layer(), merged.get_base_layer()
            for key, parameter in base.named_parameters():
                change = (new.get_parameter(key) - parameter).detach()
                if key == "weight" or change.any():  # a bias, by IA3 alone
                    changes[f"{name}.{key}"] = change
        return changes


class LoRA(PeftTuner):
    """Low-rank changes of linear layers."""

    Config = LoRAConfig
    rank_key = "rank"
    tuner = "LoraModel"
    weight_decomposed = False

    def peft_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha or self.config.rank,
            lora_dropout=self.config.dropout,
            use_dora=self.weight_decomposed,
            rank_pattern={f"^{name}$": rank for name, rank in self._ranks.items()},
            alpha_pattern={f"^{name}$": self.config.alpha or rank for name, rank in self._ranks.items()},
        )

    def __init__(self, config: Any, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self._begin = PeftFolder(config.pretrained) if config.pretrained else None  # until its factors are taken over

    def _inject(self) -> None:
        super()._inject()
        if self._begin:
            whole = {self._in_whole(name): layer for name, layer in self._layers.items()}
            found, self._begin = self._begin.factors(whole, "lora"), None
            self.set_factors({name: found[self._in_whole(name)] for name in self._layers})

    @classmethod
    def check_together(cls, several: Sequence[Adapter]) -> None:
        """Raise FusetuneError for a layer that a `pretrained` folder changes and none of these takes."""
        taken: dict[str, list[LoRA]] = {}
        for one in several:
            if isinstance(one, LoRA) and one._begin:
                taken.setdefault(one._begin.folder, []).append(one)
        for own in taken.values():
            layers = [one._in_whole(name) for one in own for name in one._layers]
            own[0]._begin.check_all_taken(layers, [p for one in own for p in one._unread()])  # type: ignore[union-attr]

    def _unread(self) -> Sequence[str]:
        """Paths of blocks whose states nobody reads."""
        return getattr(self._stack.module, "unread", ())

    def _in_whole(self, name: str) -> str:
        """A layer's path in the model that its stack is a part of, where it is one."""
        places: Mapping[str, str] = getattr(self._stack.module, "modules_of_whole", dict)()
        return next((f"{path}{name[len(own) :]}" for own, path in places.items() if name.startswith(f"{own}.")), name)

    def set_factors(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take over (A, B) of every layer, by path in the stack."""
        for name, layer in self._layers.items():
            layer.lora_A["lora"].weight.data, layer.lora_B["lora"].weight.data = factors[name]

    def low_rank(self) -> Mapping[str, tuple[Tensor, Tensor]] | None:
        return {
            name: (layer.lora_A["lora"].weight, layer.lora_B["lora"].weight * layer.scaling["lora"])
            for name, layer in self._layers.items()
        }


class DoRA(LoRA):
    """LoRA of the directions of the rows of W, beside trained lengths."""

    weight_decomposed = True

    def low_rank(self) -> None:
        return None  # the lengths of the rows come in too


@dataclass(frozen=True)
class VeRAConfig:
    """
    Attributes:
        rank: of the random, shared, frozen projections.
        initial: of the vector d.
        dropout: of what the change reads.
        seed: of the projections; they are drawn again from it, not stored.
        targets: roles or paths of linear layers in a block.
    """

    rank: int = 64
    initial: float = 0.1
    dropout: float = 0.0
    seed: int = 0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        check(self.rank > 0, f"rank: expected at least 1, found {self.rank}.")


class VeRA(PeftTuner):
    """Two trained vectors per layer around random projections that all layers of a stack share."""

    Config = VeRAConfig
    tuner = "VeraModel"

    def peft_config(self) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            r=self.config.rank,
            d_initial=self.config.initial,
            vera_dropout=self.config.dropout,
            projection_prng_key=self.config.seed,
            save_projection=False,
        )

    def low_rank(self) -> Mapping[str, tuple[Tensor, Tensor]] | None:
        changes = {}
        for name, layer in self._layers.items():
            down, up = layer.vera_A["vera"], layer.vera_B["vera"]  # of the largest layer: each takes its part
            d, b = layer.vera_lambda_d["vera"], layer.vera_lambda_b["vera"]
            changes[name] = (d[:, None] * down[:, : layer.in_features], b[:, None] * up[: layer.out_features])
        return changes


@dataclass(frozen=True)
class IA3Config:
    """
    Attributes:
        scaled_outputs: roles or paths of linear layers in a block whose outputs are multiplied.
        scaled_inputs: the same, whose inputs are.
    """

    scaled_outputs: tuple[str, ...] = ("key", "value")
    scaled_inputs: tuple[str, ...] = ("mlp_output",)

    @property
    def targets(self) -> tuple[str, ...]:
        return (*self.scaled_outputs, *self.scaled_inputs)


class IA3(PeftTuner):
    """One trained factor for each key, value and inner MLP feature."""

    Config = IA3Config
    tuner = "IA3Model"

    def __init__(self, config: IA3Config, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        inputs = [linear(stack, b, r) for b in blocks for r in config.scaled_inputs if has_parts(stack, b, [r])]
        self._inputs = [name for name, layer in self._layers.items() if any(layer is other for other in inputs)]

    def peft_config(self) -> Any:
        from peft import IA3Config as PeftConfig

        return PeftConfig(target_modules=list(self._layers), feedforward_modules=self._inputs)
