"""LXMERT here against LXMERT of transformers, with the same weights: forward and pre-training step.

    python benchmarks/lxmert.py [--rounds 7] [--batch-size 4] [--depth 2] [--json FILE]

The width is the published one, with texts of up to 20 tokens and 36 regions. ``--depth 5`` is the
published depth, 9, 5 and 5 layers; ``--depth 2`` has 3, 2 and 2. The step has all five tasks, and
both sides have dropout in it. Words are predicted at all tokens by transformers, here only at those
that were masked. See ``pairs.py`` for how the two are compared.
"""

from dataclasses import replace

import torch
from blip import captions, load
from pairs import command_line, compare_forward, compare_training, headline
from transformers import LxmertConfig, LxmertForPreTraining

from mmlab.hub import from_mmlab
from mmlab.models.lxmert import LXMERT, LXMERT_B, LXMERTPretraining
from mmlab.objectives.masked_language import IGNORED

REGIONS = 36
MASKED = 0.15
THEIR_WEIGHT = 6.67
"""What transformers makes of one over 0.15."""


def settings(config):
    return LxmertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        hidden_size=config.dim,
        l_layers=config.text_depth,
        r_layers=config.region_depth,
        x_layers=config.cross_depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        visual_feat_dim=config.feature_dim,
        num_object_labels=config.num_region_classes,
        num_attr_labels=config.num_attributes,
        num_qa_labels=config.num_classes,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        visual_loss_normalizer=THEIR_WEIGHT,
    )


def both(config):
    """The model of transformers and ours, with one set of weights."""
    ours, theirs = LXMERT(config), LxmertForPreTraining(settings(config))
    load(theirs, from_mmlab("lxmert-hf", ours.state_dict()))
    return theirs, ours


def batch_of(config, batch_size):
    """Texts that end at different places; every second pair is false, every third a question."""
    generator = torch.Generator().manual_seed(1)
    ids, valid = captions(config.vocab_size, batch_size, config.context_length)
    shape, rows = (batch_size, REGIONS), torch.arange(batch_size)

    def labels(count, *shape):
        return torch.randint(count, shape, generator=generator)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    features = uniform(*shape, config.feature_dim)
    masked = (uniform(*ids.shape) < MASKED) & valid
    masked[:, 1] = True
    return {
        "input_ids": ids,
        "attention_mask": valid,
        "labels": ids.masked_fill(~masked, IGNORED),
        "features": features,
        "true_features": features.flip(0),
        "locations": uniform(*shape, 4),
        "chosen": uniform(*shape) < MASKED,
        "matched": rows % 2 == 0,
        "answers": labels(config.num_classes, batch_size).masked_fill(rows % 3 != 0, IGNORED),
        "classes": labels(config.num_region_classes, *shape),
        "confidences": uniform(*shape),
        "attributes": labels(config.num_attributes, *shape, 1),
        "attribute_confidences": uniform(*shape, 1),
    }


def in_their_names(batch):
    return {
        "input_ids": batch["input_ids"],
        "visual_feats": batch["features"],
        "visual_pos": batch["locations"],
        "attention_mask": batch["attention_mask"].long(),
    }


def their_labels(batch):
    return {
        "labels": batch["labels"],
        "matched_label": batch["matched"].long(),
        "ans": batch["answers"],
        "obj_labels": {
            "obj": (batch["classes"], batch["confidences"]),
            "attr": (batch["attributes"][..., 0], batch["attribute_confidences"][..., 0]),
            "feat": (batch["true_features"], batch["chosen"].float()),
        },
    }


def measure(rounds=7, batch_size=4, depth=2, config=LXMERT_B):
    torch.manual_seed(0)
    depths = {"text_depth": 2 * depth - 1, "region_depth": depth, "cross_depth": depth}
    config = replace(config, **depths)
    theirs, ours = both(config)
    batch = batch_of(config, batch_size)
    named = in_their_names(batch)
    inputs = (batch["input_ids"], batch["features"], batch["locations"], batch["attention_mask"])
    module = LXMERTPretraining(ours, region_weight=THEIR_WEIGHT)
    headline(f"LXMERT, width of B, depths {tuple(depths.values())}, batch {batch_size}")
    return {
        "features": compare_forward(
            "forward: features",
            (theirs, lambda: theirs.lxmert(**named).pooled_output),
            (ours, lambda: ours(*inputs).pooled),
            rounds,
        ),
        "pretraining_step": compare_training(
            "pre-training: training step",
            (theirs, lambda: theirs(**named, **their_labels(batch)).loss),
            (module, lambda: sum(module.losses(batch).values())),
            rounds,
        ),
    }


if __name__ == "__main__":
    command_line(measure, __doc__)
