import pytest
import torch

from mmlab.tasks.retrieval import ranks, ranks_of_scores, retrieval, summarize


def naive_rank(scores, right):
    """Sort, right ones after wrong ones of the same score, and count."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i in right))
    return 1 + min(order.index(i) for i in right)


def test_ranks_equal_a_sort():
    generator = torch.Generator().manual_seed(0)
    queries, items = (
        torch.randn(30, 4, generator=generator),
        torch.randn(50, 4, generator=generator),
    )
    query_ids = torch.randint(8, (30,), generator=generator)
    item_ids = torch.arange(50) % 8
    found = ranks(queries, items, query_ids, item_ids, chunk_size=7)
    scores = queries @ items.T
    for i in range(30):
        right = {j for j in range(50) if item_ids[j] == query_ids[i]}
        assert found[i] == naive_rank(scores[i].tolist(), right)


def test_by_hand():
    # Two images, three captions; the second image has two of them.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.1, 0.0], [0.9, 0.2], [0.0, 0.5]])
    result = retrieval(images, texts, torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    # Image 0 scores 0.1, 0.9, 0.0: its caption comes second. Image 1: 0, 0.2, 0.5: first.
    assert result.image_to_text.recall == {1: 0.5, 5: 1.0, 10: 1.0}
    assert result.image_to_text.median_rank == 1.5
    # Captions 0 and 2 find their image at once, caption 1 (0.9 against 0.2) second.
    assert result.text_to_image.recall[1] == pytest.approx(2 / 3)
    assert (result.num_images, result.num_texts) == (2, 3)
    figures = result.figures()
    assert list(figures) == ["image_to_text", "text_to_image", "num_images", "num_texts"]
    assert list(figures["image_to_text"]) == ["r@1", "r@5", "r@10", "median_rank"]


def test_equal_scores_find_nothing():
    ids = torch.arange(20)
    result = retrieval(torch.ones(20, 3), torch.ones(20, 3), ids, ids)
    assert result.image_to_text.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert result.image_to_text.median_rank == 20


def test_perfect_features_find_everything():
    ids = torch.arange(20)
    result = retrieval(torch.eye(20), torch.eye(20), ids, ids)
    assert result.text_to_image.recall[1] == 1 and result.text_to_image.median_rank == 1


def test_random_features_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 1000, 16, generator=generator)
    result = retrieval(images, texts, torch.arange(1000), torch.arange(1000))
    assert 400 < result.image_to_text.median_rank < 600
    assert result.image_to_text.recall[10] < 0.03


def test_the_order_of_the_items_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(2, 40, 8, generator=generator)
    ids = torch.arange(40) // 2
    order = torch.randperm(40, generator=generator)
    found = ranks(queries, items[order], ids, ids[order])
    assert torch.equal(found, ranks(queries, items, ids, ids))


def test_ranks_of_a_table_of_scores():
    scores = torch.tensor([[0.3, 0.9, 0.1], [0.5, 0.5, 0.2]])
    belongs = torch.tensor([[True, False, False], [False, True, False]])
    assert ranks_of_scores(scores, belongs).tolist() == [2, 2]


def test_the_median_of_an_even_number_lies_between():
    assert summarize(torch.tensor([1, 3, 5, 100])).median_rank == 4


def test_who_belongs_to_nothing_is_named():
    features = torch.eye(3)
    with pytest.raises(ValueError, match="1 of 3 images belong to nothing, the first is number 2"):
        retrieval(features, features[:2], torch.arange(3), torch.arange(2))
    with pytest.raises(ValueError, match="1 of 3 texts belong to nothing"):
        retrieval(features[:2], features, torch.arange(2), torch.arange(3))
