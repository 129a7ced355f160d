import math

import pytest
import torch
import torch.nn.functional as F

from mmlab.objectives.language_modeling import language_modeling_loss
from mmlab.objectives.masked_language import (
    IGNORED,
    distilled_masked_language_loss,
    mask_tokens,
    masked_language_loss,
    share_masked_loss,
)

MASK, VOCAB = 4, 1000


def captions(batch=2000, tokens=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, VOCAB, (batch, tokens), generator=generator)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, 0] = maskable[:, -2:] = False
    return ids, maskable, generator


def test_shares_of_the_chosen_and_of_their_fates():
    ids, maskable, generator = captions()
    masked, labels = mask_tokens(ids, maskable, MASK, VOCAB, generator=generator)
    chosen = labels != IGNORED
    assert chosen[maskable].float().mean().item() == pytest.approx(0.15, abs=0.01)
    became_mask = (masked == MASK)[chosen].float().mean().item()
    stayed = (masked == ids)[chosen].float().mean().item()
    assert became_mask == pytest.approx(0.8, abs=0.02)
    assert stayed == pytest.approx(0.1, abs=0.02)
    replaced = masked[chosen & (masked != MASK) & (masked != ids)]
    assert replaced.min() < 60 and replaced.max() > VOCAB - 60


def test_special_tokens_and_the_rest_stay_as_they_are():
    ids, maskable, generator = captions()
    masked, labels = mask_tokens(ids, maskable, MASK, VOCAB, 0.9, generator=generator)
    assert (labels[~maskable] == IGNORED).all() and torch.equal(masked[~maskable], ids[~maskable])
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])


def test_whole_words_are_chosen_together_and_as_often():
    ids, maskable, generator = captions()
    # [CLS], words of one, three, two, one and two pieces, [SEP], padding.
    words = torch.tensor([-1, 0, 1, 1, 1, 2, 2, 3, 4, 4, -1, -1]).expand(2000, 12)
    labels = mask_tokens(ids, maskable, MASK, VOCAB, word_ids=words, generator=generator).labels
    chosen = labels != IGNORED
    for word in range(5):
        pieces = chosen[:, words[0] == word]
        assert torch.equal(pieces.any(1), pieces.all(1))
        assert pieces[:, 0].float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert not chosen[:, words[0] == -1].any()
    both = chosen[:, 1] & chosen[:, 7]
    assert both.float().mean().item() == pytest.approx(0.15**2, abs=0.012)


def test_the_same_generator_masks_the_same():
    ids, maskable, _ = captions(batch=20)
    first, second = (
        mask_tokens(ids, maskable, MASK, VOCAB, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first.ids, second.ids) and torch.equal(first.labels, second.labels)
    other = mask_tokens(ids, maskable, MASK, VOCAB, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(first.ids, other.ids)


def test_a_text_loses_its_first_word_where_none_is_chosen():
    ids, maskable, generator = captions()
    maskable[:, 1] = False
    masked, labels = mask_tokens(
        ids, maskable, MASK, VOCAB, 0.01, generator=generator, at_least_one=True
    )
    chosen = labels != IGNORED
    assert chosen.any(1).all() and not chosen[~maskable].any()
    alone = chosen[:, 2] & (chosen.sum(1) == 1)
    assert alone.float().mean() > 0.9
    # The first word is hidden for certain; 80 % are where luck has chosen.
    assert (masked[:, 2] == MASK)[alone].float().mean() > 0.99
    unmaskable = torch.zeros_like(maskable)
    labels = mask_tokens(ids, unmaskable, MASK, VOCAB, at_least_one=True).labels
    assert (labels == IGNORED).all()


def test_one_at_least_changes_nothing_where_one_is_chosen():
    ids, maskable, _ = captions(batch=200)
    plain, sure = (
        mask_tokens(
            ids,
            maskable,
            MASK,
            VOCAB,
            generator=torch.Generator().manual_seed(3),
            at_least_one=at_least_one,
        )
        for at_least_one in (False, True)
    )
    rows = (plain.labels != IGNORED).any(1)
    assert 0 < rows.sum() < len(rows)
    assert torch.equal(plain.ids[rows], sure.ids[rows])
    assert torch.equal(plain.labels[rows], sure.labels[rows])
    assert not torch.equal(plain.labels, sure.labels)


def test_special_tokens_replace_no_other():
    ids, maskable, generator = captions()
    never = (*range(5), 100, VOCAB - 1)
    masked, labels = mask_tokens(ids, maskable, MASK, VOCAB, 0.9, None, generator, False, never)
    replaced = masked[(labels != IGNORED) & (masked != MASK) & (masked != ids)]
    assert not torch.isin(replaced, torch.tensor(never)).any()
    assert replaced.min() < 10 and replaced.max() > VOCAB - 10
    with pytest.raises(ValueError, match="never_drawn must leave some of the 3 tokens"):
        mask_tokens(ids, maskable, MASK, 3, generator=generator, never_drawn=(0, 1, 2))


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.5])
def test_a_wrong_probability_is_named(probability):
    ids, maskable, _ = captions(batch=2)
    with pytest.raises(
        ValueError, match=f"probability must lie between 0 and 1, got {probability}"
    ):
        mask_tokens(ids, maskable, MASK, VOCAB, probability)


