import numpy as np
import pytest
import torch

from mmlab.nn import interpolate_positions, sincos_positions

GRIDS = [((7, 7), (12, 12)), ((14, 14), (9, 9)), ((4, 6), (5, 3)), ((3, 5), (6, 1))]


def split(table, grid, num_prefix_tokens=1):
    """(height, width, dim) array of the patch rows."""
    return table[0, num_prefix_tokens:].reshape(*grid, -1).double().numpy()


def cubic_matrix(old, new):
    """Keys' cubic convolution with a = -0.75, pixel centres at half integers, edges repeated."""
    a, matrix = -0.75, np.zeros((new, old))
    for row in range(new):
        source = (row + 0.5) * old / new - 0.5
        first = int(np.floor(source))
        for column in range(first - 1, first + 3):
            x = abs(source - column)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(column, 0), old - 1)] += near if x <= 1 else far
    return matrix


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_aligned_is_scipy_zoom_as_in_the_google_code(old, new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    table = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(0))
    resized = interpolate_positions(table, old, new, "bilinear_aligned")
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(split(table, old), factors, order=1)
    np.testing.assert_allclose(split(resized, new), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_is_cubic_convolution(old, new):
    table = torch.randn(1, 1 + old[0] * old[1], 8, generator=torch.Generator().manual_seed(0))
    resized = interpolate_positions(table, old, new, "bicubic")
    rows, columns = cubic_matrix(old[0], new[0]), cubic_matrix(old[1], new[1])
    expected = np.einsum("ih,jw,hwd->ijd", rows, columns, split(table, old))
    np.testing.assert_allclose(split(resized, new), expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["bilinear_aligned", "bicubic"])
def test_prefix_rows_are_kept_and_an_unchanged_grid_changes_nothing(variant):
    table = torch.randn(1, 2 + 9, 4)
    resized = interpolate_positions(table, (3, 3), (5, 5), variant, num_prefix_tokens=2)
    assert resized.shape == (1, 2 + 25, 4)
    assert torch.equal(resized[:, :2], table[:, :2])
    assert torch.equal(interpolate_positions(table, (3, 3), (3, 3), variant, 2), table)


def test_the_two_variants_disagree_by_more_than_rounding():
    table = torch.randn(1, 49, 64, generator=torch.Generator().manual_seed(0))
    ours = [
        interpolate_positions(table, (7, 7), (12, 12), variant, num_prefix_tokens=0)
        for variant in ("bilinear_aligned", "bicubic")
    ]
    assert (ours[0] - ours[1]).abs().max() > 1


def test_aligned_corners_stay_where_they_were():
    table = torch.randn(1, 16, 4)
    resized = interpolate_positions(table, (4, 4), (9, 9), num_prefix_tokens=0)
    torch.testing.assert_close(resized[:, [0, 8, 72, 80]], table[:, [0, 3, 12, 15]])


def test_interpolation_passes_gradients_and_keeps_the_type():
    table = torch.randn(1, 10, 4, dtype=torch.bfloat16, requires_grad=True)
    resized = interpolate_positions(table, (3, 3), (4, 4), "bicubic")
    resized.sum().backward()
    assert resized.dtype == torch.bfloat16
    assert table.grad.abs().min() > 0


def test_wrong_arguments_are_named():
    table = torch.zeros(1, 10, 4)
    with pytest.raises(ValueError, match=r"variant must be one of .*'bicubic'.*, got 'nearest'"):
        interpolate_positions(table, (3, 3), (4, 4), "nearest")
    with pytest.raises(ValueError, match=r"17 rows .* grid of \(4, 4\), got 10"):
        interpolate_positions(table, (4, 4), (5, 5))


def test_sincos_positions_one_by_one():
    dim, (height, width) = 16, (3, 5)
    table = sincos_positions((height, width), dim, num_prefix_tokens=1)
    assert torch.equal(table[0, 0], torch.zeros(dim))
    for row in range(height):
        for column in range(width):
            expected = [
                wave(position / 10000 ** (k / (dim / 4)))
                for position in (column, row)
                for wave in (np.sin, np.cos)
                for k in range(dim // 4)
            ]
            np.testing.assert_allclose(table[0, 1 + row * width + column], expected, atol=1e-6)


def test_sincos_similarity_depends_only_on_the_offset():
    table = sincos_positions((6, 6), 32)[0].reshape(6, 6, 32)
    similarity = torch.einsum("hwd,yxd->hwyx", table, table)
    torch.testing.assert_close(similarity[:5, :5, :5, :5], similarity[1:, 1:, 1:, 1:])


def test_sincos_width_must_be_a_multiple_of_four():
    with pytest.raises(ValueError, match=r"multiple of 4 .* got 6"):
        sincos_positions((2, 2), 6)
