"""Language blocks in few bits: their linear layers hold weights of 8 or 4 bits, which no adapter changes.

    int8    a byte a weight, a scale a row, by `torchao`
    int4    4 bits a weight, a scale for each 32, by `torchao`
    nf4     4 bits on the scale of normal numbers, scales in 8 bits, by `bitsandbytes`: the base of QLoRA (Dettmers et
            al., NeurIPS 2023, arXiv 2305.14314)

Encoder, connector, embeddings, norms and head stay as they are.
"""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from fusetune.config import check
from fusetune.errors import FusetuneError

KINDS = ("int8", "int4", "nf4")
GROUP = 32  # weights with one scale
INSTALL = 'Run pip install "fusetune[quantised]".'
logger = logging.getLogger(__name__)


def check_kind(kind: str | None) -> None:
    """Raise FusetuneError unless there is such a way."""
    check(kind is None or kind in KINDS, f"backbone.quantise: expected one of {', '.join(KINDS)}, found '{kind}'.")


def quantise(blocks: nn.Module, kind: str) -> None:
    """Change the linear layers of language blocks in place, and say what it saves.

    Raises:
        FusetuneError: the package that does it isn't installed, or a layer doesn't fit.
    """
    check_kind(kind)
    before = sum(_bytes(p) for p in blocks.parameters())
    layers = dict(_linears(blocks))
    if kind == "nf4":
        _nf4(blocks, layers)
    else:
        _by_torchao(blocks, layers, kind)
    for name in layers:
        blocks.get_submodule(name).__dict__["quantised"] = kind
    after = sum(_bytes(p) for p in blocks.parameters())
    logger.info("language blocks in %s: %.1f MB instead of %.1f MB", kind, after / 1e6, before / 1e6)


def quantised(module: nn.Module) -> str | None:
    """The way in which a layer of a module is quantised; None: none is."""
    return next((part.__dict__["quantised"] for part in module.modules() if "quantised" in part.__dict__), None)


def _linears(blocks: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, module) for name, module in blocks.named_modules() if isinstance(module, nn.Linear))


def _by_torchao(blocks: nn.Module, layers: dict[str, nn.Linear], kind: str) -> None:
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it tells of each kernel for GPUs that it can't load
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup
    except ImportError:
        raise FusetuneError(f"backbone.quantise: {kind} needs torchao. {INSTALL}") from None
    if kind == "int4":
        odd = [f"{name} ({layer.in_features})" for name, layer in layers.items() if layer.in_features % GROUP]
        check(
            not odd, f"backbone.quantise: int4 takes layers that read a multiple of {GROUP}, found {odd[:1]}. Try int8."
        )
    config = Int8WeightOnlyConfig() if kind == "int8" else IntxWeightOnlyConfig(getattr(torch, "int4"), PerGroup(GROUP))  # noqa: B009 (typeshed lacks it)
    quantize_(blocks, config)
    for layer in layers.values():
        layer.weight.requires_grad_(False)


def _nf4(blocks: nn.Module, layers: dict[str, nn.Linear]) -> None:
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise FusetuneError(f"backbone.quantise: nf4 needs bitsandbytes. {INSTALL}") from None
    for name, layer in layers.items():
        device, dtype = layer.weight.device, layer.weight.dtype
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        made.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
        )
        made.bias = layer.bias
        # on some CPUs bitsandbytes would repack a weight at its first pass without gradients, into a form that carries
        # no gradient afterwards (and takes widths of 64 alone): adapters below would learn by residual paths only
        made.support_avx512bf16_for_cpu = False
        blocks.set_submodule(name, made.to(device).eval())


def _bytes(parameter: nn.Parameter) -> int:
    """Of a parameter, however it is held."""
    inside = getattr(parameter, "tensor_data_names", None)
    if inside is None:
        scales = getattr(parameter, "quant_state", None)
        more = scales.absmax.numel() * scales.absmax.element_size() if scales is not None else 0
        return parameter.numel() * parameter.element_size() + more
    return sum(t.numel() * t.element_size() for name in inside if (t := getattr(parameter, name)) is not None)
