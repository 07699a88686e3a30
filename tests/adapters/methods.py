"""One row a method: the one table that every test of conformance goes through."""

from dataclasses import dataclass


def placement(where, adapter, blocks="all", **config):
    return {"where": where, "adapter": adapter, "config": config, "blocks": blocks}


LEFT = {"modalities": ["left"]}
SMALL = placement("junction", "wander", bottleneck_dim=4)
GATE = placement("junction", "fusion_gate", bottleneck_dim=4)


def member(adapter, **config):
    return {"adapter": adapter, "config": config}


MEMBERS = [member("wander", bottleneck_dim=4), member("cross_modal", bottleneck_dim=4, heads=2)]


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        placements: without the head.
        identity: begins as the backbone with a linear head.
        merges: folds into the base's weights.
    """

    placements: list
    identity: bool = True
    merges: bool = False


METHODS = {
    "wander": Row([SMALL]),
    "wander in the trunk": Row([placement("trunk", "wander", bottleneck_dim=4)]),
    "fusion_gate": Row([GATE]),
    "lmf": Row([placement("junction", "lmf", rank=2)]),
    "cross_modal": Row([placement("trunk", "cross_modal", bottleneck_dim=8, heads=2)]),
    "cross_modal at the junction": Row([placement("junction", "cross_modal", bottleneck_dim=8, heads=2)]),
    "vl_adapter": Row([placement("trunk", "vl_adapter", bottleneck_dim=4, behind=["mlp", "cross_attention"])]),
    "vl_adapter, one stream": Row([placement("trunk", "vl_adapter", bottleneck_dim=4, streams=["left"])]),
    "vl_adapter, single": Row([placement("trunk", "vl_adapter", bottleneck_dim=4, sharing="streams")]),
    "vl_adapter, compacter": Row([placement("trunk", "vl_adapter", bottleneck_dim=4, sharing="compacter")]),
    "fusion_lora": Row([placement("trunk", "lora", rank=2, targets=["cross_query", "cross_value"])], merges=True),
    "modality_prefix": Row([placement("trunk", "modality_prefix", length=3, hidden=4)], identity=False),
    "unipelt": Row([placement("trunk", "unipelt", rank=2, bottleneck_dim=4)], identity=False),
    "unipelt in a tower": Row([placement("towers", "unipelt", LEFT, prefix_hidden=4)], identity=False),
    "lora": Row([placement("towers", "lora", rank=2)], merges=True),
    "lora on every layer": Row(
        [placement("towers", "lora", rank=2, alpha=4.0, targets=["query", "attention_output", "mlp_input", "0"])],
        merges=True,
    ),
    "dora": Row([placement("towers", "dora", rank=2)], merges=True),
    "adalora": Row([placement("towers", "adalora", rank=1, initial_rank=3, every=2)], merges=True),
    "vera": Row([placement("towers", "vera", rank=4)], merges=True),
    "ia3": Row([placement("towers", "ia3")], merges=True),
    "language": Row([placement("towers", "language", bottleneck_dim=4)]),
    "language below an adapter": Row(
        [placement("towers", "language", bottleneck_dim=3), placement("towers", "bottleneck", bottleneck_dim=4)]
    ),
    "adapter, pfeiffer": Row([placement("towers", "bottleneck", bottleneck_dim=4)]),
    "adapter, houlsby": Row([placement("towers", "bottleneck", LEFT, position="houlsby")]),
    "adapter, parallel": Row([placement("towers", "bottleneck", position="parallel", scale=2.0)]),
    "prefix": Row([placement("towers", "prefix", length=3, hidden=4)], identity=False),
    "prefix without an MLP": Row([placement("towers", "prefix", length=3, hidden=0)], identity=False),
    "deep_prompts": Row([placement("towers", "deep_prompts", length=3)], identity=False),
    "bitfit": Row([placement("towers", "bitfit")], merges=True),
    "ln_tuning": Row([placement("towers", "ln_tuning", LEFT)], merges=True),
    "perceiver_resampler": Row([placement("connector", "perceiver_resampler", queries=3, width=8, heads=2)], False),
    "perceiver_resampler at the junction": Row([placement("junction", "perceiver_resampler", queries=3, width=8)]),
    "linear_connector": Row(
        [placement("connector", "linear_connector", source="right", target="left", hidden=8)], identity=False
    ),
    "partial_finetune": Row([placement("backbone", "unfreeze", top_blocks=1)], merges=True),
    "full_finetune": Row([placement("backbone", "unfreeze")], merges=True),
    "stack": Row([placement("junction", "stack", adapters=MEMBERS)]),
    "parallel": Row([placement("junction", "parallel", adapters=MEMBERS)]),
    "average in the trunk": Row([placement("trunk", "average", adapters=MEMBERS)]),
    "mixture_of_adapters": Row([placement("junction", "mixture_of_adapters", adapters=MEMBERS * 2, top_k=2)]),
    "several at once": Row(
        [
            placement("towers", "lora", LEFT, rank=2),
            placement("towers", "bottleneck", {"modalities": ["right"]}, bottleneck_dim=4),
            placement("trunk", "vl_adapter", bottleneck_dim=4),
            placement("trunk", "lora", targets=["cross_query"]),
            SMALL,
            GATE,
        ]
    ),
    "gradual": Row([SMALL, {**placement("trunk", "bottleneck", bottleneck_dim=4), "from_epoch": 2}]),
}
