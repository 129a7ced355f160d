"""Regions: what fits, what is refused in words, and collation."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from mmlab.datasets.regions import Regions, collate_regions

LABELS = ("classes", "class_distributions", "confidences", "attributes", "attribute_confidences")


def some(number=3, batch=1, seed=0, dim=6, **changes):
    """Random regions that carry everything."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, number)
    corners = 90 * torch.rand(*shape, 2, 2, generator=generator).sort(dim=2).values
    given = {
        "features": torch.randn(*shape, dim, generator=generator),
        "boxes": corners.flatten(2),
        "image_sizes": torch.tensor([[120.0, 90.0]]).repeat(batch, 1),
        "mask": torch.ones(*shape, dtype=torch.bool),
        "classes": torch.randint(0, 4, shape, generator=generator),
        "class_distributions": torch.rand(*shape, 5, generator=generator).softmax(-1),
        "confidences": torch.rand(*shape, generator=generator),
        "attributes": torch.randint(0, 9, (*shape, 2), generator=generator),
        "attribute_confidences": torch.rand(*shape, 2, generator=generator),
    }
    return Regions(**given | changes)


def bare(regions):
    return replace(regions, **dict.fromkeys(LABELS))


def tensors(regions):
    return {f.name: getattr(regions, f.name) for f in fields(regions)}


def test_collation_pads_with_zeros_and_keeps_everything():
    examples = [some(n, seed=n) for n in (2, 5, 1)]
    batch = collate_regions(examples)
    assert batch.num_regions.tolist() == [2, 5, 1] and len(batch) == 3
    for i, example in enumerate(examples):
        n = example.mask.shape[1]
        for name, value in tensors(batch).items():
            if name == "image_sizes":
                assert torch.equal(value[i], example.image_sizes[0])
                continue
            assert value.dtype == getattr(example, name).dtype
            assert torch.equal(value[i, :n], getattr(example, name)[0])
            assert not value[i, n:].any()


def test_batches_collate_like_their_images():
    parts = [some(2, seed=1), some(4, seed=2), some(3, seed=3)]
    nested = collate_regions([collate_regions(parts[:2]), parts[2]])
    for name, value in tensors(collate_regions(parts)).items():
        assert torch.equal(getattr(nested, name), value)


def test_what_nobody_tells_stays_none():
    batch = collate_regions([bare(some(2)), bare(some(3))])
    assert all(getattr(batch, name) is None for name in LABELS)


def test_collation_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no examples"):
        collate_regions([])
    with pytest.raises(ValueError, match="example 1 has no attributes"):
        collate_regions([some(), some(attributes=None, attribute_confidences=None)])
    with pytest.raises(ValueError, match=r"features of example 1 are 7 numbers, .* 0 are 6"):
        collate_regions([some(dim=6), some(dim=7)])


def test_selection_and_moving_keep_all_fields():
    batch = collate_regions([some(n, seed=n) for n in (2, 5, 1)])
    rows = torch.tensor([2, 0])
    for name, value in tensors(batch.select(rows)).items():
        assert torch.equal(value, getattr(batch, name)[rows])
    moved = batch.to("meta")
    assert all(value.device.type == "meta" for value in tensors(moved).values())
    assert bare(batch).to("cpu").classes is None


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        some().boxes = torch.zeros(1, 3, 4)


UPSIDE_DOWN = torch.tensor([[[0.0, 0, 9, 9], [5, 0, 4, 9], [0, 0, 9, 9]]])
EMPTY = torch.zeros(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.ones(1, 3)}, "mask must be booleans of shape"),
        ({"features": torch.ones(1, 4, 6)}, r"features has the shape \(1, 4, 6\).*\(1, 3, dim\)"),
        ({"features": torch.ones(1, 3, 6, dtype=torch.int64)}, "features must be floating-point"),
        ({"boxes": torch.zeros(1, 3, 5)}, r"boxes has the shape \(1, 3, 5\).*\(1, 3, 4\)"),
        ({"image_sizes": torch.ones(2)}, r"image_sizes has the shape \(2,\).*\(1, 2\)"),
        ({"image_sizes": torch.tensor([[9.0, 0.0]])}, "image_sizes must be positive"),
        ({"boxes": UPSIDE_DOWN}, r"box 1 of image 0 is \[5.0, 0.0, 4.0, 9.0\]; it must be"),
        ({"boxes": torch.full((1, 3, 4), torch.nan)}, "box 0 of image 0 is .nan"),
        ({"mask": EMPTY}, "image 0 of the batch has no region"),
        ({"mask": torch.tensor([[True, False, True]])}, "must be zero where the mask is False"),
        ({"classes": torch.ones(1, 3)}, "classes must be int64"),
        ({"classes": torch.tensor([[0, -1, 0]])}, "classes must be 0 or more, got -1"),
        ({"classes": torch.tensor([[0, 4, 0]])}, "classes must be below 4, .* got 4"),
        ({"class_distributions": torch.ones(1, 3, 5)}, "sum to 1 in each region"),
        ({"class_distributions": torch.full((1, 3, 5), torch.nan)}, "sum to 1 in each region"),
        ({"attributes": None}, "attribute_confidences need attributes of the same shape"),
        ({"attribute_confidences": torch.ones(1, 3, 1)}, "need attributes of the same shape"),
    ],
)
def test_wrong_values_are_refused_in_words(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        some(**changes)


@pytest.mark.parametrize("name", ["features", "boxes", *LABELS])
def test_padding_must_be_zero_in_every_field(name):
    batch = collate_regions([some(1), some(3)])
    value = getattr(batch, name).clone()
    value[0, 2] = 1
    with pytest.raises(ValueError, match=f"{name} must be zero where the mask is False"):
        replace(batch, **{name: value})


def test_half_precision_distributions_are_fine():
    soft = torch.rand(1, 3, 1601).softmax(-1).half()
    assert some(class_distributions=soft).class_distributions.dtype == torch.float16
