"""Tiny random encoders of the real `transformers` classes, one maker a family, and samples for each kind."""

import numpy as np
import torch
from PIL import Image

from fusetune.backbones.audio_towers import SpectrogramTower, WaveTower
from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
from fusetune.backbones.given_features import FeaturesSequence, FeaturesVector
from fusetune.backbones.item_towers import ImageTower, VideoTower
from fusetune.backbones.text_tower import TextTower
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.manifest.schema import Audio

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
SQUARE = {"height": 32, "width": 32}
PATCHES = dict(image_size=32, patch_size=16)
WAVES = dict(
    **SMALL,
    conv_dim=(16, 16),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
TEXTS = ["the first", "a much longer text of several words", None, "one"]


def tokenizer():
    return train_tokenizer(["the first a much longer text of several words one"], 50, 16)


def picture(generator: torch.Generator) -> Image.Image:
    return Image.fromarray(torch.randint(0, 255, (32, 32), generator=generator, dtype=torch.uint8).numpy())


def pictures(*counts: int):
    generator = torch.Generator().manual_seed(0)
    return [[picture(generator) for _ in range(n)] or None for n in counts]


def sounds(*lengths: int):
    rng = np.random.default_rng(0)
    return [Audio(rng.normal(0, 0.1, n).astype(np.float32), 16_000) if n else None for n in lengths]


def floats(*lengths, width):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, width, generator=generator).numpy() if n else None for n in lengths]


def vit():
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = ViTModel(ViTConfig(**SMALL, **PATCHES), add_pooling_layer=False)
    return ImageTower(model, ViTImageProcessor(size=SQUARE))


def dinov2():
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    processor = BitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    return ImageTower(Dinov2Model(Dinov2Config(**SMALL, **PATCHES, drop_path_rate=0.3)), processor)


def clip_vision():
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    return ImageTower(CLIPVisionModel(CLIPVisionConfig(**SMALL, **PATCHES)), processor)


def siglip_vision():
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    return ImageTower(SiglipVisionModel(SiglipVisionConfig(**SMALL, **PATCHES)), SiglipImageProcessor(size=SQUARE))


def convnext():
    """Not in the table: one block, entered at depth 0 and left at the last."""
    from transformers import ConvNextConfig, ConvNextImageProcessor, ConvNextModel

    config = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)
    return ImageTower(ConvNextModel(config), ConvNextImageProcessor(size={"shortest_edge": 384}))


def bert():
    from transformers import BertConfig, BertModel

    words = tokenizer()
    config = BertConfig(**SMALL, vocab_size=len(words), max_position_embeddings=16)
    return TextTower(BertModel(config, add_pooling_layer=False), words)


def minilm():
    """MiniLM's shape (sentence-transformers/all-MiniLM-L6-v2 is a BERT), with its dropout."""
    from transformers import BertConfig, BertModel

    words = tokenizer()
    small = {**SMALL, "num_hidden_layers": 6}
    config = BertConfig(**small, vocab_size=len(words), max_position_embeddings=16, hidden_dropout_prob=0.1)
    return TextTower(BertModel(config, add_pooling_layer=False), words)


def roberta():
    from transformers import RobertaConfig, RobertaModel

    words = tokenizer()
    config = RobertaConfig(**SMALL, vocab_size=len(words), max_position_embeddings=18, pad_token_id=1)
    return TextTower(RobertaModel(config, add_pooling_layer=False), words)


