"""Tiny random composite models of the real `transformers` classes, and batches with rows of unequal length.

The default initialisation of some families (BLIP's vision, 1e-10) and Mllama's closed gates would let no picture change
any output; they get values that do.
"""

from typing import Any

import torch
import transformers as tf

VOCABULARY, IMAGE, VIDEO, VISION_START, PAD, BOS, EOS = 100, 90, 91, 92, 0, 1, 2
SPECIAL = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
LM = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    **SPECIAL,
)
VISION = dict(
    initializer_range=0.2,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)
BERT = dict(
    initializer_range=0.2,
    vocab_size=VOCABULARY,
    hidden_size=48,
    encoder_hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
    sep_token_id=EOS,
    **SPECIAL,
)
QFORMER = {**BERT, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "cross_attention_frequency": 1}
QWEN = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=93)
ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 2, 2]))
SOUND = dict(
    num_mel_bins=8,
    d_model=32,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=48,
    max_source_positions=20,
)


def llava():
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION), text_config=tf.LlamaConfig(**LM), image_token_id=IMAGE
    )
    return tf.LlavaForConditionalGeneration(config), 16


def llava_next():
    """A picture is cut into four and seen whole: 16 places, and four lines of four tiles' with one behind each line."""
    vision, text = tf.CLIPVisionConfig(**VISION), tf.LlamaConfig(**LM)
    config = tf.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_grid_pinpoints=[[64, 64]]
    )
    return tf.LlavaNextForConditionalGeneration(config), 16 + 8 * 9


def paligemma(text: Any = None):
    text = text or tf.GemmaConfig(**LM, head_dim=12)
    vision = tf.SiglipVisionConfig(**VISION, projection_dim=48)
    config = tf.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, projection_dim=48)
    return tf.PaliGemmaForConditionalGeneration(config), 16


def paligemma2():
    return paligemma(tf.Gemma2Config(**LM, head_dim=12, sliding_window=8))


def qwen2_vl():
    vision = dict(depth=3, embed_dim=32, hidden_size=48, num_heads=4, mlp_ratio=2, patch_size=8)
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(vision_config=vision, text_config=LM | ROPE, **QWEN)), 4


def qwen2_5_vl():
    vision = dict(depth=3, hidden_size=32, out_hidden_size=48, num_heads=4, intermediate_size=48, patch_size=8)
    vision |= dict(window_size=32, fullatt_block_indexes=[1])
    config = tf.Qwen2_5_VLConfig(vision_config=vision, text_config=LM | ROPE, **QWEN)
    return tf.Qwen2_5_VLForConditionalGeneration(config), 4


def qwen3_vl():
    vision = dict(depth=3, hidden_size=32, out_hidden_size=48, num_heads=4, intermediate_size=48, patch_size=8)
    vision |= dict(deepstack_visual_indexes=[0, 1], num_position_embeddings=16)
    config = tf.Qwen3VLConfig(vision_config=vision, text_config=LM | ROPE | dict(head_dim=12), **QWEN)
    return tf.Qwen3VLForConditionalGeneration(config), 4


def _smol(name: str):
    options = dict(vision_config=VISION, text_config=tf.LlamaConfig(**LM), image_token_id=IMAGE, scale_factor=2)
    config = getattr(tf, f"{name}Config")(**options, pad_token_id=PAD)
    return getattr(tf, f"{name}ForConditionalGeneration")(config), 4


def idefics3():
    return _smol("Idefics3")


def smolvlm():
    return _smol("SmolVLM")


def _queries(name: str, text: Any):
    options = dict(vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=5)
    config = getattr(tf, f"{name}Config")(**options, image_token_index=IMAGE, image_token_id=IMAGE)
    return getattr(tf, f"{name}ForConditionalGeneration")(config), 5


def _opt():
    sizes = dict(vocab_size=VOCABULARY, hidden_size=48, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4)
    return tf.OPTConfig(**sizes, word_embed_proj_dim=48, max_position_embeddings=256, **SPECIAL)


def blip2():
    return _queries("Blip2", _opt())


def instructblip():
    return _queries("InstructBlip", _opt())


def t5():
    sizes = dict(vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=64, num_layers=4, num_decoder_layers=4, num_heads=4)
    return tf.T5Config(**sizes, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)


def blip2_t5():
    return _queries("Blip2", t5())


def blip():
    return tf.BlipForConditionalGeneration(tf.BlipConfig(vision_config=VISION, text_config=BERT)), 0


def blip_vqa():
    vision, text = VISION | dict(hidden_size=48), BERT | dict(encoder_hidden_size=48)
    return tf.BlipForQuestionAnswering(tf.BlipConfig(vision_config=vision, text_config=text)), 0


