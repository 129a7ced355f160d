"""VisualBERT here against that of transformers, with the same weights: forward and training step.

    python benchmarks/visualbert.py [--rounds 7] [--batch-size 4] [--depth 4] [--json FILE]

The size is that of COCO pre-training with VQA's features: two captions of up to 40 tokens together
and 100 regions of 2048 numbers; ``--depth 12`` is the published depth. The step is masked words and
the sentence-image task, with dropout on both sides. transformers predicts words at all tokens and
regions, here they are predicted at the masked tokens only. See ``pairs.py`` for how the two are
compared.
"""

from dataclasses import replace

import torch
from blip import captions, load
from pairs import command_line, compare_forward, compare_training, headline
from transformers import VisualBertConfig, VisualBertForPreTraining

from mmlab.hub import from_mmlab
from mmlab.models.visualbert import (
    VISUALBERT_B_VQA_COCO,
    VisualBERT,
    VisualBERTPretraining,
    features_of,
)
from mmlab.objectives.masked_language import IGNORED

TOKENS, REGIONS = 40, 100
MASKED = 0.15


def settings(config):
    return VisualBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        visual_embedding_dim=config.feature_dim,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
    )


def both(config):
    """The model of transformers and ours, with one set of weights."""
    ours, theirs = VisualBERT(config), VisualBertForPreTraining(settings(config))
    load(theirs, from_mmlab("visualbert-hf", ours.state_dict()))
    return theirs, ours


def batch_of(config, batch_size):
    """Texts and images that end at different places."""
    generator = torch.Generator().manual_seed(1)
    ids, valid = captions(config.vocab_size, batch_size, TOKENS)
    shape = (batch_size, REGIONS)
    counts = torch.randint(REGIONS // 3, REGIONS + 1, (batch_size, 1), generator=generator)
    masked = (torch.rand(ids.shape, generator=generator) < MASKED) & valid
    masked[:, 1] = True
    return {
        "input_ids": ids,
        "attention_mask": valid,
        "types": torch.arange(TOKENS).expand(batch_size, -1).ge(TOKENS // 2).long(),
        "labels": ids.masked_fill(~masked, IGNORED),
        "features": torch.rand(*shape, config.feature_dim, generator=generator),
        "region_valid": torch.arange(REGIONS) < counts,
        "matched": torch.arange(batch_size) % 2 == 0,
    }


def in_their_names(batch):
    """Their default type of regions is 1, the official code's and ours 0."""
    regions = batch["region_valid"].long()
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"].long(),
        "token_type_ids": batch["types"],
        "visual_embeds": batch["features"],
        "visual_attention_mask": regions,
        "visual_token_type_ids": torch.zeros_like(regions),
    }


def their_labels(batch):
    """Regions have labels as well there, which ask for nothing."""
    nothing = torch.full_like(batch["region_valid"], IGNORED, dtype=torch.long)
    labels = torch.cat([batch["labels"], nothing], dim=1)
    return {"labels": labels, "sentence_image_labels": batch["matched"].long()}


def measure(rounds=7, batch_size=4, depth=4, config=VISUALBERT_B_VQA_COCO):
    torch.manual_seed(0)
    config = replace(config, depth=depth)
    theirs, ours = both(config)
    batch = batch_of(config, batch_size)
    named, labels = in_their_names(batch), their_labels(batch)
    module = VisualBERTPretraining(ours)
    headline(f"VisualBERT, width of B, depth {depth}, batch {batch_size}")
    return {
        "features": compare_forward(
            "forward: features",
            (theirs, lambda: theirs.visual_bert(**named).pooler_output),
            (ours, lambda: features_of(ours, batch).pooled),
            rounds,
        ),
        "pretraining_step": compare_training(
            "pre-training: training step",
            (theirs, lambda: theirs(**named, **labels).loss),
            (module, lambda: sum(module.losses(batch).values())),
            rounds,
        ),
    }


if __name__ == "__main__":
    command_line(measure, __doc__)
