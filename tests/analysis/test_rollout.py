import pytest
import torch

from mmlab.analysis import attention_rollout, record_attention
from mmlab.models.vit import ViT, ViTConfig


def random_layers(depth=4, heads=3, tokens=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(depth, 2, heads, tokens, tokens, generator=generator).softmax(dim=-1)


def naive(layers, residual):
    """Sum over every path through the layers, one step at a time."""
    num_tokens = layers.shape[-1]
    result = torch.zeros(layers.shape[1], num_tokens, num_tokens)
    for image in range(layers.shape[1]):
        for source in range(num_tokens):
            amount = [float(token == source) for token in range(num_tokens)]
            for layer in layers[:, image]:
                heads = len(layer)
                amount = [
                    residual * amount[query]
                    + (1 - residual)
                    * sum(
                        sum(layer[head, query, key].item() for head in range(heads))
                        / heads
                        * amount[key]
                        for key in range(num_tokens)
                    )
                    for query in range(num_tokens)
                ]
            result[image, :, source] = torch.tensor(amount)
    return result


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.8])
def test_equals_following_every_path_by_hand(residual):
    layers = random_layers()
    rollout = attention_rollout(list(layers), residual=residual)
    torch.testing.assert_close(rollout, naive(layers, residual))


def test_later_layers_multiply_from_the_left():
    """Token 0 reads 1 in the last layer, and 1 has read 2 before: so 0 has read 2, not 1."""
    first, last = torch.eye(3), torch.eye(3)
    first[1], last[0] = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
    rollout = attention_rollout([first[None, None], last[None, None]], residual=0.0)
    assert rollout[0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("discard_ratio", [0.0, 0.5])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rows_sum_to_one(fusion, discard_ratio):
    rollout = attention_rollout(list(random_layers()), fusion=fusion, discard_ratio=discard_ratio)
    torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(2, 6))
    assert (rollout >= 0).all()


def test_attention_to_oneself_changes_nothing():
    identity = torch.eye(5).expand(1, 2, 5, 5)
    assert torch.equal(attention_rollout([identity] * 3)[0], torch.eye(5))


def test_uniform_attention_keeps_half_of_the_token_in_each_layer():
    tokens, depth = 4, 3
    uniform = torch.full((1, 1, tokens, tokens), 1 / tokens)
    rollout = attention_rollout([uniform] * depth)[0]
    expected = 0.5**depth * torch.eye(tokens) + (1 - 0.5**depth) / tokens
    torch.testing.assert_close(rollout, expected)


def test_fusions_and_discarding_on_one_layer():
    weights = torch.tensor([[[0.7, 0.2, 0.1]] * 3, [[0.1, 0.3, 0.6]] * 3])[None]
    options = {"residual": 0.0}
    rows = {
        name: attention_rollout([weights], fusion=name, **options)[0, 0]
        for name in ("mean", "max", "min")
    }
    torch.testing.assert_close(rows["mean"], torch.tensor([0.4, 0.25, 0.35]))
    torch.testing.assert_close(rows["max"], torch.tensor([0.7, 0.3, 0.6]) / 1.6)
    torch.testing.assert_close(rows["min"], torch.tensor([0.1, 0.2, 0.1]) / 0.4)
    kept = attention_rollout([weights], discard_ratio=0.34, **options)[0, 0]
    torch.testing.assert_close(kept, torch.tensor([0.4, 0.0, 0.35]) / 0.75)


def test_a_query_that_sees_nothing_stays_itself():
    weights = torch.full((1, 1, 3, 3), 1 / 3)
    weights[..., 1, :] = 0.0
    rollout = attention_rollout([weights] * 2)[0]
    assert rollout[1].tolist() == [0, 1, 0]
    torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(3))


def test_on_the_maps_of_a_model():
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=16, patch_size=4, dim=24, depth=3, num_heads=3, mlp_dim=24))
    with torch.no_grad(), record_attention(model.eval()) as maps:
        model(torch.randn(2, 3, 16, 16))
    expected = naive(torch.stack(list(maps.values())), 0.5)
    torch.testing.assert_close(attention_rollout(maps), expected)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "maps is empty"),
        ({}, {}, "maps is empty"),
        ([torch.ones(1, 1, 2, 3)], {}, r"square .* \[\(1, 2, 3\)\]"),
        ([torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)], {}, "one stack"),
        ([torch.ones(1, 1, 2, 2)], {"fusion": "sum"}, "fusion must be one of mean, max, min"),
        ([torch.ones(1, 1, 2, 2)], {"residual": 1.0}, r"residual must be in \[0, 1\), got 1.0"),
        ([torch.ones(1, 1, 2, 2)], {"discard_ratio": -0.1}, r"discard_ratio must be in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(maps, options, message):
    with pytest.raises(ValueError, match=message):
        attention_rollout(maps, **options)
