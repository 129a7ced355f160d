import math

import pytest
import torch
from scipy.stats import spearmanr

from mmlab.analysis import grid_structure, position_similarity, spearman
from mmlab.nn import sincos_positions


def random_table(tokens, dim=64, seed=0):
    return torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(seed))


def test_each_picture_holds_the_cosines_of_one_patch():
    table = random_table(2 + 3 * 5)
    similarity = position_similarity(table, (3, 5), num_prefix_tokens=2)
    for row, column, other_row, other_column in [(0, 0, 2, 4), (1, 3, 2, 0), (2, 4, 0, 1)]:
        one, other = table[0, 2 + row * 5 + column], table[0, 2 + other_row * 5 + other_column]
        cosine = torch.cosine_similarity(one, other, dim=0)
        torch.testing.assert_close(similarity[row, column, other_row, other_column], cosine)
    diagonal = torch.einsum("rcrc->rc", similarity)
    torch.testing.assert_close(diagonal, torch.ones(3, 5))


def test_length_of_the_vectors_does_not_matter():
    table = random_table(9)
    scaled = table * torch.linspace(0.1, 10, 9)[:, None]
    torch.testing.assert_close(
        position_similarity(scaled, (3, 3), 0), position_similarity(table, (3, 3), 0)
    )


def test_sine_cosine_positions_know_the_grid_and_random_ones_do_not():
    fixed = position_similarity(sincos_positions((14, 14), 64, 1), (14, 14))
    assert grid_structure(fixed) > 0.5  # what we ask of a trained table, too
    # 19,110 pairs: chance alone gives about 1 / sqrt(19110) = 0.007.
    for seed in range(3):
        random = position_similarity(random_table(197, seed=seed), (14, 14))
        assert abs(grid_structure(random)) < 0.04


def test_sine_cosine_similarity_falls_along_row_and_column():
    """A quarter of all values are the cosines of one step at each frequency; half never change."""
    similarity = position_similarity(sincos_positions((4, 6), 32), (4, 6), 0)
    angles = [10000 ** -(i / 8) for i in range(8)]
    expected = 0.5 + 0.5 * sum(math.cos(angle) for angle in angles) / 8
    assert similarity[0, 0, 0, 1].item() == pytest.approx(expected, abs=1e-6)
    assert similarity[1, 2, 2, 2].item() == pytest.approx(expected, abs=1e-6)


def test_structure_is_one_for_nearness_itself_and_minus_one_for_its_opposite():
    axes = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    places = torch.stack(axes, dim=-1).reshape(-1, 2)
    distances = torch.cdist(places, places).reshape(3, 5, 3, 5)
    assert grid_structure(torch.exp(-distances)) == pytest.approx(1)
    assert grid_structure(distances) == pytest.approx(-1)
    assert math.isnan(grid_structure(torch.ones(3, 5, 3, 5)))


def test_structure_equals_scipy_over_pairs_of_different_patches():
    similarity = position_similarity(random_table(12, dim=4), (3, 4), 0).reshape(12, 12)
    places = [(row, column) for row in range(3) for column in range(4)]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    expected = spearmanr(
        [similarity[i, j].item() for i, j in pairs],
        [-math.dist(places[i], places[j]) for i, j in pairs],
    ).statistic
    found = grid_structure(similarity.reshape(3, 4, 3, 4))
    assert found == pytest.approx(expected, abs=1e-6)


def test_spearman_equals_scipy_with_ties():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (40,), generator=generator).float()
    y = x + torch.randint(-4, 5, (40,), generator=generator)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must have 10 rows .* got 9"):
        position_similarity(random_table(9), (3, 3))
    with pytest.raises(ValueError, match="at least 3 patches, got 1 x 2"):
        grid_structure(torch.ones(1, 2, 1, 2))
