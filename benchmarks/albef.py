"""A training step of ALBEF here against the same step with the towers of transformers' BLIP.

    python benchmarks/albef.py [--rounds 5] [--batch-size 2] [--depth 6] [--json FILE]

There is no ALBEF in transformers. But its BLIP has all parts: the image encoder, and a BERT that
takes token vectors as well as token numbers, so that one of it without cross-attention (texts) and
one with it (fusion) are ALBEF's. Put into our ``ALBEF``, with the same weights, they do the same
work: contrast with queue and momentum twin, matching of thrice the batch, masked words with the
twin's guesses. Heads, losses, twin, queue and optimizer are ours on both sides. One thing is not
possible there: the three pairs that an image is in share its keys and values here.

The width is that of the published size at its 256 pixels and 30 tokens; ``--depth 12`` is the
published depth, of which texts and fusion have one half each. See ``pairs.py`` for how the two are
compared.
"""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import torch
from blip import captions, load, noise, text_settings, vision_settings
from pairs import command_line, compare_training, headline
from torch import nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from mmlab.hub import from_mmlab
from mmlab.models.albef import ALBEF, ALBEF_B_16, ALBEFPretraining
from mmlab.objectives.masked_language import mask_tokens

MASK_ID = 103


class TheirImages(nn.Module):
    """BLIP's image encoder with the method of ours."""

    def __init__(self, config):
        super().__init__()
        self.model = BlipVisionModel(BlipVisionConfig(**vision_settings(config)))

    def forward_tokens(self, images):
        return self.model(images).last_hidden_state


class TheirTexts(nn.Module):
    """Two of BLIP's text models, one after the other, with the methods of our ``FusionBert``."""

    def __init__(self, config):
        super().__init__()
        settings = text_settings(config)
        text = {**settings, "num_hidden_layers": config.text_depth, "is_decoder": False}
        fusion = {**settings, "num_hidden_layers": config.fusion_depth, "is_decoder": True}
        self.text, self.fusion = (
            BlipTextModel(BlipTextConfig(**kind), add_pooling_layer=False)
            for kind in (text, fusion)
        )
        # The fusion is given vectors: a table of its own would only cost the optimizer time.
        self.fusion.embeddings = None

    @property
    def embeddings(self):
        return SimpleNamespace(word_embedding=self.text.embeddings.word_embeddings)

    def encode(self, input_ids, mask):
        return self.text(input_ids, attention_mask=mask[:, 0, 0].long()).last_hidden_state

    def fuse(self, tokens, image_tokens, mask, image_rows=None):
        images = image_tokens[0] if image_rows is None else image_tokens[0][image_rows]
        return self.fusion(
            encoder_embeds=tokens,
            attention_mask=mask[:, 0, 0].long(),
            encoder_hidden_states=images,
        ).last_hidden_state


def with_their_towers(ours):
    """A copy of the model ``ours`` on the towers of transformers."""
    config, theirs = ours.config, deepcopy(ours)
    theirs.image_encoder, theirs.text_encoder = TheirImages(config), TheirTexts(config)
    state = ours.state_dict()
    images = {key: tensor for key, tensor in state.items() if key.startswith("image_encoder.")}
    load(theirs.image_encoder.model, below("vision_model.", from_mmlab("blip-hf", images)))
    text = below("text_encoder.bert.", from_mmlab("albef", state))
    # BLIP has no token types. All tokens here are of the first.
    text["embeddings.position_embeddings.weight"] = (
        text["embeddings.position_embeddings.weight"]
        + text.pop("embeddings.token_type_embeddings.weight")[0]
    )
    layers = {key: int(key.split(".")[2]) for key in text if key.startswith("encoder.layer.")}
    first = {key: t for key, t in text.items() if layers.get(key, 0) < config.text_depth}
    load(theirs.text_encoder.text, first)
    last = {key: text[key] for key in layers if layers[key] >= config.text_depth}
    load(theirs.text_encoder.fusion, {moved(k, -config.text_depth): t for k, t in last.items()})
    return theirs


def below(start, state):
    return {key.removeprefix(start): t for key, t in state.items() if key.startswith(start)}


def moved(key, by):
    """The key of the same tensor ``by`` layers further."""
    parts = key.split(".")
    return ".".join([*parts[:2], str(int(parts[2]) + by), *parts[3:]])


def batch_of(config, batch_size):
    """Images, texts, and all that a step would draw: it is drawn here, once for both sides."""
    ids, valid = captions(config.vocab_size, batch_size)
    generator = torch.Generator().manual_seed(2)
    masked = mask_tokens(ids, valid, MASK_ID, config.vocab_size, generator=generator)
    another = torch.arange(batch_size).roll(1)
    return {
        "images": noise(config, batch_size),
        "input_ids": ids,
        "attention_mask": valid,
        "negative_images": another,
        "negative_texts": another,
        "masked_ids": masked.ids,
        "labels": masked.labels,
    }


def step_loss(module, batch):
    """In evaluation mode the step leaves twin and queue alone, so that both sides start alike."""
    return lambda: torch.stack(list(module.losses(batch, update=module.training).values())).sum()


def measure(rounds=5, batch_size=2, depth=6, config=ALBEF_B_16):
    torch.manual_seed(0)
    half = depth // 2
    config = replace(config, depth=depth, text_depth=half, fusion_depth=half)
    ours = ALBEF(config)
    modules = [ALBEFPretraining(network) for network in (with_their_towers(ours), ours)]
    modules[0].queue.load_state_dict(modules[1].queue.state_dict())
    batch = batch_of(config, batch_size)
    sides = [(module, step_loss(module, batch)) for module in modules]
    headline(f"ALBEF, width of B/16, depth {depth}, batch {batch_size}")
    return {"training_step": compare_training("training step", *sides, rounds)}


if __name__ == "__main__":
    command_line(measure, __doc__)
