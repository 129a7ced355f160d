"""BLIP here against BLIP of transformers, with the same weights: forward passes and captioning.

    python benchmarks/blip.py [--rounds 7] [--batch-size 4] [--depth 6] [--json FILE]

The width is that of the base size, at the 224 pixels and the 30 tokens of pre-training; ``--depth
12`` is the published depth and takes twice as long. Both sides have BERT's dropout of 0.1 in
training. See ``pairs.py`` for how the two are compared.
"""

from dataclasses import replace

import torch
from pairs import command_line, compare_forward, compare_training, headline
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from mmlab.hub import from_mmlab
from mmlab.models.blip import BLIP, BLIP_B_16, LABEL_SMOOTHING
from mmlab.models.blip_tasks import BLIPCaptioning

TOKENS = 30
"""The longest caption of pre-training."""


def captions(vocab_size, batch_size, tokens=TOKENS):
    """Captions that end at different places, and which of their tokens are no padding."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(tokens // 3, tokens + 1, (batch_size, 1), generator=generator)
    ids = torch.randint(1, vocab_size - 2, (batch_size, tokens), generator=generator)
    valid = torch.arange(tokens) < lengths
    return ids * valid, valid


def noise(config, batch_size):
    shape = (batch_size, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def vision_settings(config):
    return {
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
    }


def text_settings(config):
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.text_dim,
        "encoder_hidden_size": config.dim,
        "intermediate_size": config.text_mlp_dim,
        "num_hidden_layers": config.bert.depth,
        "num_attention_heads": config.text_num_heads,
        "max_position_embeddings": config.context_length,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "label_smoothing": LABEL_SMOOTHING,
        "bos_token_id": config.vocab_size - 2,
    }


def both(kind, config):
    """The class ``kind`` of transformers and ours, with one set of weights."""
    ours = BLIP(config)
    theirs = kind(
        BlipConfig(
            vision_config=vision_settings(config),
            text_config=text_settings(config),
            image_text_hidden_size=config.embed_dim,
        )
    )
    load(theirs, from_mmlab("blip-hf", ours.state_dict()))
    return theirs, ours


def load(theirs, state):
    """Load all of ``state``; only the numbers of the positions may be missing there."""
    missing, left_over = theirs.load_state_dict(state, strict=False)
    wrong = [key for key in missing if not key.endswith("position_ids")] + left_over
    if wrong:
        raise ValueError(f"the weights do not fit: {wrong[:5]}")


def beginning_with(first_id, ids):
    """transformers leaves the first token, which tells the role, to the caller."""
    return torch.cat([torch.full_like(ids[:, :1], first_id), ids[:, 1:]], dim=1)


def forwards(config, batch_size, rounds):
    """Images and texts apart, as features; then texts that look at images, and match or not."""
    config = replace(config, heads=("contrast", "match"))
    theirs, ours = both(BlipForImageTextRetrieval, config)
    images, (ids, valid) = noise(config, batch_size), captions(config.vocab_size, batch_size)
    their_ids, mask = beginning_with(config.encoder_id, ids), valid.long()

    def cosines():
        return ours.encode_image(images) @ ours.encode_text(ids, valid).T

    def logits():
        return ours.matching_logits(ours.ground(ids, ours.image_tokens_of(images), valid))

    def score(ids, use_itm_head):
        return theirs(ids, images, use_itm_head, mask).itm_score

    return {
        "features": compare_forward(
            "forward: features", (theirs, lambda: score(ids, False)), (ours, cosines), rounds
        ),
        "matching": compare_forward(
            "forward: matching", (theirs, lambda: score(their_ids, True)), (ours, logits), rounds
        ),
    }


def captioning(config, batch_size, rounds):
    """The language-modelling loss of captions, its gradients, the optimizer."""
    theirs, ours = both(BlipForConditionalGeneration, replace(config, heads=("words",)))
    images, (ids, valid) = noise(config, batch_size), captions(config.vocab_size, batch_size)
    their_ids, mask = beginning_with(config.decoder_id, ids), valid.long()
    labels = their_ids.masked_fill(~valid, -100)
    module = BLIPCaptioning(ours, prompt_length=0)
    batch = {"images": images, "input_ids": ids, "attention_mask": valid}
    return compare_training(
        "captioning: training step",
        (theirs, lambda: theirs(images, their_ids, mask, labels).loss),
        (module, lambda: module.losses(batch)["language_modeling"]),
        rounds,
    )


def measure(rounds=7, batch_size=4, depth=6, config=BLIP_B_16):
    torch.manual_seed(0)
    config = replace(config, depth=depth, text_depth=depth)
    headline(f"BLIP, width of B/16, depth {depth}, batch {batch_size}")
    return {
        **forwards(config, batch_size, rounds),
        "captioning_step": captioning(config, batch_size, rounds),
    }


if __name__ == "__main__":
    command_line(measure, __doc__)
