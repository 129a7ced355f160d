from dataclasses import replace

import pytest
import torch

from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.models.albef import ALBEF
from mmlab.models.blip import BLIP
from mmlab.models.blip2 import BLIP2
from mmlab.tasks.reranking import (
    NO_CANDIDATE,
    Reranker,
    rerank,
    reranked_retrieval,
    reranked_scores,
)
from mmlab.tasks.retrieval import ranks_of_scores
from tests.models.tiny import TINY_ALBEF, TINY_BLIP, TINY_BLIP2


def test_the_candidates_are_scored_and_no_other():
    similarity = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.3, 0.1]])
    asked = []

    def score(queries, items):
        asked.extend(zip(queries.tolist(), items.tolist(), strict=True))
        return (10 * queries + items).float()

    none = NO_CANDIDATE
    expected = torch.tensor([[0.0, none, 2.0], [10.0, 11.0, none]])
    assert torch.equal(rerank(similarity, 2, score, batch_size=3), expected)
    assert sorted(asked) == [(0, 0), (0, 2), (1, 0), (1, 1)]
    # BLIP adds the similarity.
    added = rerank(similarity, 2, score, similarity_weight=1.0)
    torch.testing.assert_close(added, torch.tensor([[0.9, none, 2.8], [10.2, 11.3, none]]))
    assert (rerank(similarity, 99, score) > none).all()
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rerank(similarity, 0, score)


@pytest.mark.parametrize(
    ("kind", "config", "weight"),
    [(ALBEF, TINY_ALBEF, 0.0), (BLIP, TINY_BLIP, 1.0), (BLIP2, TINY_BLIP2, 1.0)],
)
def test_scores_are_the_matching_heads(kind, config, weight):
    """BLIP and BLIP-2 add the cosine, which is that of the likest query."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    images = torch.randn(4, 3, 16, 16)
    valid = torch.arange(6) < torch.tensor([6, 4, 5, 6, 3])[:, None]
    ids = torch.randint(4, 50, (5, 6)).where(valid, 0)
    to_texts, to_images = reranked_scores(model, images, ids, k=2, batch_size=3)
    assert to_texts.shape == (4, 5) and to_images.shape == (5, 4)
    cosines = model.encode_image(images) @ model.encode_text(ids).T
    if kind is BLIP2:
        cosines = cosines.amax(1)
    for table, similar in ((to_texts, cosines), (to_images, cosines.T)):
        best = similar.topk(2, dim=1).indices
        assert ((table > NO_CANDIDATE).sum(1) == 2).all()
        assert (table.gather(1, best) > NO_CANDIDATE).all()
    for image in range(4):
        for text in range(5):
            features = model(ids[[text]], images[[image]])
            fused = features.grounded if kind is BLIP else features.fused
            expected = model.matching_logits(fused)[0, 1] + weight * cosines[image, text]
            for found in (to_texts[image, text], to_images[text, image]):
                if found > NO_CANDIDATE:
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    image_ids, text_ids = torch.arange(4), torch.tensor([0, 1, 2, 3, 3])
    result = reranked_retrieval(model, images, ids, image_ids, text_ids, k=5)
    to_texts, _ = reranked_scores(model, images, ids, k=5)
    ranks = ranks_of_scores(to_texts, image_ids[:, None] == text_ids)
    assert result.image_to_text.recall[1] == (ranks == 1).float().mean().item()
    assert result.num_texts == 5


ANSWERS = ("yes", "no", "two red", "two blue", "no two")


@pytest.mark.parametrize(("kind", "config"), [(ALBEF, TINY_ALBEF), (BLIP, TINY_BLIP)])
def test_answers_are_as_likely_as_they_are_written(kind, config):
    """Each answer's words, one after the other, by the decoder alone."""
    tokenizer = train_wordpiece(["is it yes no two red blue"], 60, min_count=1)
    tokenizer = tokenizer.add_special_tokens("[DEC]", "[ENC]")
    torch.manual_seed(0)
    network = kind(replace(config, heads=("answers",), vocab_size=tokenizer.vocab_size)).eval()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    model = Reranker(network, tokenizer, ANSWERS)
    images, questions = torch.randn(3, 3, 16, 16), ["is it red", "is it two", "is it"]
    found = model.answer(images, questions)
    assert found.shape == (3, 5)
    for row, question in enumerate(questions):
        ids = tokenizer([question], add_last=kind is BLIP).input_ids
        features = network(ids, images[[row]])
        read = features.fused if kind is ALBEF else features.grounded
        likelihoods = []
        for answer in ANSWERS:
            written = tokenizer([answer]).input_ids
            logits = network.answer_logits(written, read, torch.ones_like(ids).bool())
            words = logits.log_softmax(-1)[0, :-1]
            likelihoods.append(words.gather(1, written[0, 1:, None]).sum())
        torch.testing.assert_close(found[row], torch.stack(likelihoods).softmax(0))
    with pytest.raises(ValueError, match="no 'answers' head"):
        Reranker(kind(config), tokenizer).answer(images, questions)
