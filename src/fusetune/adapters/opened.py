"""Parameters of the base's blocks that are trained where they are: biases, norms.

BitFit: Ben Zaken, Goldberg and Ravfogel, ACL 2022, arXiv 2106.10199: all bias terms, nothing else.
LayerNorm tuning: Zhao et al., "Tuning LayerNorm in Attention", ICLR 2024, arXiv 2312.11420: scales and shifts of norms.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.parts import name_in


@dataclass(frozen=True)
class OpenedConfig:
    """Nothing to set: the placement says which blocks."""


class OpenedParameters(BlockAdapter):
    """Opens what `picks` of each module in the chosen blocks; gradually unfrozen, it stays closed until its epoch."""

    Config = OpenedConfig
    changes_weights = True

    def __init__(self, config: OpenedConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self._opened: dict[str, nn.Parameter] = {}
        for block in blocks:
            for module in block.module.modules():
                for name, parameter in self.picks(module).items():
                    self._opened[f"{name_in(stack, module)}.{name}"] = parameter

    @abstractmethod
    def picks(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """The module's own parameters to open, by their names in it."""

    def attach(self) -> None:
        for parameter in self._opened.values():
            parameter.requires_grad_(True)

    def set_active(self, active: bool) -> None:
        super().set_active(active)
        for parameter in self._opened.values():
            parameter.requires_grad_(active)

    def detach(self) -> None:
        for parameter in self._opened.values():
            parameter.requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        return list(self._opened.values())

    def claims(self) -> list[str]:
        return list(self._opened)

    def delta(self) -> Mapping[str, Tensor]:
        return {}  # it trains the base's parameters themselves


class BitFit(OpenedParameters):
    """Every bias in the chosen blocks."""

    def picks(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        bias = getattr(module, "bias", None)
        return {"bias": bias} if isinstance(bias, nn.Parameter) else {}


class LNTuning(OpenedParameters):
    """Scale and shift of every LayerNorm or RMSNorm in the chosen blocks."""

    def picks(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        is_norm = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
        return dict(module.named_parameters(recurse=False)) if is_norm else {}
