import itertools

import pytest
import torch
import torch.nn.functional as F

from mmlab.nn import (
    BertConfig,
    BertDecoder,
    BertWriting,
    beam_search,
    nucleus_filter,
    sample_text,
)

START, END, PAD = 5, 1, 0


class Chain:
    """Each word depends on the last one alone; ``table`` holds the scores."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def next(self, ids):
        self.asked.append(tuple(ids.shape))
        return self.table[ids[:, -1]]

    def repeat(self, times):
        pass

    def select(self, rows):
        pass


def random_table(seed=0, size=6):
    table = 2 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    table[:, [PAD, START]] = -1e4
    return table


def likelihood(table, text):
    steps = table.log_softmax(-1)
    return sum(steps[a, b].item() for a, b in itertools.pairwise(text))


def all_texts(max_length):
    """Everything that ends once, or not at all and is as long as can be."""
    words = [2, 3, 4]
    for length in range(max_length):
        for middle in itertools.product(words, repeat=length):
            if length + 2 <= max_length:
                yield (START, *middle, END)
            elif length + 1 == max_length:
                yield (START, *middle)


def trimmed(row):
    row = row.tolist()
    return tuple(row[: row.index(END) + 1] if END in row else row)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_many_beams_find_the_best_of_all_texts(seed, penalty):
    table, prompt = random_table(seed), torch.tensor([[START]])
    options = {"num_beams": 100, "max_length": 5, "min_length": 1, "length_penalty": penalty}
    found = trimmed(beam_search(Chain(table), prompt, END, **options)[0])
    best = max(all_texts(5), key=lambda t: likelihood(table, t) / (len(t) - 1) ** penalty)
    assert found == best


def test_one_beam_is_greedy():
    table = random_table(1)
    table[:, END] = -5.0
    found = beam_search(Chain(table), torch.tensor([[START]]), END, num_beams=1, max_length=7)
    text = [START]
    while len(text) < 7 and text[-1] != END:
        text.append(table[text[-1]].argmax().item())
    assert found[0].tolist() == text


def test_texts_have_their_lengths_and_rows_do_not_matter_to_each_other():
    table = random_table(3)
    table[:, END] += 4.0
    prompts = torch.tensor([[START, 2], [START, 3], [START, 4]])
    options = {"num_beams": 3, "max_length": 9, "min_length": 6}
    together = beam_search(Chain(table), prompts, END, **options)
    for prompt, text in zip(prompts, together, strict=True):
        alone = beam_search(Chain(table), prompt[None], END, **options)[0]
        assert trimmed(text) == trimmed(alone)
        assert 6 < len(trimmed(text)) <= 9 and text[:2].tolist() == prompt.tolist()
        assert (text[len(trimmed(text)) :] == PAD).all()


def test_the_nucleus_is_the_smallest_set_that_is_likely_enough():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    for p, kept in ((0.4, 1), (0.5001, 2), (0.69, 2), (0.84, 3), (0.9, 4), (0.96, 5), (1.0, 5)):
        filtered = nucleus_filter(logits, p)
        assert filtered.isfinite().sum() == kept
        torch.testing.assert_close(filtered.softmax(-1).sum(), torch.tensor(1.0))
    shuffled = logits[:, [3, 0, 4, 2, 1]]
    assert nucleus_filter(shuffled, 0.69).isfinite().tolist() == [[False, True, False, False, True]]
    assert torch.equal(nucleus_filter(logits, 1.0), logits)


def test_sampling_follows_the_nucleus():
    table = torch.full((6, 6), -1e4)
    table[:, [2, 3, 4]] = torch.tensor([0.6, 0.3, 0.1]).log()
    prompt = torch.full((4000, 1), START)
    options = {"max_length": 2, "min_length": 2, "repetition_penalty": 1.0}
    shares = {}
    for p in (0.8, 1.0):
        generator = torch.Generator().manual_seed(0)
        drawn = sample_text(Chain(table), prompt, END, top_p=p, generator=generator, **options)
        shares[p] = (drawn[:, 1].bincount(minlength=6) / 4000)[[2, 3, 4]]
    # Three standard deviations of a share of 4,000 draws are 0.024.
    torch.testing.assert_close(shares[1.0], torch.tensor([0.6, 0.3, 0.1]), atol=0.024, rtol=0)
    torch.testing.assert_close(shares[0.8], torch.tensor([2 / 3, 1 / 3, 0.0]), atol=0.024, rtol=0)


def test_top_k_leaves_out_unlikely_words():
    table = random_table(2)
    options = {"top_p": 1.0, "top_k": 1, "max_length": 6, "min_length": 6}
    table[:, END] = -50.0
    drawn = sample_text(
        Chain(table), torch.tensor([[START]]), END, repetition_penalty=1.0, **options
    )
    greedy = beam_search(Chain(table), torch.tensor([[START]]), END, num_beams=1, max_length=6)
    assert torch.equal(drawn, greedy)


def test_sampled_texts_stop_and_are_padded():
    table = torch.full((6, 6), -1e4)
    table[:, [END, 2, 3, 4]] = torch.tensor([0.3, 0.3, 0.2, 0.2]).log()
    prompt = torch.full((50, 1), START)
    options = {"top_p": 1.0, "generator": torch.Generator().manual_seed(0)}
    texts = sample_text(Chain(table), prompt, END, min_length=2, max_length=8, **options)
    assert len({trimmed(text) for text in texts}) > 5
    for text in texts:
        assert len(trimmed(text)) > 2 and (text[len(trimmed(text)) :] == PAD).all()


def test_repetition_is_penalised():
    table = torch.full((6, 6), -9.0)
    table[:, 2], table[:, 3] = 3.0, 2.0
    prompt = torch.tensor([[START]])
    greedy = {"num_beams": 1, "max_length": 4, "min_length": 4}
    assert beam_search(Chain(table), prompt, END, **greedy)[0].tolist() == [START, 2, 2, 2]
    found = beam_search(Chain(table), prompt, END, repetition_penalty=9.0, **greedy)
    assert found[0, 1:3].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("search", "options", "message"),
    [
        (beam_search, {"num_beams": 0}, "num_beams must be at least 1, got 0"),
        (beam_search, {"max_length": 1}, "max_length must exceed the prompt's 1 tokens, got 1"),
        (beam_search, {"min_length": 30}, "min_length must be at most max_length=20, got 30"),
        (beam_search, {"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
        (sample_text, {"top_p": 0.0}, "top_p must be in \\(0, 1\\], got 0.0"),
        (sample_text, {"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_wrong_numbers_are_named(search, options, message):
    with pytest.raises(ValueError, match=message):
        search(Chain(random_table()), torch.tensor([[START]]), END, **options)


def decoder():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, dim=24, depth=3, num_heads=3, mlp_dim=40, max_positions=12, num_types=0
    )
    model = BertDecoder(config, context_dim=20).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def test_writing_word_by_word_gives_what_reading_at_once_gives():
    model = decoder()
    ids, context = torch.randint(1, 30, (4, 9)), torch.randn(4, 5, 20)
    valid = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    at_once = model(ids, everything, context, valid[:, None, None, :])
    writing = BertWriting(model, context, valid)
    found = [writing.next(ids[:, :3]), *(writing.next(ids[:, i : i + 1]) for i in range(3, 9))]
    torch.testing.assert_close(torch.stack(found, 1), at_once[:, 2:], rtol=0, atol=1e-5)


def test_rows_may_be_repeated_and_exchanged_while_writing():
    model = decoder()
    ids, context = torch.randint(1, 30, (2, 4)), torch.randn(2, 5, 20)
    writing = BertWriting(model, context, torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
    writing.next(ids[:, :2])
    writing.repeat(2)
    writing.next(torch.tensor([[7], [8], [9], [10]]))
    writing.select(torch.tensor([1, 0, 3, 3]))
    found = writing.next(torch.tensor([[3], [4], [5], [6]]))
    texts = torch.tensor([[8, 3], [7, 4], [10, 5], [10, 6]])
    texts = torch.cat([ids[[0, 0, 1, 1], :2], texts], 1)
    again = BertWriting(
        model, context[[0, 0, 1, 1]], torch.arange(5) < torch.tensor([[5], [5], [2], [2]])
    )
    torch.testing.assert_close(found, again.next(texts), rtol=0, atol=1e-5)


def test_a_decoder_is_causal_and_sees_all_of_its_context():
    model = decoder()
    ids, context = torch.randint(1, 30, (2, 6)), torch.randn(2, 5, 20)
    valid = torch.ones_like(ids, dtype=torch.bool)
    logits = model(ids, valid, context)
    changed = F.pad(ids[:, :3], (0, 3), value=4)
    assert torch.equal(model(changed, valid, context)[:, :3], logits[:, :3])
    assert (model(changed, valid, context)[:, 3:] - logits[:, 3:]).abs().max() > 1e-3
    assert (model(ids, valid, context + 1) - logits).abs().amax((1, 2)).min() > 1e-3
