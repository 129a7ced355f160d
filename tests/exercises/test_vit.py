"""Right and wrong answers to the exercises of the ViT chapter; ``test_answers`` tries them."""

import torch
import torch.nn.functional as F
from einops import rearrange

import mmlab
from mmlab.models.vit import VIT_B_16, ViT


def plain_attention(q, k, v, mask, scale=None, dim=-1):
    scores = q @ k.transpose(-2, -1) / (scale or q.shape[-1] ** 0.5)
    return torch.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=dim) @ v


def unfold(images, P):
    return F.unfold(images, P, stride=P).transpose(1, 2)


def loops(images, P):
    H, W = images.shape[-2:]
    corners = [(r, c) for r in range(0, H, P) for c in range(0, W, P)]
    return torch.stack([images[:, :, r : r + P, c : c + P].flatten(1) for r, c in corners], dim=1)


def zoom(table, old, new, mode="bicubic", **options):
    image = table[0, 1:].T.reshape(1, -1, *old)
    image = F.interpolate(image, new, mode=mode, **options)
    return torch.cat([table[:, :1], image.flatten(2).transpose(1, 2)], 1)


def far(A, grid, P, power=0.5, drop=1, renormalise=True, include_self=True):
    rows, columns = grid
    A = A[drop:, drop:]
    total = count = 0.0
    for i in range(rows * columns):
        row = 0.0
        for j in range(rows * columns):
            away = (i // columns - j // columns) ** 2 + (i % columns - j % columns) ** 2
            row += A[i, j] * away**power * P
        share = A[i].sum() - (0 if include_self else A[i, i])
        total, count = total + row / (share if renormalise else 1), count + 1
    return total / count


def roll(maps, skip=True, reverse=False, heads="mean", half=True):
    result = torch.eye(maps[0].shape[-1])
    for A in reversed(maps) if reverse else maps:
        A = A.mean(0) if heads == "mean" else A.max(0).values
        if skip:
            A = A + torch.eye(A.shape[0])
            A = A / 2 if half else A
        result = A @ result
    return result


RIGHT = [
    ("vit.1", lambda h, w, p, n: (h * w) // p**2 + n),
    ("vit.1", lambda height, width, patch_size, extra: height * width / patch_size**2 + extra),
    ("vit.2", 293_376),
    ("vit.2", 293_376.0),
    ("vit.2", torch.tensor([293_376])),
    ("vit.3", lambda rate, depth: torch.linspace(0, rate, depth)),
    ("vit.3", lambda rate, depth: torch.linspace(0, rate, depth).numpy()),
    ("vit.3", lambda rate, depth: [x.item() for x in torch.linspace(0, rate, depth)]),
    ("vit.4", unfold),
    ("vit.4", loops),
    ("vit.5", plain_attention),
    ("vit.5", lambda q, k, v, m: plain_attention(q.double(), k.double(), v.double(), m)),
    ("vit.6", zoom),
    ("vit.7", far),
    ("vit.7", lambda A, grid, P: far(A, grid, P).item()),
    ("vit.8", roll),
]

WRONG = [
    # Tokens
    ("vit.1", lambda h, w, p, n: (h // p) * (w // p), "learned tokens in front"),
    ("vit.1", lambda h, w, p, n: (h // p) * (w // p) + 1, "whatever `num_prefix_tokens` says"),
    ("vit.1", lambda h, w, p, n: p**2 + n, "size of one patch in pixels"),
    ("vit.1", lambda h, w, p, n: 16 * 16, "size of one patch in pixels"),
    ("vit.1", lambda h, w, p, n: (h // p) ** 2 + n, "use its height twice"),
    ("vit.1", lambda h, w, p, n: (w // p) ** 2 + n, "use its width twice"),
    ("vit.1", lambda h, w, p, n: h * w // p + n, "divide by P once"),
    ("vit.1", lambda h, w, p, n: 3 * h * w // p**2 + n, "once a colour"),
    ("vit.1", lambda h, w, p, n: h // p + w // p + n, "multiply the two"),
    # Parameters of a larger picture
    ("vit.2", 380 * 768 + 768, "768 short"),
    ("vit.2", 380 * 768, "The distillation token is missing"),
    ("vit.2", 2 * 768, "The picture has more patches now".lower()),
    ("vit.2", 768, "the distillation token alone"),
    ("vit.2", 0, "E_pos does"),
    ("vit.2", 578 * 768 + 768, "You count the whole new table"),
    ("vit.2", 578 * 768, "whole new table of positions"),
    ("vit.2", 293_376 + 769_000, "second head"),
    ("vit.2", 85_798_656 + 293_376, "whole model after the change"),
    ("vit.2", 85_798_656 * 576 // 196, "same weights for every token"),
    ("vit.2", 382, "Each has D entries"),
    ("vit.2", 293_377, "too large"),
    ("vit.2", 293_375, "too small"),
    ("vit.2", "293376", "give a number"),
    # Drop path
    ("vit.3", lambda r, n: [r * i / n for i in range(n)], "never reaches `rate`"),
    ("vit.3", lambda r, n: [r * i / n for i in range(1, n + 1)], "first block is skipped too"),
    ("vit.3", lambda r, n: n * [r], "same rate"),
    ("vit.3", lambda r, n: torch.linspace(r, 0, n), "The rates fall"),
    ("vit.3", lambda r, n: 1 - torch.linspace(0, r, n), "probabilities to keep"),
    ("vit.3", lambda r, n: torch.linspace(0, r, n + 1), "L + 1 rates"),
    ("vit.3", lambda r, n: [r * i / (n - 1) for i in range(n)], "you divide by it"),
    ("vit.3", lambda r, n: [i // max(n - 1, 1) * r for i in range(n)], "cuts the fraction off"),
    # Patchify
    ("vit.4", lambda x, p: x.reshape(x.shape[0], -1, x.shape[1] * p * p), "You only reshape"),
    ("vit.4", lambda x, p: unfold(x.mT, p), "The shape is right, the values are not"),
    (
        "vit.4",
        lambda x, p: rearrange(x, "b c (r p) (k q) -> b (r k) (p q c)", p=p, q=p),
        "the weight of a convolution",
    ),
    (
        "vit.4",
        lambda x, p: rearrange(x, "b c (r p) (k q) -> b (k r) (c p q)", p=p, q=p),
        "go down the columns",
    ),
    (
        "vit.4",
        lambda x, p: rearrange(x, "b c (r p) (k q) -> b (r k) (c q p)", p=p, q=p),
        "lies on its side",
    ),
    ("vit.4", lambda x, p: unfold(x, p).unflatten(-1, (-1, p, p)), "One reshape is missing"),
    (
        "vit.4",
        lambda x, p: unfold(x, p).unflatten(1, (x.shape[2] // p, -1)),
        "still stand in a grid",
    ),
    (
        "vit.4",
        lambda x, p: x.unfold(2, p, p).unfold(3, p, p).reshape(len(x), -1, p * p),
        "one patch for each channel",
    ),
    ("vit.4", lambda x, p: unfold(x, p).mT, "The shape is (1, 8, 6); it should be (1, 6, 8)"),
    # Attention
    ("vit.5", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v), "mask has no effect"),
    ("vit.5", lambda q, k, v, m: (q @ k.mT).softmax(-1) @ v, "Two things are missing"),
    ("vit.5", lambda q, k, v, m: plain_attention(q, k, v, ~m), "other way round"),
    ("vit.5", lambda q, k, v, m: plain_attention(q, k, v, m, scale=1), "not divided by √d"),
    ("vit.5", lambda q, k, v, m: plain_attention(q, k, v, m, scale=q.shape[-1]), "divide by d"),
    (
        "vit.5",
        lambda q, k, v, m: plain_attention(q, k, v, m, (q.shape[1] * q.shape[3]) ** 0.5),
        "divide by √D",
    ),
    (
        "vit.5",
        lambda q, k, v, m: plain_attention(q, k, v, m, q.shape[-1] ** -0.5),
        "multiply by √d",
    ),
    ("vit.5", lambda q, k, v, m: plain_attention(q, k, v, m, dim=-2), "runs over the queries"),
    (
        "vit.5",
        lambda q, k, v, m: (q @ k.mT * q.shape[-1] ** -0.5 * m).softmax(-1) @ v,
        "set hidden scores to 0",
    ),
    (
        "vit.5",
        lambda q, k, v, m: (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) * m @ v,
        "mask after the softmax",
    ),
    (
        "vit.5",
        lambda q, k, v, m: plain_attention(
            q, k, torch.eye(k.shape[-2]).expand(*k.shape[:2], -1, -1), m
        ),
        "weights A. One step is missing",
    ),
    (
        "vit.5",
        lambda q, k, v, m: (
            (q @ k.mT / 2).masked_fill(m, -torch.inf).masked_fill(~m, -torch.inf).softmax(-1) @ v
        ),
        "NaN at [0, 0, 0, 0]",
    ),
    # Positions
    ("vit.6", lambda t, a, b: zoom(t, a, b)[:, 1:], "row is missing"),
    ("vit.6", lambda t, a, b: zoom(t, a, b).roll(-1, 1), "stands at the end"),
    ("vit.6", lambda t, a, b: zoom(t, a, b, "bilinear", align_corners=True), "Google's variant"),
    ("vit.6", lambda t, a, b: zoom(t, a, b, "bilinear"), "interpolate linearly"),
    ("vit.6", lambda t, a, b: zoom(t, a, b, "nearest"), "nearest row"),
    ("vit.6", lambda t, a, b: zoom(t, a, b, align_corners=True), "`align_corners=True`"),
    ("vit.6", lambda t, a, b: zoom(t, a[::-1], b), "exchange rows and columns"),
    (
        "vit.6",
        lambda t, a, b: F.interpolate(t.mT, 1 + b[0] * b[1], mode="linear").mT,
        "was stretched with the others",
    ),
    (
        "vit.6",
        lambda t, a, b: torch.cat(
            [t[:, :1], F.interpolate(t[:, 1:].mT, b[0] * b[1], mode="linear").mT], 1
        ),
        "as a line",
    ),
    (
        "vit.6",
        lambda t, a, b: torch.cat(
            [
                t[:, :1],
                F.interpolate(t[:, 1:].view(1, t.shape[2], *a), b, mode="bicubic").view(
                    1, b[0] * b[1], -1
                ),
            ],
            1,
        ),
        "without a permute",
    ),
    # Attention distance
    ("vit.7", lambda A, g, P: far(A, g, 1), "in patches"),
    ("vit.7", lambda A, g, P: far(A, g, P, renormalise=False), "no longer sum to 1"),
    ("vit.7", lambda A, g, P: far(torch.ones_like(A), g, P), "weights play no part"),
    ("vit.7", lambda A, g, P: far(A, g, P**2, power=1), "squared distances"),
    ("vit.7", lambda A, g, P: far(A.T, g, P), "normalise the columns"),
    ("vit.7", lambda A, g, P: far(A[:-1, :-1], g, P, drop=0), "drop the last token"),
    ("vit.7", lambda A, g, P: far(A, g[::-1], P), "exchange rows and columns"),
    ("vit.7", lambda A, g, P: far(A, g, P, include_self=False), "leave out the patch itself"),
    ("vit.7", lambda A, g, P: far(A, g, P) * g[0] * g[1], "sum over the queries too"),
    ("vit.7", lambda A, g, P: far(A, g, P) / (g[0] * g[1]), "average over the keys"),
    # Rollout
    ("vit.8", lambda maps: roll(maps, skip=False), "skip connection is missing"),
    ("vit.8", lambda maps: roll(maps, reverse=True), "wrong order"),
    ("vit.8", lambda maps: roll(maps, half=False), "without halving"),
    ("vit.8", lambda maps: roll(maps, heads="max"), "largest of the heads"),
    ("vit.8", lambda maps: sum(roll([A]) for A in maps) / len(maps), "average the layers"),
    ("vit.8", lambda maps: roll(maps[-1:]), "last layer alone"),
    ("vit.8", lambda maps: roll(maps)[0], "row 0"),
]


def test_the_added_parameters_are_those_of_the_models():
    from dataclasses import replace

    def parameters(**changes):
        with torch.device("meta"):
            model = ViT(replace(VIT_B_16, num_classes=0, **changes))
        return sum(p.numel() for p in model.parameters())

    added = parameters(image_size=384, distilled=True) - parameters()
    assert mmlab.check("vit.2", added)
