from types import SimpleNamespace

import pytest

from mmlab.models.checks import check_positive


@pytest.mark.parametrize("value", [0.0, -1, float("nan"), float("inf"), "small", None, True])
def test_only_a_finite_number_above_zero_is_positive(value):
    with pytest.raises(ValueError, match=rf"^norm_eps must be positive, got {value!r}$"):
        check_positive(SimpleNamespace(norm_eps=value), "norm_eps")


def test_positive_numbers_pass():
    check_positive(SimpleNamespace(norm_eps=1e-6, lr=2), "norm_eps", "lr")
