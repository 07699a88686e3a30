"""One method, one file; a class, its frozen config beside it, and where it may be placed.

- ``towers``, ``trunk``: inside or behind chosen blocks.
- ``connector``: between the towers and what comes behind them, or from one tower into another.
- ``junction``: where the streams meet; streams in, streams out.
- ``head``: pooled streams to the task's outputs.
- ``backbone``: opens whole parts of the backbone itself to training.
"""

from fusetune.registry import Registry

adapters = Registry(
    "adapters",
    {
        # of whole streams
        "wander": "fusetune.adapters.wander:Wander",
        "fusion_gate": "fusetune.adapters.fusion_gate:FusionGate",
        "lmf": "fusetune.adapters.lmf:LMF",
        "cross_modal": "fusetune.adapters.cross_modal:CrossModal",
        "perceiver_resampler": "fusetune.adapters.connectors:PerceiverResampler",
        "new_connector": "fusetune.adapters.new_connector:NewConnector",
        "linear_connector": "fusetune.adapters.connectors:LinearConnector",
        "stack": "fusetune.adapters.compositions:Stack",
        "parallel": "fusetune.adapters.compositions:Parallel",
        "average": "fusetune.adapters.compositions:Average",
        "adapter_fusion": "fusetune.adapters.compositions:AdapterFusion",
        "mixture_of_adapters": "fusetune.adapters.compositions:MixtureOfAdapters",
        # inside blocks
        "lora": "fusetune.adapters.peft_tuners:LoRA",
        "dora": "fusetune.adapters.peft_tuners:DoRA",
        "adalora": "fusetune.adapters.adalora:AdaLoRA",
        "vera": "fusetune.adapters.peft_tuners:VeRA",
        "ia3": "fusetune.adapters.peft_tuners:IA3",
        "language": "fusetune.adapters.language:LanguageAdapter",
        "bottleneck": "fusetune.adapters.bottleneck:BottleneckAdapter",
        "prefix": "fusetune.adapters.prefix:PrefixAdapter",
        "modality_prefix": "fusetune.adapters.prefix:ModalityPrefixAdapter",
        "prompt_tuning": "fusetune.adapters.prompts:PromptTuning",
        "deep_prompts": "fusetune.adapters.prompts:DeepPrompts",
        "vl_adapter": "fusetune.adapters.vl_adapter:VLAdapter",
        "unipelt": "fusetune.adapters.unipelt:UniPELT",
        "bitfit": "fusetune.adapters.opened:BitFit",
        "ln_tuning": "fusetune.adapters.opened:LNTuning",
        # heads, and the backbone itself
        "linear": "fusetune.adapters.heads:LinearHead",
        "mlp": "fusetune.adapters.heads:MLPHead",
        "unfreeze": "fusetune.adapters.unfreeze:Unfreeze",
    },
)
