from dataclasses import replace

import pytest
import torch

from mmlab.analysis import grad_cam, record_attention
from mmlab.models.albef import ALBEF
from tests.models.tiny import TINY_ALBEF

TINY = replace(TINY_ALBEF, fusion_depth=2, text_num_heads=2)
LAYER = "text_encoder.blocks.1.cross_attention"


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ALBEF(TINY).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def score_of(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 50, (2, 6), generator=generator)
    images = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    return lambda: model.matching_logits(model(ids, images).fused)[:, 1]


def nudged(model, score, weights, head, query, key, step):
    """The score where one attention weight of the layer is larger by ``step``."""

    def replace(module, inputs, output):
        changed = weights.clone()
        changed[:, head, query, key] += step
        return changed @ inputs[2]

    dot_product = model.get_submodule(LAYER).dot_product
    handle = dot_product.register_forward_hook(replace)
    try:
        return score()
    finally:
        handle.remove()


@pytest.mark.parametrize(("query", "key"), [(0, 1), (3, 4), (5, 0)])
def test_it_is_the_weight_times_the_finite_difference(model, query, key):
    score, step = score_of(model), 1e-5
    maps = grad_cam(model, LAYER, score)
    assert maps.shape == (2, 6, 5)
    with torch.no_grad(), record_attention(model) as weights:
        score()
    expected = 0
    with torch.no_grad():
        for head in range(2):
            ends = [
                nudged(model, score, weights[LAYER], head, query, key, s) for s in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            expected = expected + weights[LAYER][:, head, query, key] * slope.clamp(min=0) / 2
    torch.testing.assert_close(maps[:, query, key], expected, rtol=1e-5, atol=1e-9)


def test_the_model_is_as_it_was(model):
    score = score_of(model)
    before = score()
    model.requires_grad_(False)
    with torch.no_grad():
        maps = grad_cam(model, LAYER, score)
    assert maps.max() > 0 and (maps >= 0).all() and not maps.requires_grad
    assert torch.equal(score(), before)
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_refused(model):
    score = score_of(model)
    with pytest.raises(ValueError, match=r"ALBEF has no attention called 'blocks\.0'"):
        grad_cam(model, "blocks.0", score)
    images = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="the score does not depend on the attention"):
        grad_cam(model, LAYER, lambda: model.encode_image(images)[:, 0])
    with pytest.raises(ValueError, match="training mode"):
        grad_cam(model.train(), LAYER, score)
