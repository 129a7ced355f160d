import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmlab.analysis import attention_weights, record_attention
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import Attention, TransformerBlock, causal_mask, padding_mask

TINY = ViTConfig(
    image_size=16, patch_size=4, dim=24, depth=3, num_heads=3, mlp_dim=32, init="trunc_normal"
)
NAMES = [f"blocks.{index}.attention" for index in range(3)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ViT(TINY).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def num_hooks(model):
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks")
    )


def test_maps_rebuild_the_output_of_their_layer(model, images):
    """A map is right if it gives the layer's own output when it weighs the values by hand."""
    inputs = {}
    for name in NAMES:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, x, y, name=name: inputs.update({name: (x[0], y)}))
    with torch.no_grad(), record_attention(model) as maps:
        model(images)
    assert list(maps) == NAMES
    for name in NAMES:
        layer, (x, y) = model.get_submodule(name), inputs[name]
        values = layer.v_proj(x).unflatten(-1, (3, 8)).transpose(1, 2)
        attended = (maps[name] @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.out_proj(attended), y)
        assert maps[name].shape == (2, 3, 17, 17)


def test_weights_equal_the_fused_kernel_applied_to_unit_vectors():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[0, 0, 2] = False
    values = torch.eye(7).expand(2, 3, 7, 7)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(queries, keys, values, mask)
    weights = attention_weights(queries, keys, mask)
    torch.testing.assert_close(weights, expected)
    assert (weights[(~mask).expand_as(weights)] == 0).all()
    assert (weights[0, :, 2] == 0).all()


def test_a_query_that_sees_nothing_has_no_gradient_instead_of_nan():
    queries = torch.randn(1, 1, 2, 4, requires_grad=True)
    mask = torch.tensor([[False, False, False], [True, True, False]])[None, None]
    attention_weights(queries, torch.randn(1, 1, 3, 4), mask)[..., 0].sum().backward()
    assert (queries.grad[0, 0, 0] == 0).all()
    assert (queries.grad[0, 0, 1] != 0).all()


def test_outputs_are_the_same_and_no_hook_stays(model, images):
    before, hooks = model(images), num_hooks(model)
    with record_attention(model):
        inside = model(images)
        assert num_hooks(model) > hooks
    assert torch.equal(before, inside)
    assert torch.equal(before, model(images))
    assert num_hooks(model) == hooks


def test_no_hook_stays_after_an_error(model, images):
    with pytest.raises(RuntimeError, match="stop"), record_attention(model):
        model(images)
        raise RuntimeError("stop")
    assert num_hooks(model) == 0


def test_gradients_of_the_model_are_unchanged_and_the_maps_have_their_own(model, images):
    model(images).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with record_attention(model) as maps:
        logits = model(images)
    logits.sum().backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name])
    model.zero_grad()
    maps["blocks.1.attention"][..., 0].sum().backward()
    assert model.blocks[1].attention.q_proj.weight.grad.abs().max() > 0
    assert model.blocks[2].attention.q_proj.weight.grad is None


def test_maps_need_no_gradient_inside_no_grad(model, images):
    with torch.no_grad(), record_attention(model) as maps:
        model(images)
    assert not any(weights.requires_grad for weights in maps.values())


def test_the_last_pass_wins_and_maps_stop_growing_after_the_block(model, images):
    with record_attention(model) as maps:
        model(images)
        first = dict(maps)
        model(images.flip(0))
    model(images)
    for name in NAMES:
        torch.testing.assert_close(maps[name], first[name].flip(0))


def test_blocks_nest(model, images):
    with record_attention(model) as outer:
        with record_attention(model.blocks[1]) as inner:
            model(images)
        model(images.flip(0))
    assert list(inner) == ["attention"]
    torch.testing.assert_close(inner["attention"], outer["blocks.1.attention"].flip(0))


def test_attention_dropout_is_left_out(images):
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2, 16, attention_dropout=0.5), torch.randn(2, 4, 8)
    with record_attention(block) as trained:
        block.train()(x)
    with record_attention(block) as evaluated:
        block.eval()(x)
    assert torch.equal(trained["attention"], evaluated["attention"])


@pytest.mark.parametrize("backward_inside", [True, False])
def test_recording_goes_with_activation_checkpointing(model, images, backward_inside):
    model(images).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with record_attention(model) as plain, torch.no_grad():
        model(images)
    model.activation_checkpointing = True
    with record_attention(model) as maps:
        loss = model(images).sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name])
    for name in NAMES:
        assert torch.equal(maps[name], plain[name])


def test_masks_and_cross_attention_show_in_the_maps():
    torch.manual_seed(0)
    layer = Attention(8, 2, context_dim=6)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    with record_attention(layer) as maps:
        layer(torch.randn(2, 4, 8), torch.randn(2, 3, 6), padding_mask(valid))
    assert maps[""].shape == (2, 2, 4, 3)
    assert (maps[""][0, ..., 2] == 0).all()
    assert (maps[""][1, ..., 2] > 0).all()
    torch.testing.assert_close(maps[""].sum(dim=-1), torch.ones(2, 2, 4))


def test_a_causal_map_is_lower_triangular():
    layer, x = Attention(8, 2), torch.randn(1, 5, 8)
    with record_attention(layer) as maps:
        layer(x, mask=causal_mask(5))
    assert torch.equal(maps[""] > 0, causal_mask(5).expand(1, 2, 5, 5))


def test_maps_are_float32_under_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16), record_attention(model) as maps:
        model(images)
    for weights in maps.values():
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 17))


def test_a_model_without_our_attention_is_refused():
    with (
        pytest.raises(ValueError, match=r"Linear has no mmlab\.nn\.Attention layer"),
        record_attention(nn.Linear(2, 2)),
    ):
        pass


def test_a_mask_of_numbers_shows_in_the_maps():
    torch.manual_seed(0)
    layer, x = Attention(dim=8, num_heads=2), torch.randn(1, 4, 8)
    bias = torch.randn(1, 2, 4, 4)
    bias[..., 3] = -torch.inf
    with record_attention(layer) as maps:
        output = layer(x, mask=bias)
    (weights,) = maps.values()
    assert (weights[..., 3] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 4))
    values = layer._split_heads(layer.v_proj(x))
    rebuilt = layer.out_proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(rebuilt, output)