def mllama():
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_global_layers=1, attention_heads=4)
    vision |= dict(image_size=32, patch_size=8, vision_output_dim=64, max_num_tiles=1)
    vision |= dict(supported_aspect_ratios=[[1, 1]], intermediate_layers_indices=[1])
    text = MllamaTextConfig(**LM, cross_attention_layers=[1, 3])
    config = tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return opened(tf.MllamaForConditionalGeneration(config)), 1


def opened(model: Any):
    """With gates that let pictures through."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name.rpartition(".")[2] and parameter.numel() == 1:
                parameter.fill_(0.7)
    return model


def whisper():
    decoder = dict(decoder_layers=4, decoder_attention_heads=4, decoder_ffn_dim=48, max_target_positions=64)
    config = tf.WhisperConfig(
        vocab_size=VOCABULARY, **SOUND, **decoder, **SPECIAL, decoder_start_token_id=BOS, suppress_tokens=None,
        begin_suppress_tokens=None, init_std=0.2,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config), 0


def qwen2_audio():
    text = tf.Qwen2Config(**LM)
    return tf.Qwen2AudioForConditionalGeneration(
        tf.Qwen2AudioConfig(audio_config=SOUND, text_config=text, audio_token_index=IMAGE)
    ), 10


FAMILIES = {
    maker.__name__: maker
    for maker in (
        llava, llava_next, paligemma, paligemma2, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, blip2,
        instructblip, blip2_t5, blip, blip_vqa, mllama, whisper, qwen2_audio,
    )
}  # fmt: skip


def made(name: str) -> tuple[Any, int]:
    """A model, and the places that a picture or sound takes in its text."""
    torch.manual_seed(0)
    model, places = FAMILIES[name]()
    return model.eval(), places


def batch(name: str, places: int, side: str = "right", lengths=(5, 9, 7), media: int = 7) -> dict[str, Any]:
    """Rows of a picture (or sound) and words, padded on a side; the last words of each are its labels.

    Args:
        media: seed of the pictures.
    """
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in lengths:
        words = torch.randint(5, 80, (length,), generator=generator)
        seen = (
            [VISION_START, *[IMAGE] * places, VISION_START + 1] if "qwen" in name and "vl" in name else [IMAGE] * places
        )
        rows.append(torch.tensor([BOS, *seen, *words.tolist(), EOS]))
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        at = slice(ids.shape[1] - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
        answer = slice(ids.shape[1] - 4, None) if side == "left" else slice(len(row) - 4, len(row))
        labels[i, answer] = ids[i, answer]
    inputs: dict[str, Any] = dict(input_ids=ids, attention_mask=mask, labels=labels)
    draw = torch.Generator().manual_seed(media)
    count = len(rows)
    pictures = torch.randn(count, 3, 32, 32, generator=draw)
    short = torch.randint(5, 80, (count, 4), generator=generator)
    if name in ("whisper", "qwen2_audio"):
        sounds = torch.randn(count, 8, 40, generator=draw)
        if name == "whisper":
            return dict(input_features=sounds, decoder_input_ids=ids, decoder_attention_mask=mask, labels=labels)
        return inputs | dict(input_features=sounds, feature_attention_mask=torch.ones(count, 40, dtype=torch.long))
    if name.startswith("qwen"):
        patches = torch.randn(count * 16, 3 * 2 * 8 * 8, generator=draw)
        grid = torch.tensor([[1, 4, 4]] * count)
        return inputs | dict(pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=(ids == IMAGE).int())
    if name in ("idefics3", "smolvlm"):
        return inputs | dict(pixel_values=pictures[:, None])
    if name == "llava_next":
        sizes = torch.tensor([[64, 64]] * count)
        return inputs | dict(pixel_values=torch.randn(count, 5, 3, 32, 32, generator=draw), image_sizes=sizes)
    inputs["pixel_values"] = pictures
    if name == "mllama":
        one = torch.ones(count, 1, dtype=torch.long)
        inputs |= dict(pixel_values=pictures[:, None, None], aspect_ratio_ids=one, aspect_ratio_mask=one[..., None],
                       cross_attention_mask=torch.ones(*ids.shape, 1, 1, dtype=torch.long))  # fmt: skip
    if name.startswith("paligemma"):  # the question is read in both directions, the answer in one
        inputs["token_type_ids"] = (labels != -100).long()
    if name == "instructblip":
        inputs |= dict(qformer_input_ids=short, qformer_attention_mask=torch.ones_like(short))
    if name == "blip_vqa":
        inputs |= dict(decoder_input_ids=short, labels=short.clone())
    if name == "blip2_t5":
        inputs["labels"] = short
    return inputs