def test_the_loss_is_the_mean_over_labelled_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    labels = torch.full((3, 5), IGNORED)
    labels[0, 1], labels[2, 4] = 3, 6
    expected = -(logits[0, 1].log_softmax(-1)[3] + logits[2, 4].log_softmax(-1)[6]) / 2
    torch.testing.assert_close(masked_language_loss(logits, labels), expected)
    assert masked_language_loss(torch.zeros(3, 5, 7), labels).item() == pytest.approx(math.log(7))


def test_nothing_to_predict_costs_nothing():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), IGNORED)
    for loss in (
        masked_language_loss(logits, labels),
        language_modeling_loss(logits, labels, 0.1),
        distilled_masked_language_loss(logits, labels, logits.detach(), 0.4),
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert (gradient == 0).all()


def test_distillation_between_label_and_teacher():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 2, 3, 7, generator=generator)
    labels = torch.tensor([[1, IGNORED, 2], [IGNORED, 6, IGNORED]])
    hard = masked_language_loss(logits, labels)
    torch.testing.assert_close(distilled_masked_language_loss(logits, labels, teacher, 0.0), hard)
    asked = labels != IGNORED
    soft = F.cross_entropy(logits[asked], teacher[asked].softmax(-1))
    torch.testing.assert_close(distilled_masked_language_loss(logits, labels, teacher, 1.0), soft)
    mixed = distilled_masked_language_loss(logits, labels, teacher, 0.4)
    torch.testing.assert_close(mixed, 0.6 * hard + 0.4 * soft)


def test_no_gradient_to_the_teacher():
    logits, teacher = torch.randn(2, 1, 3, 7).requires_grad_().unbind(0)
    labels = torch.tensor([[1, 2, 3]])
    loss = distilled_masked_language_loss(logits, labels, teacher, 0.4)
    assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


# Language modelling.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_output_is_compared_with_the_next_token(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, generator=generator)
    labels = torch.tensor([[0, 1, 2, 3], [0, IGNORED, 5, IGNORED]])
    terms = []
    for b, t in ((0, 0), (0, 1), (0, 2), (1, 1)):
        log_p = logits[b, t].log_softmax(-1)
        terms.append(-(1 - smoothing) * log_p[labels[b, t + 1]] - smoothing * log_p.mean())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(language_modeling_loss(logits, labels, smoothing), expected)


def test_the_last_output_and_the_first_token_take_no_part():
    logits = torch.randn(1, 4, 6, requires_grad=True)
    labels = torch.tensor([[5, 1, 2, 3]])
    (gradient,) = torch.autograd.grad(language_modeling_loss(logits, labels), logits)
    assert (gradient[:, -1] == 0).all() and (gradient[:, :-1] != 0).any()
    changed = labels.clone()
    changed[0, 0] = 0
    torch.testing.assert_close(
        language_modeling_loss(logits, labels), language_modeling_loss(logits, changed)
    )


def test_the_loss_of_a_share_counts_by_what_is_masked_in_it():
    losses = {"masked_words": torch.tensor(2.0), "matching": torch.tensor(3.0)}
    assert share_masked_loss(losses, {}) is losses
    shared = share_masked_loss(losses, {"masked_share": torch.tensor(1.5)})
    assert {name: loss.item() for name, loss in shared.items()} == {
        "masked_words": 3.0,
        "matching": 3.0,
    }
