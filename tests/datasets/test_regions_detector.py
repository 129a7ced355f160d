"""The toy detector: error rates as asked for, nothing but the truth without errors."""

import math
from dataclasses import replace

import pytest
import torch

from mmlab.datasets.regions import ATTRIBUTES, ToyDetector, collate_regions
from mmlab.datasets.scenes import COLORS, SHAPES, TEXTURES, scenes
from mmlab.nn.region_locations import box_iou

NUMBER = 700
NOISY = ToyDetector(
    missed=0.3, wrong_class=0.3, wrong_attribute=0.25, overlapping=0.4, jitter=0.1, feature_dim=8
)


@pytest.fixture(scope="module")
def data():
    return scenes(NUMBER, image_size=32)


@pytest.fixture(scope="module")
def noisy(data):
    return told(NOISY, data)


@pytest.fixture(scope="module")
def truth(data):
    """``(image, object)`` to the true region, with its class and attributes as numbers."""
    size = data.config.image_size
    return {
        (i, k): (
            thing.box(size),
            SHAPES.index(thing.shape),
            [ATTRIBUTES.index(thing.color), ATTRIBUTES.index(thing.texture)],
        )
        for i, scene in enumerate(data.scenes)
        for k, thing in enumerate(scene.objects)
    }


def told(detector, data):
    """Every region that shows an object, as ``(image, object, place)``; and the batch."""
    regions, objects = detector.detect(data), detector.objects(data)
    assert objects.shape == regions.mask.shape and (objects[~regions.mask] == -1).all()
    image, place = (objects >= 0).nonzero(as_tuple=True)
    return list(zip(image.tolist(), objects[image, place].tolist(), place.tolist(), strict=True)), (
        regions
    )


def within(observed, rate, number):
    """Inside 4.5 standard errors of a binomial."""
    return abs(observed - rate) < 4.5 * math.sqrt(rate * (1 - rate) / number)


def true_boxes(truth, shown):
    return torch.tensor([truth[i, k][0] for i, k, _ in shown])


def places(shown):
    return torch.tensor([i for i, _, _ in shown]), torch.tensor([p for _, _, p in shown])


def test_without_errors_it_tells_the_truth(data, truth):
    shown, regions = told(ToyDetector(), data)
    assert sorted((i, k) for i, k, _ in shown) == sorted(truth)
    where = places(shown)
    assert torch.equal(regions.boxes[where], true_boxes(truth, shown))
    assert regions.classes[where].tolist() == [truth[i, k][1] for i, k, _ in shown]
    assert regions.attributes[where].tolist() == [truth[i, k][2] for i, k, _ in shown]
    assert int(regions.mask.sum()) == len(shown)
    assert (regions.image_sizes == 32).all()


def test_missed_objects(noisy, truth):
    shown, regions = noisy
    found = {(i, k) for i, k, _ in shown}
    assert within(1 - len(found) / len(truth), 0.3, len(truth))
    empty = sorted(set(range(NUMBER)) - {i for i, _, _ in shown})
    assert empty
    assert regions.num_regions[empty].tolist() == [1] * len(empty)
    assert (regions.boxes[empty, 0] == torch.tensor([0.0, 0, 32, 32])).all()
    assert (regions.class_distributions[empty, 0, 0] == 1).all()
    assert (regions.confidences[empty, 0] == 0).all()
    assert int(regions.mask.sum()) == len(shown) + len(empty)


def test_wrong_classes_are_spread_over_all_others(noisy, truth):
    shown, regions = noisy
    labels = regions.classes[places(shown)].tolist()
    steps = [(c - truth[i, k][1]) % 8 for c, (i, k, _) in zip(labels, shown, strict=True)]
    wrong = [step for step in steps if step]
    assert within(len(wrong) / len(steps), 0.3, len(steps))
    for step in range(1, 8):
        assert within(wrong.count(step) / len(wrong), 1 / 7, len(wrong))


def test_wrong_attributes(noisy, truth):
    shown, regions = noisy
    labels = regions.attributes[places(shown)]
    true = torch.tensor([truth[i, k][2] for i, k, _ in shown])
    wrong = labels != true
    for kind in range(2):
        assert within(float(wrong[:, kind].float().mean()), 0.25, len(shown))
    assert within(float(wrong.all(1).float().mean()), 0.25**2, len(shown))
    assert {ATTRIBUTES[a] for a in labels[:, 0].tolist()} == set(COLORS)
    assert {ATTRIBUTES[a] for a in labels[:, 1].tolist()} == set(TEXTURES)


