"""The figures for uniform attention are averages over all pairs of grid points, worked out from
the geometry alone; the loop below does it again."""

import math

import pytest
import torch

from mmlab.analysis import (
    attention_distance,
    attention_distances,
    patch_distances,
    query_distances,
    record_attention,
)
from mmlab.models.vit import ViT, ViTConfig

# Grid side, patch size, mean distance in pixels with and without the patch itself.
UNIFORM = [
    (14, 16, 116.492, 117.090),
    (7, 32, 115.503, None),
    (16, 14, 116.565, None),
    (24, 16, 200.048, None),
]


def uniform(num_tokens):
    return torch.full((1, 1, num_tokens, num_tokens), 1 / num_tokens)


def shift(grid, rows, columns):
    """Every patch looks at the one ``rows`` below and ``columns`` to the right, around the edge."""
    numbers = torch.arange(grid[0] * grid[1]).reshape(grid)
    keys = numbers.roll((-rows, -columns), dims=(0, 1)).flatten()
    return torch.eye(len(keys))[keys][None, None]


def naive(weights, grid, patch_size, prefix, include_self):
    """Mean over the queries, number by number."""
    places = [(r * patch_size, c * patch_size) for r in range(grid[0]) for c in range(grid[1])]
    means = []
    for i, query in enumerate(places):
        total = distance = 0.0
        for j, key in enumerate(places):
            if include_self or i != j:
                weight = weights[prefix + i][prefix + j].item()
                total += weight
                distance += weight * math.dist(query, key)
        means.append(distance / total)
    return sum(means) / len(means)


@pytest.mark.parametrize(("side", "patch_size", "with_self", "without_self"), UNIFORM)
def test_uniform_attention(side, patch_size, with_self, without_self):
    weights, grid = uniform(1 + side**2), (side, side)
    assert attention_distance(weights, grid, patch_size).item() == pytest.approx(
        with_self, abs=5e-4
    )
    if without_self:
        other = attention_distance(weights, grid, patch_size, include_self=False).item()
        assert other == pytest.approx(without_self, abs=5e-4)


def test_uniform_attention_reaches_farther_from_the_corner_than_from_the_centre():
    reach = query_distances(uniform(197), (14, 14), 16)[0, 0].reshape(14, 14)
    assert reach.min().item() == pytest.approx(86.02, abs=5e-3)
    assert reach.max().item() == pytest.approx(161.03, abs=5e-3)
    assert reach[6, 6] == reach.min()
    assert reach[0, 13] == reach.max()


def test_largest_distance_is_the_diagonal():
    distances = patch_distances((14, 14), 16)
    assert distances.max().item() == pytest.approx(294.16, abs=5e-3)
    assert distances[0, -1].item() == pytest.approx(16 * 13 * math.sqrt(2))
    assert torch.equal(distances, distances.T)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_equals_a_loop_over_pairs_on_a_grid_that_is_not_square(include_self, prefix):
    generator = torch.Generator().manual_seed(prefix)
    grid, num_tokens = (3, 5), prefix + 15
    weights = torch.randn(2, 3, num_tokens, num_tokens, generator=generator).softmax(dim=-1)
    distances = attention_distance(weights, grid, 8, prefix, include_self)
    for image in range(2):
        for head in range(3):
            expected = naive(weights[image, head], grid, 8, prefix, include_self)
            assert distances[image, head].item() == pytest.approx(expected, rel=1e-5)


def test_a_patch_that_looks_at_itself_looks_nowhere():
    identity = torch.eye(12)[None, None]
    assert attention_distance(identity, (3, 4), 16, 0).item() == 0
    assert attention_distance(identity, (3, 4), 16, 0, include_self=False).isnan().all()


def test_a_shift_is_as_far_as_it_goes():
    grid = (4, 6)
    inside = query_distances(shift(grid, 0, 1), grid, 16, 0).reshape(grid)[:, :-1]
    assert (inside == 16).all()
    inside = query_distances(shift(grid, 1, 0), grid, 8, 0).reshape(grid)[:-1]
    assert (inside == 8).all()
    inside = query_distances(shift((8, 8), 3, 4), (8, 8), 2, 0).reshape(8, 8)[:-3, :-4]
    assert (inside == 10).all()


def test_the_class_token_does_not_count_however_much_it_gets():
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(1, 1, 9, 9, generator=generator)
    weights = torch.full((1, 1, 10, 10), 0.9)
    weights[..., 1:, 1:] = patches
    torch.testing.assert_close(
        attention_distance(weights, (3, 3), 4), attention_distance(patches, (3, 3), 4, 0)
    )


def test_a_patch_that_looks_only_at_the_class_token_is_left_out():
    weights = torch.zeros(1, 1, 5, 5)
    weights[..., 0] = 1.0
    weights[0, 0, 1] = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0])
    assert attention_distance(weights, (2, 2), 16).item() == 16
    assert query_distances(weights, (2, 2), 16)[0, 0].isnan().tolist() == [False, True, True, True]


def test_all_layers_of_a_recorded_model():
    torch.manual_seed(0)
    config = ViTConfig(image_size=24, patch_size=8, dim=24, depth=3, num_heads=3, mlp_dim=24)
    model = ViT(config).eval()
    with torch.no_grad(), record_attention(model) as maps:
        model(torch.randn(4, 3, 24, 24))
    distances = attention_distances(maps, config.grid, 8)
    assert distances.shape == (3, 3)
    for layer, weights in enumerate(maps.values()):
        alone = torch.stack([attention_distance(w[None], config.grid, 8)[0] for w in weights])
        torch.testing.assert_close(distances[layer], alone.mean(dim=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_distance(uniform(10), (3, 4), 16), "must be 13 x 13 .* got 10 x 10"),
        (lambda: attention_distance(uniform(10), (3, 3), 0), r"positive, got \(3, 3\) and 0"),
        (lambda: attention_distances({}, (3, 3), 16), "maps is empty"),
        (
            lambda: attention_distances(
                {"a": uniform(10), "b": uniform(10).expand(1, 2, 10, 10)}, (3, 3), 16
            ),
            "same number of heads, got {'a': 1, 'b': 2}",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
