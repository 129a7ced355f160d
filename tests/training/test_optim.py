from dataclasses import replace

import pytest
import torch

from mmlab.models.vit import VIT_MINI, ViT
from mmlab.training.optim import make_optimizer, parameter_groups

SMALL = replace(VIT_MINI, dim=32, depth=1, num_heads=2, mlp_dim=64)


def names(model, group):
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_every_trainable_parameter_is_in_one_group():
    model = ViT(replace(SMALL, positions="sincos2d"))
    decayed, others = (names(model, g) for g in parameter_groups(model, 0.1))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert decayed | others == trainable and not decayed & others
    assert "position_embedding" not in trainable


def test_only_matrices_and_kernels_decay():
    model = ViT(replace(SMALL, distilled=True))
    decayed, others = (names(model, g) for g in parameter_groups(model, 0.1))
    assert {"head.weight", "blocks.0.mlp.fc1.weight", "patch_embedding.projection.weight"} < decayed
    assert {"class_token", "distillation_token", "position_embedding"} < others
    assert all(n.endswith("weight") and "norm" not in n for n in decayed)
    assert {n for n in decayed | others if n.endswith("bias")} < others


def test_without_gradient_only_decayed_parameters_shrink():
    model = ViT(SMALL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decayed = names(model, optimizer.param_groups[0])
    for name, p in model.named_parameters():
        expected = before[name] * (0.95 if name in decayed else 1)
        torch.testing.assert_close(p.detach(), expected)


def test_the_fused_step_is_the_plain_one():
    torch.manual_seed(0)
    model = ViT(SMALL)
    twin = ViT(SMALL)
    twin.load_state_dict(model.state_dict())
    fused = make_optimizer(model, 1e-3, 0.1)
    plain = torch.optim.AdamW(parameter_groups(twin, 0.1), lr=1e-3, foreach=False)
    assert fused.defaults["fused"]
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    fused.step(), plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["text.position_embedding.weight", "query_tokens", "mask_token"])
def test_learned_inputs_do_not_decay(name):
    from mmlab.training.optim import decays

    assert not decays(name, torch.nn.Parameter(torch.zeros(3, 4)))