@pytest.mark.parametrize("jitter", [0.02, 0.1, 0.3])
def test_jitter_bounds_the_overlap_with_the_truth(truth, jitter):
    shown, regions = told(ToyDetector(jitter=jitter, feature_dim=8), scenes(300, image_size=32))
    boxes, exact = regions.boxes[places(shown)], true_boxes(truth, shown)
    overlap = box_iou(boxes[:, None], exact[:, None])[:, 0, 0]
    assert float(overlap.min()) > ((1 - 2 * jitter) / (1 + 2 * jitter)) ** 2
    # An edge is off by half of the greatest shift on average: two edges an axis, two axes.
    assert 1 - 2.5 * jitter < float(overlap.mean()) < 1 - jitter
    assert float(boxes.min()) >= 0 and float(boxes.max()) <= 32
    extents = (exact[:, 2:] - exact[:, :2]).repeat(1, 2)
    shifts = ((boxes - exact) / extents)[(boxes > 0).all(1) & (boxes < 32).all(1)]
    assert float(shifts.abs().max()) <= jitter + 1e-5
    assert float(shifts.mean().abs()) < 0.05 * jitter


def test_overlapping_boxes(noisy):
    shown, regions = noisy
    seen = {}
    for i, k, place in shown:
        seen.setdefault((i, k), []).append(place)
    twice = {pair: p for pair, p in seen.items() if len(p) == 2}
    assert max(map(len, seen.values())) == 2
    assert within(len(twice) / len(seen), 0.4, len(seen))
    pairs = torch.stack([regions.boxes[i, places] for (i, _), places in twice.items()])
    overlap = box_iou(pairs[:, :1], pairs[:, 1:])[:, 0, 0]
    assert float(overlap.min()) > (0.4 / 1.6) ** 2 and float(overlap.max()) < 1
    assert float(overlap.mean()) < 0.8


def test_second_boxes_lie_beside_the_truth_and_are_less_sure(truth):
    shown, regions = told(ToyDetector(overlapping=1.0), scenes(100, image_size=32))
    where, exact = places(shown), true_boxes(truth, shown)
    extents = (exact[:, 2:] - exact[:, :2]).repeat(1, 2)
    shifts = ((regions.boxes[where] - exact) / extents).abs()
    second = shifts.any(1)
    assert int(second.sum()) * 2 == len(shown)
    assert 0.2 < float(shifts.max()) <= 0.25 + 1e-5
    sure = regions.confidences[where]
    assert float(sure[second].max()) <= 0.775 < float(sure[~second].max())


def test_the_most_confident_regions_come_first_and_doubtful_ones_are_less_so(noisy, truth):
    shown, regions = noisy
    for i in range(200):
        sure = regions.confidences[i][regions.mask[i]]
        assert torch.equal(sure, sure.sort(descending=True).values)
    where = places(shown)
    sure, labels = regions.confidences[where], regions.classes[where]
    wrong = labels != torch.tensor([truth[i, k][1] for i, k, _ in shown])
    assert float(sure.min()) >= 0.6 and float(sure.max()) <= 0.95
    assert float(sure[wrong].max()) <= 0.775 < float(sure[~wrong].max())


def test_distributions_say_what_the_labels_say_and_more(noisy, truth):
    shown, regions = noisy
    soft, where = regions.class_distributions, places(shown)
    torch.testing.assert_close(soft[regions.mask].sum(1), torch.ones(int(regions.mask.sum())))
    assert torch.equal(soft[..., 1:].argmax(-1)[where], regions.classes[where])
    torch.testing.assert_close(soft[..., 1:].amax(-1)[where], regions.confidences[where])
    # Where the label is wrong, the second place is right far more often than by chance (1 in 7).
    true = torch.tensor([truth[i, k][1] for i, k, _ in shown])
    second = soft[..., 1:][where].argsort(1, descending=True)[:, 1]
    wrong = regions.classes[where] != true
    assert float((second == true)[wrong].float().mean()) > 0.5


def test_certain_detectors_have_one_hot_distributions(data):
    regions = ToyDetector(confidence=(1.0, 1.0)).detect(data, range(50))
    assert set(regions.class_distributions.unique().tolist()) == {0.0, 1.0}


# ---------------------------------------------------------------------------------- same every time


