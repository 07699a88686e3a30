"""Tiny models that see and speak, as a hub has them: model, tokenizer, image processor, chat template."""

import composites
import torch
import transformers as tf
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

TEXTS = ["what is the grey of this picture", "which one", "is it light or dark", "user assistant :"]
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' if loop.first else '' }}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SQUARE = {"height": 32, "width": 32}
LM = {key: value for key, value in composites.LM.items() if key != "vocab_size"} | {"initializer_range": 0.2}


def tokenizer(image="<image>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", "<image>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS * 3, trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256,
        extra_special_tokens={"image_token": image},
    )  # fmt: skip


def saved_llava(folder, template=TEMPLATE, **changes):
    torch.manual_seed(0)
    words = tokenizer()
    vision = tf.CLIPVisionConfig(**composites.VISION)
    text = tf.LlamaConfig(vocab_size=len(words), **LM | changes)
    config = tf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=words.convert_tokens_to_ids("<image>")
    )
    images = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    processor = tf.LlavaProcessor(
        image_processor=images, tokenizer=words, patch_size=8, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    return _saved(tf.LlavaForConditionalGeneration(config).eval(), processor, folder)


def saved_llava_next(folder):
    torch.manual_seed(0)
    words = tokenizer()
    text = tf.LlamaConfig(vocab_size=len(words), **LM)
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**composites.VISION), text_config=text, image_grid_pinpoints=[[64, 64]],
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = tf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=[[64, 64]])
    processor = tf.LlavaNextProcessor(
        image_processor=images, tokenizer=words, patch_size=8, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return _saved(tf.LlavaNextForConditionalGeneration(config).eval(), processor, folder)


def saved_paligemma(folder):
    torch.manual_seed(0)
    words = tokenizer()
    vision = tf.SiglipVisionConfig(**composites.VISION, projection_dim=48)
    text = tf.GemmaConfig(vocab_size=len(words), head_dim=12, **LM)
    number = words.convert_tokens_to_ids("<image>")
    config = tf.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=number, projection_dim=48)
    images = tf.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image_processor=images, tokenizer=words)
    processor.tokenizer.add_bos_token = False
    return _saved(tf.PaliGemmaForConditionalGeneration(config).eval(), processor, folder)


def _saved_apart(model, images, words, folder):
    """Without a processor of all: it would want one of videos, and that torchvision."""
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    return model, images


def _qwen(maker, folder):
    torch.manual_seed(0)
    words = tokenizer()
    words.add_tokens(["<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    named = dict(
        image_token_id="<image>", vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>"
    )
    model, _ = maker()
    config = model.config
    for name, token in named.items():
        setattr(config, name, words.convert_tokens_to_ids(token))
    config.video_token_id, config.text_config.vocab_size = len(words) + 1, len(words)
    images = tf.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=64, max_pixels=32 * 32)
    return _saved_apart(type(model)(config).eval(), images, words, folder)


def saved_qwen2_vl(folder):
    return _qwen(composites.qwen2_vl, folder)


def saved_qwen2_5_vl(folder):
    return _qwen(composites.qwen2_5_vl, folder)


def saved_qwen3_vl(folder):
    return _qwen(composites.qwen3_vl, folder)


def _smol(name, folder):
    torch.manual_seed(0)
    words = tokenizer()
    marks = ["<fake_token_around_image>", "<global-img>", "<|im_start|>", "<end_of_utterance>"]
    words.add_tokens(marks, special_tokens=True)
    text = tf.LlamaConfig(vocab_size=len(words), **LM)
    number = words.convert_tokens_to_ids("<image>")
    options = dict(vision_config=composites.VISION, text_config=text, image_token_id=number, scale_factor=2)
    config = getattr(tf, f"{name}Config")(**options, pad_token_id=0)
    one = {"longest_edge": 32}
    images = getattr(tf, f"{name}ImageProcessor")(size=one, max_image_size=one)
    return _saved_apart(getattr(tf, f"{name}ForConditionalGeneration")(config).eval(), images, words, folder)


def saved_idefics3(folder):
    return _smol("Idefics3", folder)


def saved_smolvlm(folder):
    return _smol("SmolVLM", folder)


def saved_blip2(folder):
    return _saved_blip2(composites._opt(), tokenizer(), folder)


def saved_blip2_t5(folder):
    """Reads the question with the picture, and answers from that."""
    words = tokenizer()
    words.bos_token = None
    return _saved_blip2(composites.t5(), words, folder)


def saved_instructblip(folder):
    """With Vicuna's kind of language model; its connector reads the question with the picture."""
    words = tokenizer()
    return _saved_blip2(tf.LlamaConfig(vocab_size=len(words), **LM), words, folder, "InstructBlip")


def saved_instructblip_t5(folder):
    words = tokenizer()
    words.bos_token = None
    return _saved_blip2(composites.t5(), words, folder, "InstructBlip")


