"""Transport against UNITER's recorded plans, POT's exact solver, and what must always hold."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmlab.objectives.transport import (
    cosine_cost,
    ipot,
    sinkhorn,
    transport_distance,
    word_patch_alignment_loss,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "uniter_transport.safetensors")
SOLVERS = {
    "ipot": lambda cost, *masks, **settings: ipot(cost, *masks, **settings),
    "sinkhorn": lambda cost, *masks, **settings: sinkhorn(
        cost, *masks, regularization=settings.pop("beta", 0.5), **settings
    ),
}


def exact(cost, rows, columns):
    """The exact price by POT's network simplex, set by set."""
    ot = pytest.importorskip("ot")
    prices = []
    for i in range(len(cost)):
        part = cost[i][rows[i]][:, columns[i]].double().numpy()
        a, b = ([1 / n] * n for n in part.shape)
        prices.append(ot.emd2(a, b, part))
    return torch.tensor(prices, dtype=torch.float64)


def problem(batch=4, rows=7, columns=9, dim=5, seed=0, dtype=torch.float32):
    """Random tokens with padding at the end of some sets."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, rows, dim, generator=generator, dtype=dtype)
    y = torch.randn(batch, columns, dim, generator=generator, dtype=dtype)
    row_valid = (
        torch.arange(rows) < torch.tensor([rows, max(1, rows - 3), 1, rows - 1])[:batch, None]
    )
    column_valid = (
        torch.arange(columns) < torch.tensor([columns, 2, max(1, columns - 4), 1])[:batch, None]
    )
    return x, y, row_valid, column_valid


# Against the official code.


@pytest.mark.parametrize("iterations", [1, 5, 50, 500])
def test_plans_of_network_states_equal_uniters(iterations):
    words, regions = GOLDEN["outputs.ot_text_states"], GOLDEN["outputs.ot_region_states"]
    masks = [~GOLDEN[f"inputs.itm.ot_inputs.{kind}_pad"].bool() for kind in ("txt", "img")]
    cost = cosine_cost(words, regions, *masks)
    torch.testing.assert_close(cost, GOLDEN["outputs.ot_cost"], atol=1e-6, rtol=0)
    suffix = "" if iterations == 50 else f"_iter{iterations}"
    plan = ipot(cost, *masks, iterations=iterations)
    expected = GOLDEN[f"outputs.ot_plan{suffix}"].mT
    torch.testing.assert_close(plan, expected, atol=2e-6, rtol=1e-4)
    distance = transport_distance(plan, cost)
    torch.testing.assert_close(distance, GOLDEN[f"outputs.ot_distance{suffix}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("iterations", [1, 50, 2000])
def test_plans_in_float64_equal_uniters(iterations):
    masks = [~GOLDEN[f"inputs.ot_alone.{side}_pad"].bool() for side in "xy"]
    x, y = GOLDEN["inputs.ot_alone.x"], GOLDEN["inputs.ot_alone.y"]
    cost = cosine_cost(x, y, *masks)
    torch.testing.assert_close(cost, GOLDEN["outputs.ot_alone.cost"])
    plan = ipot(cost, *masks, iterations=iterations)
    torch.testing.assert_close(plan, GOLDEN[f"outputs.ot_alone.plan_iter{iterations}"].mT)
    if iterations == 2000:
        price = GOLDEN["outputs.ot_alone.exact_emd"]
        torch.testing.assert_close(transport_distance(plan, cost), price, atol=1e-6, rtol=0)


def test_the_loss_equals_uniters():
    masks = [~GOLDEN[f"inputs.itm.ot_inputs.{kind}_pad"].bool() for kind in ("txt", "img")]
    states = [GOLDEN["outputs.ot_text_states"], GOLDEN["outputs.ot_region_states"]]
    matched = GOLDEN["inputs.itm.targets"].bool()
    loss = word_patch_alignment_loss(*states, matched, *masks)
    torch.testing.assert_close(loss, GOLDEN["outputs.ot_loss"], atol=1e-5, rtol=0)


# Against exact solutions.


def test_ipot_tends_to_the_exact_price_at_any_beta():
    x, y, *masks = problem(dtype=torch.float64)
    cost = cosine_cost(x, y, *masks)
    price = exact(cost, *masks)
    for beta in (0.1, 0.5, 2.0):
        found = transport_distance(ipot(cost, *masks, beta=beta, iterations=20_000), cost)
        torch.testing.assert_close(found, price, atol=1e-4, rtol=0)


def test_sinkhorn_tends_to_the_exact_price_as_the_smoothing_goes():
    x, y, *masks = problem(dtype=torch.float64)
    cost = cosine_cost(x, y, *masks)
    price = exact(cost, *masks)
    errors = [
        (transport_distance(sinkhorn(cost, *masks, r, 5000), cost) - price).max().item()
        for r in (1.0, 0.1, 0.01)
    ]
    assert errors[0] > errors[1] > errors[2] > -1e-9
    assert errors[2] < 1e-3 < errors[0]


def test_ipot_is_nearer_than_sinkhorn_of_the_same_scale():
    x, y, *masks = problem(dtype=torch.float64)
    cost = cosine_cost(x, y, *masks)
    price = exact(cost, *masks)
    by_ipot = transport_distance(ipot(cost, *masks, beta=0.5), cost) - price
    by_sinkhorn = transport_distance(sinkhorn(cost, *masks, 0.5, 50), cost) - price
    assert by_ipot.abs().max() < 0.05 * by_sinkhorn.abs().max()


def test_sinkhorn_equals_pot():
    ot = pytest.importorskip("ot")
    cost = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, plan in enumerate(sinkhorn(cost, regularization=0.2, iterations=3000)):
        theirs = ot.sinkhorn([1 / 6] * 6, [1 / 8] * 8, cost[i].numpy(), 0.2, stopThr=1e-14)
        torch.testing.assert_close(plan, torch.from_numpy(theirs), atol=1e-9, rtol=0)


def test_two_words_and_two_patches_by_hand():
    # Staying costs 0, crossing 1: the exact plan is the diagonal, and costs nothing.
    cost = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    plan = ipot(cost, beta=0.5, iterations=1)[0]
    kept = 0.5 / (1 + torch.e**-2)
    torch.testing.assert_close(plan, torch.tensor([[kept, 0.5 - kept], [0.5 - kept, kept]]))
    # IPOT's t-th plan has exp(-2 t) where the first has exp(-2): it sharpens. Sinkhorn's stays.
    later = ipot(cost, beta=0.5, iterations=5)[0]
    assert later[0, 1].item() == pytest.approx(0.5 / (1 + torch.e**10), rel=1e-4)
    torch.testing.assert_close(sinkhorn(cost, regularization=0.5, iterations=5)[0], plan)


# What must always hold.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("beta", [0.5, 0.01])
def test_marginals_and_padding(solver, beta):
    x, y, *masks = problem()
    cost = cosine_cost(x, y, *masks)
    for iterations in (1, 50):
        plan = SOLVERS[solver](cost, *masks, beta=beta, iterations=iterations)
        rows, columns = (mask / mask.sum(1, keepdim=True) for mask in masks)
        torch.testing.assert_close(plan.sum(2), rows, atol=1e-6, rtol=1e-5)
        hidden = ~(masks[0][:, :, None] & masks[1][:, None])
        assert (plan[hidden] == 0).all() and (plan >= 0).all()
    if beta == 0.5:
        far = SOLVERS[solver](cost, *masks, beta=beta, iterations=2000)
        torch.testing.assert_close(far.sum(1), columns, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("fraction", [1.0, 0.1, 0.01, 1e-3])
def test_small_scales_are_stable_in_float32(solver, fraction):
    """Down to a thousandth of the mean cost, where exp(-C / beta) is 0 in float32."""
    x, y, *masks = problem(rows=12, columns=15)
    cost = cosine_cost(x, y, *masks)
    beta = fraction * cost.mean().item()
    plan = SOLVERS[solver](cost, *masks, beta=beta, iterations=200)
    assert torch.isfinite(plan).all()
    double = SOLVERS[solver](cost.double(), *masks, beta=beta, iterations=200)
    torch.testing.assert_close(plan.double(), double, atol=2e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_logarithms_give_the_same_plan(solver, monkeypatch):
    x, y, *masks = problem(dtype=torch.float64)
    cost = cosine_cost(x, y, *masks)
    plain = SOLVERS[solver](cost, *masks)
    monkeypatch.setattr("mmlab.objectives.transport.LARGEST_EXPONENT", -1.0)
    torch.testing.assert_close(SOLVERS[solver](cost, *masks), plain)


@pytest.mark.parametrize("solver", SOLVERS)
def test_permuting_tokens_permutes_the_plan(solver):
    x, y, *masks = problem()
    order, other = torch.randperm(7), torch.randperm(9)
    plan = SOLVERS[solver](cosine_cost(x, y, *masks), *masks)
    moved_masks = [masks[0][:, order], masks[1][:, other]]
    moved = SOLVERS[solver](cosine_cost(x[:, order], y[:, other], *moved_masks), *moved_masks)
    torch.testing.assert_close(moved, plan[:, order][:, :, other])


@pytest.mark.parametrize("solver", SOLVERS)
def test_more_padding_changes_nothing(solver):
    x, y, *masks = problem()
    plan = SOLVERS[solver](cosine_cost(x, y, *masks), *masks)
    generator = torch.Generator().manual_seed(9)
    longer = torch.cat([x, torch.randn(4, 3, 5, generator=generator)], 1)
    rows = torch.cat([masks[0], torch.zeros(4, 3, dtype=torch.bool)], 1)
    padded = SOLVERS[solver](cosine_cost(longer, y, rows, masks[1]), rows, masks[1])
    torch.testing.assert_close(padded[:, :7], plan)


def test_special_sets():
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    same = cosine_cost(x, x[:, torch.randperm(6)])
    assert transport_distance(ipot(same, iterations=500), same).abs().max() < 1e-4
    apart = cosine_cost(torch.eye(8)[None, :4], torch.eye(8)[None, 4:])
    torch.testing.assert_close(transport_distance(ipot(apart), apart), torch.ones(1))
    # Lengths do not matter, directions do.
    torch.testing.assert_close(cosine_cost(3 * x, x), cosine_cost(x, 0.1 * x), atol=1e-6, rtol=0)


# Gradients.


def test_no_gradient_through_the_plan_of_ipot():
    x, y, *masks = problem()
    x.requires_grad_()
    cost = cosine_cost(x, y, *masks)
    plan = ipot(cost, *masks)
    assert not plan.requires_grad
    (gradient,) = torch.autograd.grad(transport_distance(plan, cost).sum(), cost)
    torch.testing.assert_close(gradient, plan)


@pytest.mark.parametrize("regularization", [0.5, 0.005])
def test_gradients_through_sinkhorn_are_right(regularization):
    x, y, *masks = problem(batch=2, rows=3, columns=4, dtype=torch.float64)
    masks = [masks[0][:, :3], masks[1][:, :4]]
    cost = cosine_cost(x, y, *masks).requires_grad_()

    def plans(cost):
        return sinkhorn(cost, *masks, regularization=regularization, iterations=4)

    assert torch.autograd.gradcheck(plans, cost, atol=1e-5)


def test_the_sign_of_the_loss():
    """A step on a matched pair brings it nearer, on a mismatched pair it drives it apart."""
    x, y, *masks = problem(batch=2)
    for matched in (True, False):
        words = x.clone().requires_grad_()
        flags = torch.full((2,), matched)
        loss = word_patch_alignment_loss(words, y, flags, *masks)
        (gradient,) = torch.autograd.grad(loss, words)
        moved = word_patch_alignment_loss(words - 0.1 * gradient, y, flags, *masks)
        assert moved < loss
        assert (loss > 0) == matched


# Wrong use.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"beta": float("nan")}, "beta must be positive, got nan"),
        ({"iterations": 0}, "iterations must be positive, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ipot(torch.ones(1, 2, 2), **settings)


def test_a_set_of_padding_alone_is_refused():
    with pytest.raises(ValueError, match="column_valid must have a valid token in every set"):
        ipot(torch.ones(2, 2, 2), None, torch.tensor([[True, False], [False, False]]))
