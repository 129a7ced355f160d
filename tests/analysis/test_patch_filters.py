import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from mmlab.analysis import patch_filters
from mmlab.models.vit import VIT_MINI, ViT, ViTConfig


def random_kernels(dim=40, patch_size=4, seed=0):
    """Kernels that prefer some directions, so that their components are well apart."""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * patch_size**2
    spread = torch.linspace(3, 0.1, values)
    rotation, _ = torch.linalg.qr(torch.randn(values, values, generator=generator))
    samples = torch.randn(dim, values, generator=generator) * spread @ rotation + 0.7
    return samples.unflatten(1, (3, patch_size, patch_size))


def test_equals_sklearn_up_to_the_free_sign():
    kernels = random_kernels()
    filters = patch_filters(kernels, num_components=8)
    reference = PCA(n_components=8, svd_solver="full").fit(kernels.flatten(1).double().numpy())
    cosines = (filters.components.flatten(1).numpy() * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)
    np.testing.assert_allclose(
        filters.explained_variance, reference.explained_variance_ratio_, rtol=1e-5
    )


def test_shares_equal_numpys_singular_values_and_sum_to_one():
    kernels = random_kernels(dim=20)
    samples = kernels.flatten(1).double().numpy()
    squares = np.linalg.svd(samples - samples.mean(axis=0), compute_uv=False) ** 2
    filters = patch_filters(kernels, num_components=20)
    np.testing.assert_allclose(filters.explained_variance, squares / squares.sum(), atol=1e-6)
    assert filters.explained_variance.sum().item() == pytest.approx(1)


def test_components_are_orthogonal_unit_vectors():
    components = patch_filters(random_kernels(), num_components=10).components.flatten(1)
    torch.testing.assert_close(components @ components.T, torch.eye(10), atol=1e-5, rtol=0)


def test_the_sign_does_not_depend_on_that_of_the_kernels():
    kernels = random_kernels()
    components = patch_filters(kernels, 5).components
    torch.testing.assert_close(patch_filters(-kernels, 5).components, components)
    torch.testing.assert_close(patch_filters(kernels.flip(0), 5).components, components)
    flat = components.flatten(1)
    assert torch.equal(flat.abs().amax(dim=1), flat.amax(dim=1))


def test_a_known_direction_is_found_with_its_shape():
    """Kernels that are multiples of one picture, plus a constant, have that picture alone."""
    picture = torch.zeros(3, 2, 2)
    picture[0, 0, 1], picture[2, 1, 0] = 4.0, -3.0
    amounts = torch.tensor([-2.0, -1.0, 0.5, 3.0])
    filters = patch_filters(amounts[:, None, None, None] * picture + 5.0, num_components=1)
    torch.testing.assert_close(filters.components[0], picture / 5, atol=1e-6, rtol=0)
    assert filters.explained_variance.item() == pytest.approx(1)


def test_pictures_span_grey_to_full_colour():
    filters = patch_filters(random_kernels(), num_components=6)
    pictures = filters.pictures()
    assert pictures.min() >= 0
    torch.testing.assert_close(pictures.flatten(1).amax(dim=1), torch.ones(6))
    scale = filters.components.flatten(1).amax(dim=1)[:, None, None, None]
    torch.testing.assert_close((2 * pictures - 1) * scale, filters.components)


def test_the_kernels_of_a_vit_fit():
    torch.manual_seed(0)
    model = ViT(ViTConfig(image_size=16, patch_size=4, dim=48, depth=1, num_heads=3, mlp_dim=8))
    filters = patch_filters(model.patch_embedding.projection.weight)
    assert filters.components.shape == (28, 3, 4, 4)
    assert not filters.components.requires_grad


def test_what_does_not_fit_is_refused():
    with torch.device("meta"):
        stem = ViT(VIT_MINI).patch_embedding.projection.weight
    with pytest.raises(ValueError, match="got 128; a conv stem has no patch filters"):
        patch_filters(stem)
    for number in (0, 41):
        with pytest.raises(ValueError, match=f"from 1 to 40, got {number}"):
            patch_filters(random_kernels(), num_components=number)
    with pytest.raises(ValueError, match="differ from each other"):
        patch_filters(torch.ones(30, 3, 4, 4))
