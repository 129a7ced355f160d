import pytest
import torch

from mmlab.datasets.checks import check_choice, check_image_size, check_rows, not_allowed


def test_rows_count_from_either_end():
    assert check_rows(None, 3).tolist() == [0, 1, 2]
    assert check_rows([0, -1, 2], 3).tolist() == [0, 2, 2]
    assert check_rows(torch.tensor([1, -3]), 3).tolist() == [1, 0]
    assert check_rows(range(2), 3).dtype == torch.int64
    assert check_rows([], 3).tolist() == []


@pytest.mark.parametrize("index", [3, -4])
def test_rows_out_of_range(index):
    with pytest.raises(IndexError, match=f"index {index} is out of range for 3 images"):
        check_rows([0, index], 3)


@pytest.mark.parametrize("mask", [[True, False, True], torch.tensor([True, False, True])])
def test_rows_are_not_masks(mask):
    with pytest.raises(ValueError, match="mask of booleans"):
        check_rows(mask, 3)


def test_rows_are_whole_numbers():
    with pytest.raises(TypeError):
        check_rows([0.5], 3)


def test_the_nearest_match_is_offered_only_when_it_is_near():
    assert not_allowed("split", "tran", ("train", "test")) == (
        "split is 'tran' (did you mean 'train'?); it must be one of train, test"
    )
    assert "did you mean" not in not_allowed("split", "xyz", ("train", "test"))
    assert check_choice("split", "test", ("train", "test")) == "test"
    with pytest.raises(ValueError, match="split is 7; it must be one of train, test"):
        check_choice("split", 7, ("train", "test"))


@pytest.mark.parametrize("size", [0, -1, 65, 3.5, True, "32"])
def test_image_sizes(size):
    assert check_image_size(64, 64) == 64
    with pytest.raises(ValueError, match="it must be a whole number, 1 to 64"):
        check_image_size(size, 64)