def test_a_scene_gives_the_same_alone_and_among_others(data, noisy):
    chosen = [500, 3, -1, 3]
    together, whole = NOISY.detect(data, chosen), noisy[1]
    alone = collate_regions([NOISY.detect(data, [i]) for i in chosen])
    width = together.mask.shape[1]
    for name in ("boxes", "mask", "classes", "class_distributions", "attributes", "confidences"):
        assert torch.equal(getattr(together, name), getattr(alone, name))
        assert torch.equal(getattr(together, name), getattr(whole, name)[chosen][:, :width])
    torch.testing.assert_close(together.features, alone.features, atol=1e-5, rtol=1e-5)
    assert torch.equal(NOISY.objects(data, chosen), NOISY.objects(data)[chosen][:, :width])


def test_seeds_differ_and_rates_do_not_stir_each_other(data):
    boxes = NOISY.detect(data, range(20)).boxes
    other = replace(NOISY, seed=1).detect(data, range(20)).boxes
    assert boxes.shape != other.shape or not torch.equal(boxes, other)
    seen = [ToyDetector(missed=rate).objects(data) for rate in (0.1, 0.5)]
    kept = [{(i, k) for i, row in enumerate(s.tolist()) for k in row if k >= 0} for s in seen]
    assert kept[1] < kept[0]


def test_splits_get_errors_of_their_own():
    detector, pairs = ToyDetector(missed=0.5), {"num_objects": (2, 2)}
    found = [detector.objects(scenes(60, s, **pairs)) for s in ("train", "validation")]
    assert not torch.equal(*[(objects >= 0).sum(1) for objects in found])


@pytest.mark.parametrize("layout", ["free", "left_right"])
def test_all_layouts_and_sizes(layout):
    data = scenes(12, image_size=64, layout=layout)
    regions = ToyDetector(feature_dim=17).detect(data)
    assert regions.features.shape[2] == 17
    assert regions.num_regions.tolist() == [len(s.objects) for s in data.scenes]


# ------------------------------------------------------------------------------------the features


def test_features_come_from_the_pixels_of_the_box(data):
    """Wrong labels leave them alone; another box changes them."""
    right, wrong = ToyDetector(), ToyDetector(wrong_class=1.0, wrong_attribute=1.0)
    order = [d.objects(data, [5])[0].argsort() for d in (right, wrong)]
    features = [d.detect(data, [5]).features[0] for d in (right, wrong)]
    torch.testing.assert_close(features[0][order[0]], features[1][order[1]])
    moved = ToyDetector(jitter=0.2).detect(data, [5])
    assert not torch.allclose(features[0], moved.features[0])
    assert (features[0] >= 0).all() and features[0].any()


def probe(features, labels):
    """A least-squares classifier's share of right answers on the second half."""
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half, targets = len(inputs) // 2, torch.nn.functional.one_hot(labels).double()
    weights = torch.linalg.lstsq(inputs[:half], targets[:half]).solution
    return float(((inputs[half:] @ weights).argmax(1) == labels[half:]).double().mean())


def test_features_know_shape_color_and_texture_but_not_the_place():
    regions = ToyDetector().detect(scenes(600))
    features = regions.features[regions.mask]
    color, texture = regions.attributes[regions.mask].unbind(1)
    assert probe(features, regions.classes[regions.mask]) > 0.85
    assert probe(features, color) > 0.85
    assert probe(features, texture - len(COLORS)) > 0.7
    third = (3 * regions.boxes[regions.mask][:, ::2].mean(1) / 64).long()
    chance = float(third.bincount().max()) / len(third)
    assert probe(features, third) < chance + 0.06


# -----------------------------------------------------------------------------------wrong settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"missed": 1.5}, "missed is 1.5; it must be between 0 and 1"),
        ({"wrong_class": True}, "wrong_class is True"),
        ({"wrong_attribute": "0.1"}, "wrong_attribute is '0.1'"),
        ({"overlapping": float("nan")}, "overlapping is nan"),
        ({"jitter": 0.5}, "jitter is 0.5; it must be at least 0 and below 0.5"),
        ({"confidence": (0.5, 0.9)}, r"confidence is \(0.5, 0.9\)"),
        ({"confidence": (0.9, 0.8)}, r"confidence is \(0.9, 0.8\)"),
        ({"feature_dim": 0}, "feature_dim is 0; it must be a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more"),
    ],
)
def test_wrong_settings_are_refused_in_words(unchecked, settings, message):
    with pytest.raises(ValueError, match=message):
        ToyDetector(**settings)


def test_wrong_indices(data):
    with pytest.raises(IndexError, match="index 700 is out of range"):
        ToyDetector().detect(data, [NUMBER])
