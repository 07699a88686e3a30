"""Trained tokens in blocks of a tower, against a loop that is written out."""

import pytest
import torch
import transformers as tf

from fusetune.adapters.adapter import Block, Stack, Stream
from fusetune.adapters.prompts import DeepPrompts, PromptConfig
from fusetune.backbones.families import CLIP_ROLES

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)


def seeing():
    vision = tf.CLIPVisionModel(tf.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, initializer_range=0.2))
    return vision.eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}


def reading():
    text = tf.CLIPTextModel(tf.CLIPTextConfig(**SIZES, vocab_size=50, initializer_range=0.2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return text.eval(), {"input_ids": torch.randint(3, 50, (2, 5)), "attention_mask": mask}


def expected(model, inputs, prompts):
    """The blocks one by one, with masks that are written out."""
    if "pixel_values" in inputs:
        states, mask = model.pre_layrnorm(model.embeddings(inputs["pixel_values"])), None
    else:
        states, count = model.embeddings(inputs["input_ids"]), len(next(iter(prompts.values())))
        seen = torch.ones(5, 5).tril().bool() & inputs["attention_mask"][:, None].bool()  # (2, 5, 5)
        whole = torch.zeros(2, 1, count + 5, count + 5, dtype=torch.bool)
        whole[..., :count] = True
        whole[..., count:, count:] = seen[:, None]
        mask = torch.zeros(whole.shape).masked_fill(~whole, torch.finfo(torch.float32).min)
    for number, block in enumerate(model.encoder.layers):
        prompt = prompts.get(str(number), None)
        if prompt is None:
            short = None if mask is None else mask[..., -states.shape[1] :, -states.shape[1] :]
            states = block(states, attention_mask=short)
        else:
            states = block(torch.cat([prompt.expand(2, -1, -1), states], 1), attention_mask=mask)[:, len(prompt) :]
    return states


@torch.no_grad()
@pytest.mark.parametrize("made", [seeing, reading])
@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2)])
def test_each_block_reads_its_own(made, numbers):
    torch.manual_seed(0)
    model, inputs = made()
    stack = Stack("one", model, CLIP_ROLES, {"one": Stream(32, 8)})
    last: list = []
    model.encoder.layers[-1].register_forward_hook(lambda _, __, out: last.append(out))
    model(**inputs)
    adapter = DeepPrompts(PromptConfig(4), stack, [Block(i, model.encoder.layers[i]) for i in numbers])
    adapter.attach()
    for parameter in adapter.parameters():
        parameter.mul_(50)
    model(**inputs)
    adapter.set_active(False)
    model(**inputs)
    adapter.set_active(True)
    adapter.detach()
    model(**inputs)
    bare, prompted, inactive, detached = last
    assert (prompted - bare).abs().max() > 1e-2
    assert torch.equal(inactive, bare) and torch.equal(detached, bare)
    torch.testing.assert_close(prompted, expected(model, inputs, adapter.prompts))
