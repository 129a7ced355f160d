import math

import pytest
import torch

from mmlab.objectives.masked_region import (
    choose_regions,
    hide_regions,
    region_class_loss,
    region_distribution_loss,
    region_feature_loss,
    region_soft_class_loss,
)


def batch(rows=1000, regions=10, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(rows, regions, dim, generator=generator) + 1
    counts = torch.randint(1, regions + 1, (rows,), generator=generator)
    valid = torch.arange(regions) < counts[:, None]
    return features * valid[..., None], valid, generator


def test_each_valid_region_is_chosen_at_the_rate():
    _, valid, generator = batch(rows=4000)
    chosen = choose_regions(valid, generator=generator)
    assert not chosen[~valid].any()
    assert chosen[valid].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert not chosen.any(1).all()


def test_at_least_one_region_is_chosen_and_it_is_valid():
    _, valid, generator = batch(rows=4000)
    chosen = choose_regions(valid, 0.01, at_least_one=True, generator=generator)
    assert chosen.any(1).all() and not chosen[~valid].any()
    full = valid.all(1)
    places = chosen[full].float().mean(0)
    assert places.min() > 0.5 / 10 and places.max() < 2 / 10, "any region may be the one"


def test_an_image_without_regions_has_none_chosen():
    chosen = choose_regions(torch.zeros(3, 4).bool(), at_least_one=True)
    assert not chosen.any()


@pytest.mark.parametrize("probability", [0, 1, -0.1, 1.5])
def test_a_wrong_probability_is_refused(probability):
    with pytest.raises(ValueError, match="probability must lie between 0 and 1"):
        choose_regions(torch.ones(1, 2).bool(), probability)


def test_fates_of_the_chosen_regions():
    features, valid, generator = batch(rows=4000)
    chosen = choose_regions(valid, 0.5, generator=generator)
    substitutes = torch.full_like(features, -1.0)
    hidden = hide_regions(features, chosen, 0.8, 0.1, substitutes, generator)
    assert torch.equal(hidden[~chosen], features[~chosen])
    zeroed = (hidden[chosen] == 0).all(-1)
    swapped = (hidden[chosen] == -1).all(-1)
    kept = (hidden[chosen] == features[chosen]).all(-1)
    assert (zeroed ^ swapped ^ kept).all()
    for share, expected in ((zeroed, 0.8), (swapped, 0.1), (kept, 0.1)):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.01)


def test_all_chosen_regions_are_zero_by_default():
    features, valid, generator = batch()
    chosen = choose_regions(valid, generator=generator)
    hidden = hide_regions(features, chosen)
    assert not hidden[chosen].any() and torch.equal(hidden[~chosen], features[~chosen])
    assert features[chosen].any(), "the features themselves stay"


def test_the_same_generator_gives_the_same_choice():
    features, valid, _ = batch()

    def draw():
        generator = torch.Generator().manual_seed(5)
        chosen = choose_regions(valid, generator=generator)
        return chosen, hide_regions(features, chosen, 0.5, generator=generator)

    for first, second in zip(draw(), draw(), strict=True):
        assert torch.equal(first, second)


def test_replacing_needs_substitutes():
    features, valid, _ = batch(rows=2)
    with pytest.raises(ValueError, match="substitutes must be given"):
        hide_regions(features, valid, 0.8, 0.1)


def predictions(seed=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 7, generator=generator)
    targets = torch.randn(4, 5, 7, generator=generator).softmax(-1)
    chosen = torch.rand(4, 5, generator=generator) < 0.4
    return logits, targets, chosen


@pytest.mark.parametrize("per_class", [False, True])
def test_distribution_loss_is_a_double_loop(per_class):
    logits, targets, chosen = predictions()
    total = 0.0
    for b, r in chosen.nonzero().tolist():
        p = logits[b, r].softmax(-1)
        total += sum(float(q) * math.log(q / p_c) for q, p_c in zip(targets[b, r], p, strict=True))
    expected = total / int(chosen.sum()) / (7 if per_class else 1)
    loss = region_distribution_loss(logits, targets, chosen, per_class)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_distribution_loss_is_cross_entropy_less_entropy_and_zero_for_the_truth():
    logits, targets, chosen = predictions()
    cross = -(targets * logits.log_softmax(-1)).sum(-1)[chosen].mean()
    entropy = -(targets * targets.log()).sum(-1)[chosen].mean()
    torch.testing.assert_close(region_distribution_loss(logits, targets, chosen), cross - entropy)
    none = region_distribution_loss(targets.log(), targets, chosen)
    assert none.item() == pytest.approx(0, abs=1e-6)


def test_a_target_of_one_class_gives_the_class_loss():
    logits, _, chosen = predictions()
    classes = torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(1))
    sure = torch.nn.functional.one_hot(classes, 7).float()
    torch.testing.assert_close(
        region_class_loss(logits, classes, chosen), region_distribution_loss(logits, sure, chosen)
    )


def test_feature_loss_is_a_mean_over_chosen_regions_and_numbers():
    predicted, features, chosen = predictions()
    squares = [((predicted[b, r] - features[b, r]) ** 2).mean() for b, r in chosen.nonzero()]
    expected = torch.stack(squares).mean()
    torch.testing.assert_close(region_feature_loss(predicted, features, chosen), expected)


def test_without_a_chosen_region_losses_are_zero_and_have_a_gradient():
    logits, targets, chosen = predictions()
    logits.requires_grad_()
    nothing, classes = torch.zeros_like(chosen), torch.zeros(4, 5, dtype=torch.long)
    losses = (
        region_distribution_loss(logits, targets, nothing),
        region_class_loss(logits, classes, nothing),
        region_feature_loss(logits, targets, nothing),
    )
    assert all(loss.item() == 0 for loss in losses)
    sum(losses).backward()
    assert not logits.grad.any()


def test_soft_classes_cost_their_entropy_more_than_the_divergence():
    _, valid, generator = batch(rows=20)
    chosen = choose_regions(valid, 0.5, generator=generator)
    targets = torch.rand(20, 10, 7, generator=generator).softmax(-1)
    losses, gradients = [], []
    for loss in (region_soft_class_loss, region_distribution_loss):
        logits = torch.randn(20, 10, 7, generator=torch.Generator().manual_seed(1))
        value = loss(logits.requires_grad_(), targets, chosen)
        value.backward()
        losses.append(value)
        gradients.append(logits.grad)
    entropy = -(targets * targets.log()).sum(-1)[chosen].mean()
    torch.testing.assert_close(losses[0], losses[1] + entropy)
    torch.testing.assert_close(*gradients)
    certain = torch.eye(7)[torch.randint(7, (20, 10), generator=generator)]
    logits = torch.randn(20, 10, 7, generator=generator)
    hard = region_class_loss(logits, certain.argmax(-1), chosen)
    torch.testing.assert_close(region_soft_class_loss(logits, certain, chosen), hard)
    assert region_soft_class_loss(logits, targets, torch.zeros_like(chosen)) == 0
