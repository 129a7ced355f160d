import pytest
import torch

import mmlab
from mmlab.nn import BertClassifier, BertConfig, SingleStream, causal_mask, init_bert

TINY = BertConfig(
    vocab_size=50, dim=24, depth=2, num_heads=4, mlp_dim=60, max_positions=16, dropout=0.0
)


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return SingleStream(TINY).apply(init_bert).eval()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, n, 24, generator=generator) for n in (5, 4)]


def test_words_and_regions_see_each_other(trunk, pair):
    text, regions = pair
    before = trunk(text, regions)
    assert before.text.shape == (3, 5, 24) and before.regions.shape == (3, 4, 24)
    after = trunk(text, regions + torch.randn(regions.shape))
    assert not torch.allclose(before.text, after.text, atol=1e-4)
    assert not torch.allclose(before.pooled, after.pooled, atol=1e-4)


def test_padding_changes_nothing(trunk, pair):
    text, regions = pair
    text_valid, region_valid = torch.ones(3, 5).bool(), torch.ones(3, 4).bool()
    text_valid[0, 3:] = region_valid[1, 2:] = False
    before = trunk(text, regions, text_valid, region_valid)
    text, regions = text.clone(), regions.clone()
    text[0, 3:] += 9
    regions[1, 2:] -= 9
    after = trunk(text, regions, text_valid, region_valid)
    torch.testing.assert_close(before.text[text_valid], after.text[text_valid])
    torch.testing.assert_close(before.regions[region_valid], after.regions[region_valid])
    torch.testing.assert_close(before.pooled, after.pooled)


def test_one_of_the_two_masks_is_enough(trunk, pair):
    text, regions = pair
    region_valid = torch.tensor([[1, 1, 0, 0]]).bool().expand(3, -1)
    cut = trunk(text, regions[:, :2])
    masked = trunk(text, regions, region_valid=region_valid)
    torch.testing.assert_close(masked.text, cut.text)
    torch.testing.assert_close(masked.regions[:, :2], cut.regions)


def test_a_further_mask_combines_with_the_padding(trunk, pair):
    text, regions = pair
    region_valid = torch.tensor([[1, 1, 1, 0]]).bool().expand(3, -1)
    before = trunk(text, regions, region_valid=region_valid, mask=causal_mask(9))
    changed = trunk(text, regions + 3, region_valid=region_valid, mask=causal_mask(9))
    torch.testing.assert_close(before.text, changed.text)
    alone = trunk(text, regions, mask=causal_mask(9))
    torch.testing.assert_close(before.regions[:, :3], alone.regions[:, :3])


def test_regions_carry_no_order_of_their_own(trunk, pair):
    text, regions = pair
    order = torch.tensor([2, 0, 3, 1])
    before, after = trunk(text, regions), trunk(text, regions[:, order])
    torch.testing.assert_close(after.regions, before.regions[:, order])
    torch.testing.assert_close(after.text, before.text)


def test_without_regions_it_is_a_bert(trunk, pair):
    text, regions = pair
    features = trunk(text, regions[:, :0])
    x = text
    for block in trunk.blocks:
        x = block(x)
    torch.testing.assert_close(features.text, x)
    assert features.regions.shape == (3, 0, 24)


def test_checkpointed_blocks_give_the_same_gradient(trunk, pair):
    def gradient():
        trunk.zero_grad()
        trunk(*pair).pooled.sum().backward()
        return trunk.blocks[0].mlp.fc1.weight.grad.clone()

    plain = gradient()
    trunk.activation_checkpointing = True
    torch.testing.assert_close(gradient(), plain)


def test_attention_is_recorded_over_words_and_regions(trunk, pair):
    with mmlab.record_attention(trunk) as maps:
        trunk(*pair)
    assert len(maps) == TINY.depth
    for weights in maps.values():
        assert weights.shape == (3, 4, 9, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 9))


def test_a_classifier_activates_before_it_normalises():
    torch.manual_seed(0)
    head = BertClassifier(8, 6, 3)
    x = torch.randn(5, 8)
    hidden = torch.nn.functional.gelu(head.transform.dense(x))
    expected = head.decoder(torch.nn.functional.layer_norm(hidden, (6,), eps=1e-12))
    torch.testing.assert_close(head(x), expected)
