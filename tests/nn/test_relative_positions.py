"""Offsets of tokens, their table, and its change of resolution."""

import numpy as np
import pytest
import torch

from mmlab.nn.relative_positions import (
    RelativePositionBias,
    image_offsets,
    pair_offsets,
    resize_offsets,
    text_offsets,
)


def random_bias(grid=(3, 3), context_length=5, longest=7, depth=2, num_heads=2):
    bias = RelativePositionBias(grid, context_length, longest, depth, num_heads)
    torch.nn.init.normal_(bias.table, generator=torch.Generator().manual_seed(0))
    return bias


def test_the_published_table_has_its_rows_where_the_sheet_has_them():
    bias = RelativePositionBias((14, 14), 40, 196, 12, 12)
    assert bias.table.shape == (1126, 144) and bias.table.abs().max() == 0
    text, image = bias.offsets[:40, :40], bias.offsets[40:, 40:]
    assert image[1:, 1:].min() == 0 and image[1:, 1:].max() == 728
    assert (image[0, 1:] == 729).all() and (image[1:, 0] == 730).all() and image[0, 0] == 731
    assert (bias.offsets[:40, 40:] == 732).all() and (bias.offsets[40:, :40] == 733).all()
    assert (text[0, 1:] == 1123).all() and (text[1:, 0] == 1124).all() and text[0, 0] == 1125
    assert text_offsets(196, 196).min() == 0 and text_offsets(196, 196)[1:, 1:].max() == 388


def test_offsets_of_patches_are_query_minus_key_and_of_words_key_minus_query():
    image = image_offsets((14, 14))[1:, 1:]
    for query, key in ((0, 0), (5, 40), (195, 17)):
        down, right = query // 14 - key // 14, query % 14 - key % 14
        assert image[query, key] == (down + 13) * 27 + right + 13
    text = text_offsets(40, 196)
    assert text[3, 9] == 194 + 6 and text[9, 3] == 194 - 6


@pytest.mark.parametrize("offsets", [image_offsets((2, 3)), text_offsets(6, 9)])
def test_equal_offsets_share_a_row_and_opposite_ones_do_not(offsets):
    inner = offsets[1:, 1:]
    different = ~torch.eye(len(inner), dtype=torch.bool)
    assert (inner != inner.T)[different].all()
    assert inner.diagonal().unique().numel() == 1
    assert inner.unique().numel() < inner.numel()


def test_a_pair_has_the_blocks_of_text_and_image_on_its_diagonal():
    offsets = pair_offsets((2, 3), 4, 9)
    rows = 15 + 3 + 2
    assert torch.equal(offsets[:4, :4], text_offsets(4, 9) + rows)
    assert torch.equal(offsets[4:, 4:], image_offsets((2, 3)))


def test_each_block_and_head_reads_its_own_columns():
    bias = random_bias()
    whole = bias.pair(5)
    assert whole.shape == (2, 2, 15, 15)
    for layer in range(2):
        for head in range(2):
            expected = bias.table[:, 2 * layer + head][bias.offsets]
            assert torch.equal(whole[layer, head], expected)
    assert torch.equal(bias.text(5), whole[:, :, :5, :5])
    assert torch.equal(bias.image(), whole[:, :, 5:, 5:])


def test_a_shorter_text_reads_what_it_would_read_with_padding():
    bias = random_bias()
    kept = torch.tensor([0, 1, 2, *range(5, 15)])
    assert torch.equal(bias.pair(3), bias.pair(5)[:, :, kept[:, None], kept])
    assert torch.equal(bias.text(3), bias.text(5)[:, :, :3, :3])


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 30), (5, 3)])
def test_a_resized_table_is_the_cubic_spline_of_scipy_through_geometric_offsets(old, new):
    interpolate = pytest.importorskip("scipy.interpolate")
    optimize = pytest.importorskip("scipy.optimize")
    steps, reach = old - 1, new - 1
    table = torch.randn((2 * old - 1) ** 2 + 7, 3, dtype=torch.float64)
    resized = resize_offsets(table, (old, old), (new, new))
    assert torch.equal(resized[-7:], table[-7:])

    def beyond(factor):
        return sum(factor**i for i in range(steps)) - reach

    # BEiT looks for the factor from 1.01 on, and a smaller grid has none.
    factor = 1.01 if beyond(1.01) > 0 else optimize.brentq(beyond, 1.01, 1.5, xtol=1e-12)
    x = np.cumsum([factor**i for i in range(steps)])
    x = np.concatenate([-x[::-1], [0], x])
    at = np.clip(np.arange(-reach, reach + 1), x[0], x[-1])
    for column in range(3):
        square = table[:-7, column].reshape(len(x), len(x)).numpy()
        expected = interpolate.RectBivariateSpline(x, x, square, s=0)(at, at).ravel()
        assert np.abs(resized[:-7, column].numpy() - expected).max() < 1e-3


def test_resizing_keeps_all_but_the_patches_and_whether_the_table_learns():
    bias = random_bias()
    bias.table.requires_grad_(False)
    words, old = bias.text(5), bias.table
    assert bias.resize((3, 3)).table is old
    bias.resize((6, 6))
    assert torch.equal(bias.text(5), words)
    assert bias.image().shape == (2, 2, 37, 37) and not bias.table.requires_grad
    # A constant stays what it is.
    flat = resize_offsets(torch.ones(25, 1), (3, 3), (7, 7))
    torch.testing.assert_close(flat, torch.ones(169, 1))


@pytest.mark.parametrize("grid", [(2, 2), (3, 4)])
def test_grids_that_cannot_be_resized_are_named(grid):
    with pytest.raises(ValueError, match=r"grids must be squares of at least 3 x 3 patches, got"):
        random_bias().resize(grid)