def xlm_roberta():
    """Multilingual: FacebookAI/xlm-roberta-base, intfloat/multilingual-e5-base."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    words = tokenizer()
    config = XLMRobertaConfig(**SMALL, vocab_size=len(words), max_position_embeddings=18, pad_token_id=1)
    return TextTower(XLMRobertaModel(config, add_pooling_layer=False), words)


def clip_text():
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
    ends = dict(eos_token_id=words.sep_token_id, bos_token_id=2)
    return TextTower(
        CLIPTextModel(CLIPTextConfig(**SMALL, vocab_size=len(words), max_position_embeddings=16, **ends)), words
    )


def siglip_text():
    from transformers import SiglipTextConfig, SiglipTextModel

    words = tokenizer()
    config = SiglipTextConfig(**SMALL, vocab_size=len(words), max_position_embeddings=16, projection_size=32)
    return TextTower(SiglipTextModel(config), words)


def distilbert():
    """Not in the table."""
    from transformers import DistilBertConfig, DistilBertModel

    words = tokenizer()
    config = DistilBertConfig(vocab_size=len(words), dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    return TextTower(DistilBertModel(config), words)


def wave(name: str, norm: str, stable: bool):
    def make():
        import transformers

        config = getattr(transformers, f"{name}Config")(**WAVES, feat_extract_norm=norm, do_stable_layer_norm=stable)
        config.mask_time_prob = config.mask_feature_prob = 0.0
        processor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
        return WaveTower(getattr(transformers, f"{name}Model")(config), processor)

    return make


def data2vec_audio():
    """Not in the table."""
    from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

    config = Data2VecAudioConfig(**{**WAVES, "num_conv_pos_embeddings": 2}, mask_time_prob=0.0, conv_pos_kernel_size=3)
    return WaveTower(Data2VecAudioModel(config), Wav2Vec2FeatureExtractor())


def whisper():
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64, max_source_positions=50,
        num_mel_bins=16, encoder_layerdrop=0.5,
    )  # fmt: skip
    return SpectrogramTower(WhisperEncoder(config), WhisperFeatureExtractor(feature_size=16, chunk_length=1))


def ast():
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(**SMALL, max_length=64, num_mel_bins=32)
    return SpectrogramTower(ASTModel(config), ASTFeatureExtractor(max_length=64, num_mel_bins=32))


def videomae():
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    processor = VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    return VideoTower(VideoMAEModel(VideoMAEConfig(**SMALL, **PATCHES, num_frames=4)), processor)


def sequence():
    return SequenceTower(FeatureTowerSettings(5, 32, 3, 2, 16)).eval()


def vector():
    return VectorTower(FeatureTowerSettings(6, 32)).eval()


def given_sequence():
    return FeaturesSequence.fitted([floats(4, 7, 0, 1, width=5)], "points").eval()


def given_vector():
    return FeaturesVector.fitted([floats(1, 1, 0, 1, width=6)], "numbers").eval()


def images():
    return pictures(2, 1, 0, 3)


def texts():
    return TEXTS


def clips():
    return pictures(4, 9, 0, 1)


def waves():
    return sounds(1600, 2310, 0, 900)


# name: maker, samples of four (the third is missing)
FAMILIES = {
    "vit": (vit, images),
    "dinov2": (dinov2, images),
    "clip_vision": (clip_vision, images),
    "siglip_vision": (siglip_vision, images),
    "bert": (bert, texts),
    "minilm": (minilm, texts),
    "roberta": (roberta, texts),
    "xlm_roberta": (xlm_roberta, texts),
    "clip_text": (clip_text, texts),
    "siglip_text": (siglip_text, texts),
    "wav2vec2": (wave("Wav2Vec2", "group", False), waves),
    "wav2vec2_large": (wave("Wav2Vec2", "layer", True), waves),
    "hubert": (wave("Hubert", "group", False), waves),
    "hubert_large": (wave("Hubert", "layer", True), waves),
    "whisper": (whisper, waves),
    "ast": (ast, waves),
    "videomae": (videomae, clips),
    "sequence": (sequence, lambda: floats(4, 7, 0, 1, width=5)),
    "vector": (vector, lambda: floats(1, 1, 0, 1, width=6)),
    "features of a sequence": (given_sequence, lambda: floats(4, 7, 0, 1, width=5)),
    "features of a vector": (given_vector, lambda: floats(1, 1, 0, 1, width=6)),
    "convnext, not in the table": (convnext, images),
    "distilbert, not in the table": (distilbert, texts),
    "data2vec_audio, not in the table": (data2vec_audio, waves),
}
