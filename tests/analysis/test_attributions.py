import numpy as np
import pytest
import torch
from torch import nn

from mmlab.analysis import completeness_gap, integrated_gradients, occlusion, patch_occlusion
from mmlab.models.vit import ViT, ViTConfig

TINY = ViTConfig(
    image_size=12,
    patch_size=4,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=32,
    num_classes=5,
    init="trunc_normal",
)


@pytest.fixture
def model():
    """Weights are widened, so that the outputs are far from linear in the input."""
    torch.manual_seed(0)
    model = ViT(TINY).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 12, 12, generator=generator, dtype=torch.float64)


def manual_gradients(forward, inputs, target, baseline, steps):
    """Integrated Gradients as the formula reads, for one class of all inputs."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(inputs)
    for node, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
        point = (baseline + node * (inputs - baseline)).requires_grad_()
        total += weight * torch.autograd.grad(forward(point)[:, target].sum(), point)[0]
    return total * (inputs - baseline)


def linear(dim=12, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(dim, classes)).eval()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_integrated_gradients_equal_the_formula(model, images, batch_size):
    options = {"baseline": 0.3, "steps": 9, "batch_size": batch_size}
    found = integrated_gradients(model, images, 2, **options)
    expected = manual_gradients(model, images, 2, torch.full_like(images, 0.3), 9)
    assert found.abs().max() > 0.01
    # Captum keeps its step weights in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_integrated_gradients_are_complete(model, images):
    baseline = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    target = torch.tensor([4, 1])
    found = integrated_gradients(model, images, target, baseline, steps=200)
    with torch.no_grad():
        difference = model(images) - model(baseline.expand_as(images))
    difference = difference[torch.arange(2), target]
    assert difference.abs().min() > 0.05
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), difference, rtol=1e-3, atol=1e-4)
    gap = completeness_gap(model, images, found, target, baseline)
    torch.testing.assert_close(gap, found.sum(dim=(1, 2, 3)) - difference)


def test_more_steps_close_the_gap(model, images):
    gaps = []
    for steps in (2, 100):
        found = integrated_gradients(model, images, 0, steps=steps)
        gaps.append(completeness_gap(model, images, found, 0).abs().max())
    assert gaps[1] < gaps[0] / 10


def test_a_linear_model_is_explained_exactly():
    model, inputs = linear(), torch.randn(4, 3, 2, 2)
    target = torch.tensor([0, 2, 1, 2])
    weights = model[1].weight[target].reshape(4, 3, 2, 2).detach()
    expected = weights * (inputs - 0.5)
    found = integrated_gradients(model, inputs, target, baseline=0.5, steps=3)
    torch.testing.assert_close(found, expected)
    by_patch = patch_occlusion(model, inputs, target, patch_size=1, baseline=0.5)
    torch.testing.assert_close(by_patch, expected.sum(dim=1))


def test_each_input_has_its_own_target(model, images):
    both = integrated_gradients(model, images, torch.tensor([3, 0]), steps=5)
    torch.testing.assert_close(both[:1], integrated_gradients(model, images[:1], 3, steps=5))
    torch.testing.assert_close(both[1:], integrated_gradients(model, images[1:], 0, steps=5))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_patch_occlusion_equals_a_loop(model, images, batch_size):
    target = torch.tensor([3, 0])
    found = patch_occlusion(model, images, target, 4, baseline=-0.2, batch_size=batch_size)
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        for image in range(2):
            before = model(images[image : image + 1])[0, target[image]]
            for row in range(3):
                for column in range(3):
                    covered = images[image : image + 1].clone()
                    covered[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = -0.2
                    after = model(covered)[0, target[image]]
                    expected[image, row, column] = before - after
    assert expected.abs().min() > 1e-3
    # Captum collects the differences in float32.
    torch.testing.assert_close(found, expected.float())


def test_rows_and_columns_of_a_patch_map_are_those_of_the_image():
    images = torch.zeros(1, 3, 4, 6)
    images[:, :, 2:, :2] = 1.0
    found = patch_occlusion(lambda x: x.sum(dim=(1, 2, 3)), images, patch_size=2)
    assert found[0].tolist() == [[0, 0, 0], [12, 0, 0]]


def test_embeddings_of_text_go_the_same_way():
    """One output, no target; words of weight 0 get nothing, and a word gets its own share."""
    torch.manual_seed(0)
    embeddings, weights = torch.randn(2, 5, 8), torch.tensor([1.0, 0.0, 2.0, 0.0, -1.0])

    def forward(x):
        return (x.sum(dim=-1) * weights).sum(dim=-1)

    expected = embeddings.sum(dim=-1) * weights
    gradients = integrated_gradients(forward, embeddings, steps=4)
    torch.testing.assert_close(gradients.sum(dim=-1), expected)
    torch.testing.assert_close(occlusion(forward, embeddings, (1, 8))[..., 0], expected)


def test_model_and_inputs_are_left_as_they_were(model, images):
    before = images.clone()
    with torch.no_grad():
        integrated_gradients(model, images, 0, steps=3)
        patch_occlusion(model, images, 0, 4)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 3}, "target must be from 0 to 2, got 3"),
        ({"target": -1}, "target must be from 0 to 2, got -1"),
        ({}, r"target must name one of the outputs, whose shape is \(\d+, 3\)"),
        ({"target": torch.tensor([1, 2, 0])}, "one class for each of 2 inputs, got 3"),
        ({"target": 0, "inputs": torch.zeros(0, 3, 2, 2)}, "empty batch"),
        ({"target": 0, "baseline": torch.zeros(5)}, r"spread to shape \(2, 3, 2, 2\), got \(5,\)"),
        ({"target": 0, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"target": 0, "forward": linear().train()}, r"call model.eval\(\)"),
        ({"target": 0, "forward": lambda x: x.sum(dim=(1, 2, 3))}, r"must return \(batch, classes"),
    ],
)
@pytest.mark.parametrize("attribute", [integrated_gradients, patch_occlusion])
def test_what_does_not_fit_is_refused(attribute, arguments, message):
    size = {"patch_size": 1} if attribute is patch_occlusion else {}
    fitting = {"forward": linear(), "inputs": torch.randn(2, 3, 2, 2)}
    given = fitting | size | arguments
    if attribute is patch_occlusion:
        given["images"] = given.pop("inputs")
    with pytest.raises(ValueError, match=message):
        attribute(**given)


def test_steps_and_windows_that_do_not_fit_are_refused(images):
    model = linear()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrated_gradients(model, images, 0, steps=0)
    with pytest.raises(ValueError, match=r"patch_size must tile .* \(12, 12\), got \(5, 5\)"):
        patch_occlusion(model, images, 0, patch_size=5)
    with pytest.raises(ValueError, match=r"patch_size must tile .* got \(0, 0\)"):
        patch_occlusion(model, images, 0, patch_size=0)
    with pytest.raises(ValueError, match=r"window must have 3 sizes .* got \(4, 4\)"):
        occlusion(model, images, (4, 4), 0)
    with pytest.raises(ValueError, match="window must tile"):
        occlusion(model, images, (2, 4, 4), 0)
