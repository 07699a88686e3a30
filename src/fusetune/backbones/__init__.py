"""Frozen towers, one a modality, and the trunk in which their streams meet."""

from fusetune.registry import Registry

towers = Registry(
    "towers",
    {
        "image": "fusetune.backbones.item_towers:ImageTower",
        "text": "fusetune.backbones.text_tower:TextTower",
        "audio": "fusetune.backbones.audio_towers:AudioTower",
        "video": "fusetune.backbones.item_towers:VideoTower",
        "sequence": "fusetune.backbones.feature_towers:SequenceTower",
        "vector": "fusetune.backbones.feature_towers:VectorTower",
        "aligned_image": "fusetune.backbones.aligned_towers:AlignedImage",
        "aligned_audio": "fusetune.backbones.aligned_towers:AlignedAudio",
        "aligned_sequence": "fusetune.backbones.aligned_towers:AlignedSequence",
        "aligned_text": "fusetune.backbones.aligned_towers:AlignedText",
        "features_sequence": "fusetune.backbones.given_features:FeaturesSequence",
        "features_vector": "fusetune.backbones.given_features:FeaturesVector",
        "aligned_vector": "fusetune.backbones.aligned_towers:AlignedVector",
    },
)
