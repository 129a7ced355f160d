import torch

from mmlab.nn import Attention, causal_mask, padding_mask, prefix_mask


def test_causal_mask_is_the_lower_triangle():
    expected = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert torch.equal(causal_mask(3), expected[None, None])


def test_prefix_mask_by_hand():
    expected = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert torch.equal(prefix_mask(torch.tensor([2]), 3)[0, 0], expected)


def test_prefix_mask_between_its_extremes():
    mask = prefix_mask(torch.tensor([0, 5]), 5)
    assert torch.equal(mask[0], causal_mask(5)[0])
    assert mask[1].all()


def test_causal_attention_of_a_longer_text_agrees_on_the_shorter():
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(2, 7, 8)
    whole = layer(x, mask=causal_mask(7))
    torch.testing.assert_close(whole[:, :4], layer(x[:, :4], mask=causal_mask(4)))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(2, 6, 8)
    valid = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    padded = layer(x, mask=padding_mask(valid))
    torch.testing.assert_close(padded[:1, :4], layer(x[:1, :4]))
    torch.testing.assert_close(padded[1:], layer(x[1:]))


def test_masks_combine():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    mask = causal_mask(3) & padding_mask(valid)
    assert mask.shape == (2, 1, 3, 3)
    assert mask[0, 0, 2].tolist() == [True, True, False]
    assert mask[1, 0, 2].all()
