from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmlab.nn import (
    BertConfig,
    BertEmbeddings,
    BertPooler,
    PostNormBlock,
    bert_block,
    init_bert,
    padding_mask,
)

TINY = BertConfig(
    vocab_size=50, dim=24, depth=2, num_heads=4, mlp_dim=60, max_positions=16, dropout=0.0
)


def test_cross_attention_is_between_attention_and_mlp_and_can_be_left_out():
    torch.manual_seed(0)
    block = PostNormBlock(dim=12, num_heads=3, mlp_dim=20, context_dim=8).eval()
    x, context = torch.randn(2, 4, 12), torch.randn(2, 5, 8)
    hidden = block.norm1(x + block.attention(x))
    without = block.norm2(hidden + block.mlp(hidden))
    torch.testing.assert_close(block(x), without)
    crossed = block.cross_norm(hidden + block.cross_attention(hidden, context))
    torch.testing.assert_close(block(x, context=context), block.norm2(crossed + block.mlp(crossed)))


def test_a_hidden_part_of_the_context_changes_nothing():
    torch.manual_seed(0)
    block = PostNormBlock(dim=12, num_heads=3, mlp_dim=20, context_dim=8).eval()
    x, context = torch.randn(2, 4, 12), torch.randn(2, 5, 8)
    mask = padding_mask(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]))
    changed = context.clone()
    changed[:, 4] += 7
    torch.testing.assert_close(
        block(x, context=context, context_mask=mask), block(x, context=changed, context_mask=mask)
    )


def test_context_without_cross_attention_is_refused():
    block = bert_block(TINY)
    with pytest.raises(ValueError, match="no cross-attention"):
        block(torch.randn(1, 2, 24), context=torch.randn(1, 3, 24))


def test_types_default_to_zero_and_positions_start_where_asked():
    torch.manual_seed(0)
    embeddings = BertEmbeddings(TINY).eval()
    ids = torch.randint(1, 50, (2, 6))
    torch.testing.assert_close(embeddings(ids), embeddings(ids, torch.zeros_like(ids)))
    torch.testing.assert_close(embeddings(ids[:, 2:], start=2), embeddings(ids)[:, 2:])
    untyped = BertEmbeddings(replace(TINY, num_types=0))
    assert untyped.type_embedding is None and untyped(ids).shape == (2, 6, 24)


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="16 tokens, this one has 17"):
        BertEmbeddings(TINY)(torch.ones(1, 17, dtype=torch.long))


def test_pooler_reads_the_first_token_alone():
    torch.manual_seed(0)
    pooler, x = BertPooler(24), torch.randn(2, 5, 24)
    changed = x.clone()
    changed[:, 1:] = 0
    assert torch.equal(pooler(x), pooler(changed))
    assert pooler(x).abs().max() < 1


def test_initialisation():
    torch.manual_seed(0)
    embeddings = BertEmbeddings(BertConfig()).apply(init_bert)
    assert embeddings.word_embedding.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert embeddings.word_embedding.weight[0].abs().max() == 0
    block = bert_block(BertConfig()).apply(init_bert)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert block.mlp.fc1.bias.abs().max() == 0 and (block.norm1.weight == 1).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 25, "dim must be a multiple of num_heads=4, got 25"),
        ("depth", 0, "depth must be a positive whole number, got 0"),
        ("num_types", -1, "num_types must be a whole number >= 0, got -1"),
        ("activation", "swish", "activation must be one of 'gelu'"),
        ("dropout", 1.0, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_values_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{field: value})


def test_a_bert_is_a_part_of_a_model_that_calls_its_sizes_alike():
    config = SimpleNamespace(dim=24, num_heads=3, text_depth=2, dropout=0.3, image_size=64)
    bert = BertConfig.part_of(config, depth=config.text_depth)
    assert bert == BertConfig(dim=24, num_heads=3, depth=2, dropout=0.3)
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads=5, got 24"):
        BertConfig.part_of(config, num_heads=5)
