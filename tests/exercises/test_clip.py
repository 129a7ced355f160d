"""Right and wrong answers to the exercises of the CLIP chapter; ``test_answers`` tries them."""

import math

import pytest
import torch
import torch.nn.functional as F

import mmlab
from mmlab.analysis import count_parameters
from mmlab.models.clip import CLIP_RN50X64, CLIP_VIT_B_32, CLIPTextEncoder
from mmlab.objectives.contrastive import contrastive_loss


def cosines(i, t):
    return torch.stack([torch.stack([a @ b / a.norm() / b.norm() for b in t]) for a in i])


def tower(v, c, d, layers, tokens=True, positions=True, biases=True, norms=2, last=2):
    attention = 4 * d * d + (4 * d if biases else 0)
    mlp = 8 * d * d + (5 * d if biases else 0)
    total = layers * (attention + mlp + norms * 2 * d) + last * d
    return total + (v * d if tokens else 0) + (c * d if positions else 0)


def loops(logits, rows=True, columns=True):
    total, asked = 0.0, 0
    for wanted, table in ((rows, logits), (columns, logits.T)):
        for k, row in enumerate(table):
            total = total + wanted * (torch.logsumexp(row, 0) - row[k])
        asked += wanted * len(logits)
    return total / asked


def first_end(x, ids, end):
    return torch.stack(
        [row[numbers.tolist().index(end)] for row, numbers in zip(x, ids, strict=True)]
    )


def last_end(x, ids, end):
    from_behind = (ids == end).int().flip(1).argmax(1)
    return x[range(len(x)), ids.shape[1] - 1 - from_behind]


def classes(x, before=True, after=True, dim=0):
    x = x / x.norm(dim=-1, keepdim=True) if before else x
    x = x.mean(dim)
    return x / x.norm(dim=-1, keepdim=True) if after else x


def by_autograd(logits, loss=loops):
    logits = logits.double().requires_grad_()
    loss(logits).backward()
    return logits.grad


def share(i, t, scale, rank, size, first=None, everything=True, both=True):
    rows = range(rank * size, rank * size + size)
    total = 0.0
    for queries, keys in ((i, t), (t, i)) if both else ((i, t),):
        for k in rows:
            others = keys if everything else keys[list(rows)]
            own = k if first is None else first + k - rank * size
            total = total + torch.logsumexp(scale * others @ queries[k], 0)
            total = total - scale * others[own] @ queries[k]
    return total / size / (2 if both else 1)


RIGHT = [
    ("clip.1", math.log(32768)),
    ("clip.1", 15 * math.log(2)),
    ("clip.1", torch.tensor(32768.0).log()),
    ("clip.1", 10.397),
    ("clip.2", lambda i, t, s: cosines(i, t) * math.exp(s)),
    ("clip.2", lambda i, t, s: F.cosine_similarity(i[:, None], t[None], dim=-1) * s.exp()),
    ("clip.3", tower),
    ("clip.4", loops),
    ("clip.4", lambda s: -(s.log_softmax(0) + s.log_softmax(1)).diagonal().mean() / 2),
    ("clip.5", first_end),
    ("clip.6", classes),
    ("clip.6", lambda x: F.normalize(F.normalize(x, dim=-1).sum(0), dim=-1)),
    ("clip.7", by_autograd),
    ("clip.7", lambda s: ((s.softmax(0) + s.softmax(1)) / 2 - torch.eye(len(s))) / len(s)),
    ("clip.8", share),
]

