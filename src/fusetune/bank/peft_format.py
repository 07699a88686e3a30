"""LoRA as Hugging Face `peft` writes and reads it: a folder for each tower (or trunk) that is changed.

    PeftModel.from_pretrained(model, folder / "peft" / "text")

opens the change of the text tower on the very model of `transformers` that the tower holds, or on a tower of our own.
Of a model that sees and speaks there is one folder, `model`, which opens on the whole of it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

FOLDER, WHOLE = "peft", "model"
# backbone.towers.text.model.encoder.layers.0.self_attn.q_proj.lora_A.lora.weight; `model` is the one of transformers
_NAME = re.compile(
    r"backbone\.(?:towers\.)?(?P<stack>[^.]+)\.(?:model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])\.lora\.weight"
)


def write_peft_folders(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Beside an artifact's files, if all that its plan places in the backbone is LoRA of one scale."""
    placed = [p for p in config["plan"]["placements"] if p["where"] != "head"]
    alphas = {p["config"].get("alpha") for p in placed}
    if not placed or len(alphas) > 1 or any(p["adapter"] != "lora" for p in placed):
        return
    from peft import LoraConfig

    sources = config.get("base_sources", {})
    by_stack: dict[str, dict[str, Tensor]] = {}
    places: Mapping[str, str] = config.get("modules_of_whole", {})
    for name, tensor in tensors.items():
        own = next((prefix for prefix in places if name.startswith(prefix)), None)
        name = name if own is None else f"backbone.{WHOLE}.model.{places[own]}{name[len(own) :]}"
        if found := _NAME.fullmatch(name):
            key = f"base_model.model.{found['layer']}.lora_{found['side']}.weight"
            by_stack.setdefault(found["stack"], {})[key] = tensor
    alpha = alphas.pop()
    for stack, changes in by_stack.items():
        ranks = {key.split(".", 2)[2].rsplit(".", 2)[0]: len(t) for key, t in changes.items() if "lora_A" in key}
        first = next(iter(ranks.values()))
        written = LoraConfig(
            r=first,
            lora_alpha=alpha or first,
            target_modules=sorted(ranks),
            rank_pattern={f"^{layer}$": rank for layer, rank in ranks.items() if rank != first},
            alpha_pattern={f"^{layer}$": rank for layer, rank in ranks.items() if rank != first and alpha is None},
            base_model_name_or_path=sources.get(stack)
            or (next(iter(sources.values()), None) if stack == WHOLE else None),
            inference_mode=True,
        )
        target = folder / FOLDER / stack
        written.save_pretrained(str(target))
        save_file(changes, target / "adapter_model.safetensors", metadata={"format": "pt"})
