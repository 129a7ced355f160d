import math

import pytest
import torch
import torch.nn.functional as F

from mmlab.nn import MLP, DropPath, TransformerBlock, causal_mask


@pytest.mark.parametrize(("activation", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_mlp_equals_its_formula(activation, approximate):
    torch.manual_seed(0)
    mlp, x = MLP(6, 10, activation), torch.randn(2, 3, 6)
    hidden = F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias, approximate=approximate)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_the_two_gelus_differ_by_what_the_sheet_says():
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    difference = (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max()
    assert difference == pytest.approx(4.7e-4, abs=0.05e-4)  # specs/vit.md, section 2


def test_block_is_pre_norm_with_two_residual_branches():
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2, 16), torch.randn(2, 5, 8)
    middle = x + block.attention(F.layer_norm(x, (8,), eps=1e-6))
    expected = middle + block.mlp(F.layer_norm(middle, (8,), eps=1e-6))
    torch.testing.assert_close(block(x), expected)


def test_block_hands_the_mask_to_its_attention():
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2, 16), torch.randn(1, 5, 8)
    changed = x.clone()
    changed[:, 3:] = torch.randn(1, 2, 8)
    mask = causal_mask(5)
    torch.testing.assert_close(block(x, mask)[:, :3], block(changed, mask)[:, :3])
    assert not torch.allclose(block(x)[:, :3], block(changed)[:, :3])


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "drop_path"])
def test_every_dropout_acts_in_training_only(rate):
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2, 16, **{rate: 0.5}), torch.randn(16, 5, 8)
    plain = TransformerBlock(8, 2, 16)
    plain.load_state_dict(block.state_dict())
    assert not torch.allclose(block(x), plain(x))
    assert torch.equal(block.eval()(x), plain.eval()(x))


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    rate, num_samples = 0.3, 20_000
    kept = DropPath(rate)(torch.ones(num_samples, 2, 3))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    # Four standard errors of the mean of num_samples scaled coin flips.
    tolerance = 4 * math.sqrt(rate / (1 - rate) / num_samples)
    assert kept.mean() == pytest.approx(1, abs=tolerance)


def test_drop_path_is_the_identity_in_eval_mode_and_at_rate_zero():
    x = torch.randn(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_dropout_repeats_with_the_seed():
    block, x = TransformerBlock(8, 2, 16, dropout=0.1, drop_path=0.5), torch.randn(4, 3, 8)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(block(x))
    assert torch.equal(*results)
