import pytest
from scipy import stats

from mmlab.league.intervals import estimate, student_t, welch

FIRST, SECOND = [0.61, 0.64, 0.70], [0.50, 0.58, 0.49, 0.55]


@pytest.mark.parametrize("degrees", [1, 1.7, 2, 3.33, 9, 40, 500])
def test_the_quantiles_are_those_of_scipy(degrees):
    assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-6)


def test_an_interval_as_computed_by_hand():
    # Standard deviation 0.1; two degrees of freedom: 4.3027 · 0.1 / √3.
    about = estimate([0.5, 0.6, 0.7])
    assert (about.mean, about.low, about.high) == pytest.approx((0.6, 0.35159, 0.84841), abs=1e-5)
    assert about.num_seeds == 3


def test_one_seed_has_no_interval():
    about = estimate([0.5])
    assert (about.mean, about.low, about.high, about.has_interval) == (0.5, None, None, False)
    assert not about.above(-1) and not about.below(1)


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="values"):
        estimate([])


def test_two_groups_as_in_scipy():
    theirs = stats.ttest_ind(FIRST, SECOND, equal_var=False).confidence_interval(0.95)
    ours = welch(FIRST, SECOND)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    assert ours.num_seeds == 3


def test_a_group_of_one_gives_a_difference_without_interval():
    about = welch(FIRST, [0.5])
    assert about.mean == pytest.approx(0.15) and not about.has_interval


def test_groups_without_spread():
    about = welch([0.6, 0.6], [0.5, 0.5])
    assert about.low == about.high == pytest.approx(0.1)


def test_rounding_is_no_difference():
    about = estimate([0.1 + 0.2 - 0.3] * 3)
    assert about.mean > 0 and not about.above(0) and not about.below(0)


def test_above_and_below_need_the_whole_interval():
    about = estimate([0.5, 0.6, 0.7])
    assert about.above(0.35) and not about.above(0.36)
    assert about.below(0.85) and not about.below(0.84)
