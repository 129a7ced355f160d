import math

import pytest
import torch

from mmlab.objectives.matching import (
    images_of_pairs,
    matching_loss,
    own_or_other,
    sample_hard_negatives,
)


def diagonal(size):
    return torch.eye(size, dtype=torch.bool)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_they_are_drawn_by_the_softmax(floor):
    similarity = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    belongs = torch.tensor([[True, False, False, False]])
    weights = (similarity.softmax(-1) + floor)[0, 1:]
    generator = torch.Generator().manual_seed(0)
    drawn = sample_hard_negatives(
        similarity.expand(40_000, 4), belongs.expand(40_000, 4), generator, floor
    )
    shares = drawn.bincount(minlength=4) / 40_000
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], weights / weights.sum(), atol=0.01, rtol=0)


def test_what_belongs_is_never_drawn_however_similar():
    similarity = 1000 * torch.eye(6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = sample_hard_negatives(similarity, diagonal(6), generator)
        assert (drawn != torch.arange(6)).all()


def test_scores_far_below_the_best_do_not_underflow():
    # In probabilities both wrong items would be 0, and multinomial would fail.
    similarity = torch.tensor([[0.0, -500.0, -505.0]])
    drawn = [
        sample_hard_negatives(
            similarity, torch.tensor([[True, False, False]]), torch.Generator().manual_seed(seed)
        ).item()
        for seed in range(300)
    ]
    assert set(drawn) <= {1, 2} and drawn.count(1) > 290


def test_the_same_generator_draws_the_same():
    similarity = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    first, second = (
        sample_hard_negatives(similarity, diagonal(8), torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_no_gradient_flows_through_the_draw():
    similarity = torch.randn(4, 4, requires_grad=True)
    assert not sample_hard_negatives(similarity, diagonal(4)).requires_grad


def test_a_query_to_which_all_belong_is_refused():
    belongs = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ValueError, match="no wrong item for query 1: all 2 belong"):
        sample_hard_negatives(torch.zeros(2, 2), belongs)


def test_the_second_output_means_a_match():
    sure = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert matching_loss(sure, torch.tensor([True, False])) < 1e-6
    assert matching_loss(sure, torch.tensor([False, True])) > 17
    even = matching_loss(torch.zeros(3, 2), torch.tensor([True, False, False]))
    assert even.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("of_all", [False, True])
def test_every_pair_finds_its_image(of_all):
    generator = torch.Generator().manual_seed(0)
    own, others = torch.randn(2, 3, 2, 4, generator=generator).unbind(0)
    candidates = torch.cat([others, own]) if of_all else own
    wrong = torch.tensor([4, 0, 4] if of_all else [1, 0, 1])
    images, rows = images_of_pairs(own, candidates, wrong)
    assert torch.equal(images[rows], torch.cat([own, candidates[wrong], own]))
    assert len(images) == (6 if of_all else 3)


def test_rows_are_exchanged_and_the_shorter_is_padded():
    own, other = torch.ones(3, 2, 4), torch.full((3, 5, 4), 2.0)
    mixed = own_or_other(torch.tensor([True, False, True]), own, other)
    assert torch.equal(mixed[1], other[1])
    assert torch.equal(mixed[0, :2], own[0]) and not mixed[0, 2:].any()
    ids = own_or_other(torch.tensor([False]), torch.ones(1, 3).long(), torch.ones(1, 1).long())
    assert ids.tolist() == [[1, 0, 0]]
