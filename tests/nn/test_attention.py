import math

import pytest
import torch
from torch import nn

from mmlab.nn import Attention, causal_mask


def naive_attention(layer, x, context, mask=None):
    """One head and one query at a time, straight from the definition."""
    q, k, v = layer.q_proj(x), layer.k_proj(context), layer.v_proj(context)
    head_dim = q.shape[-1] // layer.num_heads
    output = torch.zeros_like(q)
    for b in range(len(x)):
        for head in range(layer.num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(x.shape[1]):
                logits = k[b, :, part] @ q[b, i, part] / math.sqrt(head_dim)
                if mask is not None:
                    logits[~mask[b, i]] = -math.inf
                output[b, i, part] = logits.softmax(dim=0) @ v[b, :, part]
    return layer.out_proj(output)


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_equals_the_definition(masked):
    torch.manual_seed(0)
    layer, x = Attention(dim=12, num_heads=3), torch.randn(2, 5, 12)
    mask = torch.rand(2, 5, 5) > 0.4 if masked else None
    if masked:
        mask |= torch.eye(5, dtype=torch.bool)
    result = layer(x, mask=mask[:, None] if masked else None)
    torch.testing.assert_close(result, naive_attention(layer, x, x, mask))


def test_cross_attention_equals_the_definition():
    torch.manual_seed(0)
    layer = Attention(dim=12, num_heads=3, context_dim=7, head_dim=5, qkv_bias=False)
    x, context = torch.randn(2, 4, 12), torch.randn(2, 6, 7)
    torch.testing.assert_close(layer(x, context), naive_attention(layer, x, context))


def test_equals_pytorch_multi_head_attention():
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(16, 4, batch_first=True), Attention(16, 4)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for index, name in enumerate(["q_proj", "k_proj", "v_proj"]):
        projection = {"weight": weights[index], "bias": biases[index]}
        getattr(ours, name).load_state_dict(projection)
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    x, mask = torch.randn(3, 6, 16), causal_mask(6)
    expected, _ = theirs(x, x, x, attn_mask=~mask[0, 0])
    torch.testing.assert_close(ours(x, mask=mask), expected)


def test_the_order_of_the_context_does_not_matter():
    torch.manual_seed(0)
    layer, x, context = Attention(8, 2), torch.randn(2, 3, 8), torch.randn(2, 9, 8)
    torch.testing.assert_close(layer(x, context), layer(x, context[:, torch.randperm(9)]))


def test_a_hidden_key_has_no_influence_and_no_gradient():
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(1, 3, 8)
    context = torch.randn(1, 4, 8, requires_grad=True)
    mask = torch.tensor([True, True, False, True])[None, None, None]
    layer(x, context, mask).sum().backward()
    assert context.grad[0, 2].abs().max() == 0
    assert context.grad[0, 3].abs().max() > 0


def test_dropout_acts_only_in_training():
    torch.manual_seed(0)
    layer, x = Attention(8, 2, dropout=0.5), torch.randn(2, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_biases_are_where_the_papers_have_them():
    names = {name for name, _ in Attention(8, 2, qkv_bias=False).named_parameters()}
    weights = {f"{part}_proj.weight" for part in ("q", "k", "v", "out")}
    assert names == weights | {"out_proj.bias"}


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads=3, got 8"):
        Attention(8, 3)


def test_a_mask_of_numbers_is_added_to_the_scores():
    torch.manual_seed(0)
    layer, x = Attention(dim=12, num_heads=3), torch.randn(2, 5, 12)
    allowed = (torch.rand(1, 1, 5, 5) > 0.4) | torch.eye(5, dtype=torch.bool)
    added = torch.zeros(1, 1, 5, 5).masked_fill(~allowed, -math.inf)
    torch.testing.assert_close(layer(x, mask=added), layer(x, mask=allowed))
    # One number a query is taken away again by the softmax.
    torch.testing.assert_close(layer(x, mask=torch.randn(1, 3, 5, 1).expand(1, 3, 5, 5)), layer(x))
    assert not torch.allclose(layer(x, mask=torch.randn(1, 3, 5, 5)), layer(x))


def test_a_bias_of_the_keys_changes_nothing():
    torch.manual_seed(0)
    layer, x = Attention(dim=12, num_heads=3), torch.randn(2, 5, 12)
    without = Attention(dim=12, num_heads=3, key_bias=False)
    without.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "k_proj.bias"})
    assert layer.k_proj.bias.abs().max() > 0
    torch.testing.assert_close(layer(x), without(x))
