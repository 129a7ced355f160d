import pytest
import torch
from torch import nn

from mmlab.tasks.classification import accuracy, emoji_images, predict, scene_images


class Always(nn.Module):
    """Names one class, whatever it sees."""

    def __init__(self, number, num_classes):
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(number), num_classes).float())

    def forward(self, images):
        assert not self.training
        assert images.min() >= -1 and images.max() <= 1
        return self.logits.expand(len(images), -1)


def test_the_commonest_class_has_the_accuracy_of_the_baseline():
    data = emoji_images(48, vendors="fluent")
    commonest = int(data.labels.bincount().argmax())
    result = accuracy(Always(commonest, len(data.classes)), data)
    assert result.accuracy == pytest.approx(result.commonest_class)
    assert (result.num_images, result.num_classes) == (len(data), 9)


def test_predictions_come_in_the_order_of_the_images():
    class MeanColor(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return images.mean(dim=(2, 3)) * self.scale

    data = scene_images(32, num_images=10)
    model = MeanColor().train()
    expected = data.dataset.images().float().mean(dim=(2, 3)) / 127.5 - 1
    torch.testing.assert_close(predict(model, data, batch_size=3), expected)
    assert model.training


def test_an_unaugmented_batch_is_the_images():
    data = emoji_images(48, vendors="noto")
    rows = torch.tensor([5, 2, 9])
    batch = data.batch(rows, slice(1, 3), torch.Generator())
    assert torch.equal(
        ((batch["images"] + 1) * 127.5).round().to(torch.uint8), data.dataset.images([2, 9])
    )
    assert torch.equal(batch["labels"], data.labels[[2, 9]])


def test_augmented_images_differ_and_follow_the_generator():
    data = emoji_images(48, vendors="noto", augment=True)
    rows = torch.arange(32)
    one, again, other = (
        data.batch(rows, slice(None), torch.Generator().manual_seed(s))["images"] for s in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_about_half_of_the_images_are_flipped(monkeypatch):
    monkeypatch.setattr("mmlab.tasks.classification.CROP_SCALE", (1.0, 1.0))
    monkeypatch.setattr("mmlab.tasks.classification.crop_and_resize", lambda images, *_: images)
    data = emoji_images(48, vendors="noto", augment=True)
    rows = torch.arange(200)
    batch = data.batch(rows, slice(None), torch.Generator().manual_seed(0))["images"]
    plain = data.dataset.images(rows).float() / 127.5 - 1
    same = torch.isclose(batch, plain, atol=1e-6).all(dim=(1, 2, 3))
    flipped = torch.isclose(batch, plain.flip(-1), atol=1e-6).all(dim=(1, 2, 3))
    assert (same | flipped).all()
    assert 60 < (~same).sum() < 110
