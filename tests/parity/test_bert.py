"""BERT's parts against transformers."""

import torch
from transformers import BertConfig as TheirConfig
from transformers import BertForMaskedLM
from transformers.activations import ACT2FN

from mmlab.nn import (
    ACTIVATIONS,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    bert_block,
    padding_mask,
)

TINY = BertConfig(
    vocab_size=50, dim=24, depth=2, num_heads=4, mlp_dim=60, max_positions=16, dropout=0.0
)


def copy_linear(ours, theirs):
    ours.load_state_dict(theirs.state_dict())


def copy_block(ours, theirs):
    attention = theirs.attention
    for name, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        copy_linear(getattr(ours.attention, name), getattr(attention.self, part))
    copy_linear(ours.attention.out_proj, attention.output.dense)
    copy_linear(ours.norm1, attention.output.LayerNorm)
    copy_linear(ours.mlp.fc1, theirs.intermediate.dense)
    copy_linear(ours.mlp.fc2, theirs.output.dense)
    copy_linear(ours.norm2, theirs.output.LayerNorm)


def test_embeddings_blocks_and_head_equal_transformers():
    torch.manual_seed(0)
    theirs = BertForMaskedLM(
        TheirConfig(
            vocab_size=TINY.vocab_size,
            hidden_size=TINY.dim,
            num_hidden_layers=TINY.depth,
            num_attention_heads=TINY.num_heads,
            intermediate_size=TINY.mlp_dim,
            max_position_embeddings=TINY.max_positions,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    embeddings, head = BertEmbeddings(TINY).eval(), BertLanguageHead(TINY)
    source = theirs.bert.embeddings
    copy_linear(embeddings.word_embedding, source.word_embeddings)
    copy_linear(embeddings.position_embedding, source.position_embeddings)
    copy_linear(embeddings.type_embedding, source.token_type_embeddings)
    copy_linear(embeddings.norm, source.LayerNorm)
    transform = theirs.cls.predictions.transform
    copy_linear(head.dense, transform.dense)
    copy_linear(head.norm, transform.LayerNorm)
    head.bias.data.copy_(theirs.cls.predictions.bias)
    blocks = [bert_block(TINY).eval() for _ in range(TINY.depth)]
    for block, layer in zip(blocks, theirs.bert.encoder.layer, strict=True):
        copy_block(block, layer)
    ids = torch.randint(1, TINY.vocab_size, (3, 9))
    types = torch.randint(2, (3, 9))
    valid = torch.arange(9) < torch.tensor([9, 6, 1])[:, None]
    x = embeddings(ids, types)
    for block in blocks:
        x = block(x, padding_mask(valid))
    logits = head(x, embeddings.word_embedding.weight)
    expected = theirs(input_ids=ids, token_type_ids=types, attention_mask=valid.long()).logits
    torch.testing.assert_close(logits[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_quick_gelu():
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"]()(x), ACT2FN["quick_gelu"](x))
