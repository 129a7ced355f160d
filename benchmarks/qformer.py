"""The Q-Former of BLIP-2 here against that of transformers, with the same weights.

    python benchmarks/qformer.py [--rounds 9] [--batch-size 4] [--depth 12] [--json FILE]

Published size: 32 queries look at the 257 tokens, 1408 wide, of EVA's ViT-g/14, which are drawn;
texts have 32 tokens, as in pre-training. The image encoder itself is left out. See ``pairs.py`` for
how the two are compared.
"""

from dataclasses import replace

import torch
from blip import captions, load, vision_settings
from pairs import command_line, compare_forward, headline
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from mmlab.hub import from_mmlab
from mmlab.models.blip2 import BLIP2, BLIP2_G_14

TOKENS = 32


def both(config):
    """The retrieval model of transformers and ours, with one set of weights."""
    ours = BLIP2(config)
    theirs = Blip2ForImageTextRetrieval(
        Blip2Config(
            vision_config=vision_settings(config),
            qformer_config={
                "vocab_size": config.vocab_size,
                "hidden_size": config.text_dim,
                "intermediate_size": config.text_mlp_dim,
                "num_hidden_layers": config.text_depth,
                "num_attention_heads": config.text_num_heads,
                "max_position_embeddings": config.context_length,
                "cross_attention_frequency": config.cross_every,
                "encoder_hidden_size": config.dim,
                "use_qformer_text_input": True,
            },
            num_query_tokens=config.num_queries,
            image_text_hidden_size=config.embed_dim,
        )
    )
    load(theirs, from_mmlab("blip2-hf", ours.state_dict()))
    return theirs, ours


def measure(rounds=9, batch_size=4, depth=12, config=BLIP2_G_14):
    torch.manual_seed(0)
    # No image is encoded: one block is enough for a whole model.
    heads = ("contrast", "match")
    theirs, ours = both(replace(config, depth=1, text_depth=depth, heads=heads))
    ids, valid = captions(config.vocab_size, batch_size, TOKENS)
    context = torch.randn(batch_size, config.grid[0] * config.grid[1] + 1, config.dim)
    sees_image = torch.ones(context.shape[:2], dtype=torch.long)
    sees_queries = torch.ones(batch_size, config.num_queries, dtype=torch.long)
    mask = torch.cat([sees_queries, valid.long()], dim=1)

    def their_tokens(input_ids=None, mask=None):
        """As in the forward pass of their retrieval model."""
        queries = theirs.query_tokens.expand(batch_size, -1, -1)
        return theirs.qformer(
            query_embeds=theirs.embeddings(input_ids=input_ids, query_embeds=queries),
            query_length=config.num_queries,
            attention_mask=mask,
            encoder_hidden_states=context,
            encoder_attention_mask=sees_image,
        ).last_hidden_state

    headline(f"Q-Former, depth {depth}, batch {batch_size}")
    return {
        "queries": compare_forward(
            "forward: queries alone",
            (theirs, their_tokens),
            (ours, lambda: ours.qformer.look(context).tokens),
            rounds,
        ),
        "queries_and_text": compare_forward(
            "forward: queries and text",
            (theirs, lambda: their_tokens(ids, mask)),
            (ours, lambda: ours.fuse(ids, context, valid)),
            rounds,
        ),
    }


if __name__ == "__main__":
    command_line(measure, __doc__)
