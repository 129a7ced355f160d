"""Right and wrong answers to the exercises of the FLIP chapter; ``test_answers`` tries them."""

import torch
import torch.nn.functional as F

from mmlab.models.flip import FLIP_L_16, FLIPConfig
from mmlab.models.mae import pixel_targets, reconstruction_loss
from mmlab.nn import num_kept, patchify


def block(tokens, dim=1024):
    return 12 * tokens * dim**2 + 2 * tokens**2 * dim


def drop_by_loops(tokens, noise, k):
    rows = []
    for row, luck in zip(tokens, noise, strict=True):
        least = sorted(range(len(luck)), key=luck.tolist().__getitem__)[:k]
        rows.append(torch.stack([row[0], *[row[1 + i] for i in least]]))
    return torch.stack(rows)


def drop_by_topk(tokens, noise, k):
    least = noise.topk(k, dim=1, largest=False).indices
    return tokens.take_along_dim(F.pad(1 + least, (1, 0))[..., None], 1)


def rebuild_by_loops(predictions, patches, removed, unbiased=True):
    errors = []
    for guess, patch in zip(predictions[removed], patches[removed], strict=True):
        target = (patch - patch.mean()) / (patch.var(unbiased=unbiased) + 1e-6) ** 0.5
        errors.append(((guess - target) ** 2).mean())
    return sum(errors) / len(errors)


def back_by_loops(visible, mask_token, noise):
    full = mask_token.repeat(*noise.shape, 1)
    for row, seen, luck in zip(full, visible, noise, strict=True):
        for place, token in zip(luck.argsort(), seen, strict=False):
            row[place] = token
    return full


def fill(visible, mask_token, noise, places):
    missing = mask_token.expand(len(visible), noise.shape[1] - visible.shape[1], -1)
    full = torch.cat([visible, missing], 1)
    return full.gather(1, places[..., None].expand_as(full))


RIGHT = [
    ("flip.1", lambda size, p, r: 1 + int((1 - r) * (size // p) ** 2)),
    ("flip.1", lambda size, p, r: num_kept((size // p) ** 2, r) + 1),
    ("flip.2", block(50) / block(197)),
    ("flip.2", torch.tensor([block(50) / block(197)])),
    ("flip.3", drop_by_loops),
    ("flip.3", drop_by_topk),
    ("flip.4", rebuild_by_loops),
    ("flip.4", lambda p, x, r: rebuild_by_loops(p, x, r).item()),
    ("flip.5", back_by_loops),
    ("flip.5", lambda v, m, u: fill(v, m, u, u.argsort(1).argsort(1))),
    ("flip.6", lambda b, i, m, t: int(b * (i + t) / (m + t))),
    ("flip.6", lambda b, i, m, t: torch.tensor(b * (i + t)) // (m + t)),
]

WRONG = [
    # Tokens
    ("flip.1", lambda size, p, r: int((size // p) ** 2 * (1 - r)), "class token is encoded too"),
    ("flip.1", lambda size, p, r: int((size // p) ** 2 * r) + 1, "patches that are dropped"),
    ("flip.1", lambda size, p, r: (size // p) ** 2 + 1, "unmasked model"),
    ("flip.1", lambda size, p, r: round((size // p) ** 2 * (1 - r)) + 1, "You round."),
    # The cost of a block
    ("flip.2", 50 / 197, "linear layers"),
    ("flip.2", (50 / 197) ** 2, "attention alone"),
    ("flip.2", 0.25, "not exact"),
    ("flip.2", block(49) / block(196), "50 tokens in place of 197"),
    ("flip.2", 1 - block(50) / block(197), "share that is saved"),
    ("flip.2", block(197) / block(50), "Turn the fraction over"),
    ("flip.2", 100 * block(50) / block(197), "percentage"),
    # Dropping
    ("flip.3", lambda t, u, k: drop_by_loops(t, u, k)[:, 1:], "class token is missing"),
    ("flip.3", lambda t, u, k: drop_by_loops(t, 1 - u, k), "*most* noise"),
    ("flip.3", lambda t, u, k: drop_by_loops(t, u[:1].expand_as(u), k), "same patches"),
    (
        "flip.3",
        lambda t, u, k: t * F.pad(u <= u.kthvalue(k, 1, True)[0], (1, 0), value=True)[..., None],
        "still there",
    ),
    # MAE's loss
    (
        "flip.4",
        lambda p, x, r: rebuild_by_loops(p, x, torch.ones_like(r)),
        "average over all patches",
    ),
    ("flip.4", lambda p, x, r: rebuild_by_loops(p, x, ~r), "that the encoder saw"),
    ("flip.4", lambda p, x, r: F.mse_loss(p[r], x[r]), "not normalised"),
    ("flip.4", lambda p, x, r: rebuild_by_loops(p, x, r, unbiased=False), "divides by n - 1"),
    ("flip.4", lambda p, x, r: rebuild_by_loops(p, x, r) * r.float().mean(), "divide by all N"),
    # Back in their places
    (
        "flip.5",
        lambda v, m, u: fill(v, m, u, torch.arange(u.shape[1]).expand_as(u)),
        "behind the visible ones",
    ),
    ("flip.5", lambda v, m, u: fill(v, m, u, u.argsort(1)), "One `argsort` too few"),
    ("flip.5", lambda v, m, u: back_by_loops(v, torch.zeros_like(m), u), "hold zeros"),
    ("flip.5", lambda v, m, u: back_by_loops(v, m, -u), "noise is largest"),
    # The batch
    ("flip.6", lambda b, i, m, t: int(b * i / m), "forgot the text tower"),
    ("flip.6", lambda b, i, m, t: b * (m + t) // (i + t), "turn the fraction over"),
    ("flip.6", lambda b, i, m, t: b * (i + t) / (m + t), "whole pairs"),
    ("flip.6", lambda b, i, m, t: b * ((i + t) // (m + t)), "Multiply first"),
]


def test_the_loss_is_that_of_the_model():
    torch.manual_seed(0)
    images, removed = torch.randn(2, 3, 8, 8), torch.rand(2, 4) < 0.6
    predictions = torch.randn(2, 4, 48)
    expected = reconstruction_loss(predictions, pixel_targets(images, 4, True), removed)
    torch.testing.assert_close(
        rebuild_by_loops(predictions, patchify(images, 4), removed), expected
    )


def test_the_block_is_that_of_l_16():
    assert isinstance(FLIP_L_16, FLIPConfig) and FLIP_L_16.dim == 1024
    assert FLIP_L_16.mlp_dim == 4 * FLIP_L_16.dim
    assert num_kept(FLIP_L_16.image.num_patches, 0.75) + 1 == 50