def _saved_blip2(text, words, folder, name="Blip2"):
    torch.manual_seed(0)
    number = words.convert_tokens_to_ids("<image>")
    text.vocab_size = len(words)
    asking = bert_words(folder / "qformer_tokenizer") if name == "InstructBlip" else None
    qformer = composites.QFORMER | ({"vocab_size": len(asking)} if asking else {})
    config = getattr(tf, f"{name}Config")(
        vision_config=composites.VISION, qformer_config=qformer, text_config=text, num_query_tokens=5,
        image_token_index=number, image_token_id=number,
    )  # fmt: skip
    processor = getattr(tf, f"{name}Processor")(
        image_processor=tf.BlipImageProcessor(size=SQUARE), tokenizer=words, num_query_tokens=5,
        **({"qformer_tokenizer": asking} if asking else {}),
    )  # fmt: skip
    model = getattr(tf, f"{name}ForConditionalGeneration")(config).eval()
    if config.text_config.model_type == "t5":  # as drawn, what is seen is a fiftieth of what is read
        model.language_projection.weight.data.mul_(50)
    return _saved(model, processor, folder)


def saved_blip(folder):
    """Writes captions: cross-attention reads the picture."""
    return _saved_blip(tf.BlipForConditionalGeneration, folder)


def saved_blip_vqa(folder):
    """Reads the question and, by cross-attention, the picture; answers from that."""
    return _saved_blip(tf.BlipForQuestionAnswering, folder, 5)


def bert_words(folder):
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = [*marks, *sorted({w for t in TEXTS for w in t.split()})]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return tf.BertTokenizer(str(folder / "vocab.txt"))


def _saved_blip(cls, folder, seed=1):
    torch.manual_seed(seed)
    words = bert_words(folder)
    text = composites.BERT | dict(vocab_size=len(words), pad_token_id=0, bos_token_id=5, eos_token_id=3, sep_token_id=3)
    vision = composites.VISION
    if cls is tf.BlipForQuestionAnswering:  # one width, as its decoder reads what its encoder gives
        vision, text = vision | dict(hidden_size=48), text | dict(encoder_hidden_size=48)
    config = tf.BlipConfig(vision_config=vision, text_config=text)
    processor = tf.BlipProcessor(image_processor=tf.BlipImageProcessor(size=SQUARE), tokenizer=words)
    return _saved(cls(config).eval(), processor, folder)


def saved_mllama(folder):
    """Reads up to four tiles of a picture by cross-attention; the word for one has no row in the head."""
    torch.manual_seed(0)
    words = tokenizer("<|image|>")
    made, _ = composites.mllama()
    vision, text = made.config.vision_config, made.config.text_config
    vision.max_num_tiles, vision.supported_aspect_ratios = (
        4,
        [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    text.vocab_size, text.initializer_range = len(words) - 1, 0.2
    config = tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=len(words) - 1)
    model = composites.opened(tf.MllamaForConditionalGeneration(config))
    images = MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    processor = tf.MllamaProcessor(
        image_processor=images, tokenizer=words, chat_template=TEMPLATE.replace("<image>", "<|image|>")
    )
    return _saved(model.eval(), processor, folder)


def saved_whisper(folder):
    """Writes what is said in a second of sound."""
    torch.manual_seed(0)
    words = tokenizer()
    decoder = dict(decoder_layers=4, decoder_attention_heads=4, decoder_ffn_dim=48, max_target_positions=128)
    config = tf.WhisperConfig(
        vocab_size=len(words), **composites.SOUND | {"max_source_positions": 50}, **decoder, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        init_std=0.2,
    )  # fmt: skip
    extractor = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=160, n_fft=400)
    processor = tf.WhisperProcessor(feature_extractor=extractor, tokenizer=words)
    return _saved(tf.WhisperForConditionalGeneration(config).eval(), processor, folder)


def saved_qwen2_audio(folder):
    """Hears up to a second of sound."""
    torch.manual_seed(0)
    words = tokenizer()
    words.add_tokens(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    sound = composites.SOUND | {"max_source_positions": 50, "initializer_range": 0.2}
    config = tf.Qwen2AudioConfig(
        audio_config=sound, text_config=tf.Qwen2Config(vocab_size=len(words), **LM),
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    extractor = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=160, n_fft=400)
    processor = tf.Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=words)  # with its own chat template
    return _saved(tf.Qwen2AudioForConditionalGeneration(config).eval(), processor, folder)


def without_places(logits, image):
    """(..., vocabulary), in which a place for a picture is no word."""
    if image is not None and image < logits.shape[-1]:  # Mllama's head has no row for it
        logits[..., image] = -torch.inf
    return logits


def _saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


MODELS = {"llava": saved_llava, "paligemma": saved_paligemma}
QUERIES = {"blip2": saved_blip2, "instructblip": saved_instructblip}  # a connector that asks the picture a few things
SIZED = {  # pictures are brought to one size
    "llava_next": saved_llava_next,
    "qwen2_vl": saved_qwen2_vl,
    "qwen2_5_vl": saved_qwen2_5_vl,
    "qwen3_vl": saved_qwen3_vl,
    "idefics3": saved_idefics3,
    "smolvlm": saved_smolvlm,
}
HEARING = {"qwen2_audio": saved_qwen2_audio}  # sounds have places in the text, as many as they are long
ASKED = {
    "blip2_t5": saved_blip2_t5,
    "instructblip_t5": saved_instructblip_t5,
    "blip_vqa": saved_blip_vqa,
}  # an encoder reads the question, a decoder answers
READERS = {"blip": saved_blip, "whisper": saved_whisper, "mllama": saved_mllama}  # by cross-attention
