from dataclasses import replace

import pytest
import torch

from mmlab.models.vit import VIT_MINI, ViT, ViTClassification

SMALL = replace(VIT_MINI, dim=32, depth=1, num_heads=2, mlp_dim=64, stem="linear")


def make(label_smoothing):
    torch.manual_seed(0)
    model = ViTClassification(ViT(SMALL), label_smoothing)
    torch.nn.init.normal_(model.network.head.weight)
    images, labels = torch.randn(4, 3, 48, 48), torch.tensor([0, 3, 9, 3])
    return model, {"images": images, "labels": labels}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing):
    model, batch = make(smoothing)
    log_p = model.network(batch["images"]).log_softmax(-1)
    share = torch.full((4, 10), smoothing / 10)
    share[range(4), batch["labels"]] += 1 - smoothing
    expected = -(share * log_p).sum(-1).mean()
    losses = model.losses(batch)
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(losses["cross_entropy"], expected)


def test_there_is_nothing_but_the_network():
    model, batch = make(0.0)
    assert all(key.startswith("network.") for key in model.state_dict())
    model.losses(batch)["cross_entropy"].backward()
    assert all(p.grad is not None for p in model.parameters())
