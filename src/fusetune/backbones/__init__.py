"""Frozen towers, one a modality, and the trunk in which their streams meet."""

from fusetune.registry import Registry

towers = Registry(
    "towers",
    {
        "image": "fusetune.backbones.transformers_tower:ImageTower",
        "text": "fusetune.backbones.transformers_tower:TextTower",
        "sequence": "fusetune.backbones.feature_towers:SequenceTower",
        "vector": "fusetune.backbones.feature_towers:VectorTower",
    },
)
