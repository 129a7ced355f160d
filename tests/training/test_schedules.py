import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mmlab.training.run import read_metrics, run
from mmlab.training.schedules import rate_factor, set_rate
from tests.training.tiny import TINY


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


def test_cosine_with_an_end_agrees_with_torch():
    """At a rate of 2 down to 0.5, as ``eta_min``."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.5)
    for step in range(51):
        assert 2 * rate_factor("cosine", step, 50, 0, 0.25) == pytest.approx(
            theirs.get_last_lr()[0]
        )
        optimizer.step(), theirs.step()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential"])
def test_decays_go_from_one_to_their_end(schedule):
    factors = [rate_factor(schedule, t, 100, 10, 0.1) for t in range(10, 101)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(factors))
    # The way up is the same, whatever the end.
    assert rate_factor(schedule, 4, 100, 10, 0.1) == 0.5


def test_exponential_falls_by_the_same_factor_each_step():
    """BLIP's 0.9 an epoch, here of 5 steps, over 4 epochs."""
    factors = [rate_factor("exponential", t, 20, 0, 0.9**4) for t in range(20)]
    assert factors[::5] == pytest.approx([0.9**epoch for epoch in range(4)])
    assert [b / a for a, b in pairwise(factors)] == pytest.approx([0.9 ** (1 / 5)] * 19)


def test_constant_stays():
    assert rate_factor("constant", 99, 100, 10) == 1


def test_more_warmup_than_steps_is_only_warmup():
    assert rate_factor("cosine", 4, 5, 10) == pytest.approx(0.5)
    assert math.isfinite(rate_factor("cosine", 5, 5, 5))


def test_unknown_schedules_are_named():
    with pytest.raises(
        ValueError, match="one of cosine, linear, exponential, constant, got 'step'"
    ):
        rate_factor("step", 0, 1, 0)


def test_all_groups_get_the_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]


def test_a_run_s_rate_goes_to_its_end(tmp_path):
    """Two steps up, then in a line from 2e-3 to 1e-3, which a seventh would take."""
    run(replace(TINY, schedule="linear", end_lr=1e-3), tmp_path)
    found = [line["lr"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == pytest.approx([1e-3, 2e-3, 2e-3, 1.75e-3, 1.5e-3, 1.25e-3])
