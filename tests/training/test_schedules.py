import math
from itertools import pairwise

import pytest
import torch

from mmlab.training.schedules import rate_factor, set_rate


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_warmup_is_a_line_up_to_one(schedule):
    factors = [rate_factor(schedule, t, 100, 10) for t in range(10)]
    assert factors == pytest.approx([0.1 * (t + 1) for t in range(10)])
    assert rate_factor(schedule, 10, 100, 10) == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decays_fall_steadily_to_nearly_zero(schedule):
    factors = [rate_factor(schedule, t, 100, 10) for t in range(10, 100)]
    assert all(a > b > 0 for a, b in pairwise(factors))
    assert rate_factor(schedule, 100, 100, 10) == pytest.approx(0)
    assert rate_factor(schedule, 55, 100, 10) == pytest.approx(0.5)


def test_cosine_agrees_with_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert rate_factor("cosine", step, 50, 0) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step(), theirs.step()


def test_constant_stays():
    assert rate_factor("constant", 99, 100, 10) == 1


def test_more_warmup_than_steps_is_only_warmup():
    assert rate_factor("cosine", 4, 5, 10) == pytest.approx(0.5)
    assert math.isfinite(rate_factor("cosine", 5, 5, 5))


def test_unknown_schedules_are_named():
    with pytest.raises(ValueError, match="one of cosine, linear, constant, got 'step'"):
        rate_factor("step", 0, 1, 0)


def test_all_groups_get_the_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]