WRONG = [
    # The loss of guessing
    ("clip.1", 15, "base 2"),
    ("clip.1", math.log10(32768), "base 10"),
    ("clip.1", 2 * math.log(32768), "You add the two directions"),
    ("clip.1", math.log(32768) / 2, "halve once too often"),
    ("clip.1", 32768.0, "too large"),
    ("clip.1", 1 / 32768, "minus its logarithm"),
    ("clip.1", -math.log(32768), "The sign"),
    ("clip.1", math.log(32768) / 0.07, "temperature does not matter"),
    ("clip.1", "ln 32768", "give a number"),
    # Logits
    ("clip.2", lambda i, t, s: s.exp() * i @ t.T, "no cosines"),
    ("clip.2", lambda i, t, s: s.exp() * F.normalize(i) @ t.T, "Only one side"),
    ("clip.2", lambda i, t, s: s.exp() * i @ F.normalize(t).T, "Only one side"),
    (
        "clip.2",
        lambda i, t, s: s.exp() * F.normalize(i, dim=0) @ F.normalize(t, dim=0).T,
        "You normalise columns",
    ),
    ("clip.2", lambda i, t, s: s * cosines(i, t), "multiply by t itself"),
    ("clip.2", lambda i, t, s: cosines(i, t) / s.exp(), "divide by exp(t)"),
    ("clip.2", lambda i, t, s: cosines(i, t) / s, "divide by t as if"),
    ("clip.2", lambda i, t, s: cosines(i, t), "factor exp(t) is missing"),
    ("clip.2", lambda i, t, s: s.exp() * cosines(t, i), "rows are texts"),
    ("clip.2", lambda i, t, s: (s.exp() * cosines(i, t)).softmax(1), "probabilities"),
    # The text tower
    ("clip.3", lambda *sizes: tower(*sizes, tokens=False), "table of tokens"),
    ("clip.3", lambda *sizes: tower(*sizes, positions=False), "table of positions"),
    ("clip.3", lambda *sizes: tower(*sizes, biases=False), "biases of the linear layers"),
    ("clip.3", lambda *sizes: tower(*sizes, norms=0), "two LayerNorms"),
    ("clip.3", lambda *sizes: tower(*sizes, biases=False, norms=0), "none of its vectors"),
    ("clip.3", lambda *sizes: tower(*sizes, last=0), "norm after the last block"),
    ("clip.3", lambda *sizes: tower(*sizes, last=1), "a scale *and* an offset"),
    ("clip.3", lambda v, c, d, n: tower(v, c + 1, d, n), "no class token"),
    # The loss
    ("clip.4", lambda s: loops(s, columns=False), "along the rows"),
    ("clip.4", lambda s: loops(s, rows=False), "along the columns"),
    ("clip.4", lambda s: 2 * loops(s), "add the two directions"),
    ("clip.4", lambda s: len(s) * loops(s), "sum over the pairs"),
    ("clip.4", lambda s: loops(s) / len(s), "divide by B twice"),
    ("clip.4", lambda s: -loops(s), "The sign"),
    ("clip.4", lambda s: loops(s) + s.trace() / len(s), "right answers are missing"),
    ("clip.4", lambda s: s.logsumexp((0, 1)) - s.diagonal().mean(), "all B² cells"),
    (
        "clip.4",
        lambda s: F.binary_cross_entropy(s.sigmoid(), torch.eye(len(s))),
        "SigLIP",
    ),
    ("clip.4", lambda s: loops(s.softmax(1), columns=False), "softmax twice"),
    (
        "clip.4",
        lambda s: (
            -(s.exp() / s.exp().sum(0)).diagonal().log().mean() / 2
            - (s.T.exp() / s.T.exp().sum(0)).diagonal().log().mean() / 2
        ),
        "overflows",
    ),
    # The end token
    ("clip.5", lambda x, ids, end: x[:, -1], "last place"),
    ("clip.5", lambda x, ids, end: x[:, 0], "seen nothing but itself"),
    ("clip.5", lambda x, ids, end: x[range(len(x)), ids.argmax(1)], "largest id"),
    ("clip.5", lambda x, ids, end: x.sum(1) / x.shape[1], "padding included"),
    ("clip.5", lambda x, ids, end: x[ids == end], "several a row"),
    ("clip.5", last_end, "ends at the *first*"),
    ("clip.5", lambda x, ids, end: first_end(x, ids, end)[:, None], "one axis is left over"),
    # Classes
    ("clip.6", lambda x: classes(x, before=False), "long vector counts more"),
    ("clip.6", lambda x: classes(x, after=False), "Bring it to length 1 again"),
    ("clip.6", lambda x: classes(x, before=False, after=False), "Nothing has length 1"),
    ("clip.6", lambda x: classes(x, dim=1), "average over the classes"),
    ("clip.6", lambda x: x[0] / x[0].norm(dim=-1, keepdim=True), "first template alone"),
    ("clip.6", lambda x: F.normalize(x, dim=2), "right so far"),
    # The gradient
    (
        "clip.7",
        lambda s: by_autograd(s, lambda x: loops(x) + x.trace() / len(x)),
        "Right for the negatives",
    ),
    ("clip.7", lambda s: by_autograd(s, lambda x: loops(x, columns=False)), "the rows' half"),
    ("clip.7", lambda s: by_autograd(s, lambda x: loops(x, rows=False)), "the columns' half"),
    ("clip.7", lambda s: 2 * by_autograd(s), "Twice too much"),
    ("clip.7", lambda s: len(s) * by_autograd(s), "B times too much"),
    ("clip.7", lambda s: -by_autograd(s), "The sign"),
    # One process's share
    ("clip.8", lambda i, t, s, r, n: share(i, t, s, r, n, first=0), "counted from 0"),
    (
        "clip.8",
        lambda i, t, s, r, n: share(i, t, s, r, n, first=0, everything=False),
        "own features alone",
    ),
    ("clip.8", lambda i, t, s, r, n: contrastive_loss(i, t, s), "loss of the whole batch"),
    ("clip.8", lambda i, t, s, r, n: share(i, t, s, r, n, both=False), "captions of this process"),
    ("clip.8", lambda i, t, s, r, n: share(t, i, s, r, n, both=False), "images of this process"),
    ("clip.8", lambda i, t, s, r, n: 2 * share(i, t, s, r, n), "add the two directions"),
    ("clip.8", lambda i, t, s, r, n: n * share(i, t, s, r, n), "sum over the pairs"),
    ("clip.8", lambda i, t, s, r, n: share(i, t, 1, r, n), "no effect"),
]


@pytest.mark.parametrize("config", [CLIP_VIT_B_32, CLIP_RN50X64])
def test_the_text_tower_is_that_of_the_models(config):
    with torch.device("meta"):
        expected = count_parameters(CLIPTextEncoder(config))
    sizes = (config.vocab_size, config.context_length, config.text_dim, config.text_depth)
    assert mmlab.exercises.EXERCISES["clip.3"].solution(*sizes) == expected


def test_the_shares_of_all_processes_are_the_loss_of_the_batch():
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(2, 8, 5), dim=-1)
    solution = mmlab.exercises.EXERCISES["clip.8"].solution
    shares = [solution(images, texts, 7.0, rank, 2) for rank in range(4)]
    torch.testing.assert_close(sum(shares) / 4, contrastive_loss(images, texts, 7.0))
