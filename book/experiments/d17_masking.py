"""D17: what dropping patches costs and buys in contrastive training (FLIP), on small scenes.

Question. FLIP (Li et al. 2022) trains CLIP's objective on images of which half or three quarters of
the patches are dropped. Does that cost accuracy at equal batch? Does it pay at equal compute? Do whole
images at test time, a short unmasked tuning, a masked text, or a reconstruction loss matter?

Set-up. A small FLIP (48 pixels, patches of 8, so 36 patches; 3 blocks of width 48 for images, 1 of width 32 for texts)
learns from 8,000 scenes of one to four shapes with their detailed captions, cut or filled to 24
tokens. 200 steps of 64 pairs are the base; rate and warm-up are the same for all arms, and nothing is
searched for one arm alone. The score is R@5 in galleries of 100 new pairs, the mean over ten
galleries and both directions, on whole images where nothing else is said. Compute is counted in multiply-adds, not timed.

- Mask ratio 0, 50 or 75 % × batch 64 or 128, at equal epochs: twice the batch has half the steps.
- Equal compute: 50 and 75 % with as many steps as the base, and a batch so large that the whole run
  costs what the base costs.
- Tuning: from the runs with batch 64, 20 more steps at a tenth of the rate with nothing dropped. The
  control has the same 20 steps on the same pairs with the mask left on.
- Text: with 75 % of the patches dropped, half of the tokens too, at random or padding first.
- Reconstruction: with 75 % dropped, an MAE decoder (1 block of width 32) predicts the pixels of the dropped patches,
  normalised patch by patch; its loss is added with the weight 1.
- Memory: bytes that the image tower keeps for the backward pass of 64 images, weights left out.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired:

- *Equal batch* (FLP-17, FLP-02, FLP-21): masked minus unmasked, for each ratio. Confirmed that masking does not
  help if the interval lies below zero, refuted if above.
- *Equal compute* (FLP-01, FLP-15, FLP-20): masked minus unmasked, for each ratio. Confirmed that masking pays if above
  zero, refuted if below.
- *Batch* (FLP-17): batch 128 minus 64 at equal epochs, mean over the three ratios. Confirmed that the larger batch
  is better if above zero, refuted if below.
- *Test time* (FLP-10): whole minus masked images, for each ratio; confirmed above zero. And the loss at 75 % minus
  that at 50 %; confirmed above zero.
- *Tuning* (FLP-11, FLP-21): tuned minus control, for each ratio; confirmed above zero, refuted below. And the gain at
  75 % minus that at 50 %; confirmed above zero.
- *Text* (FLP-05, FLP-07): whole minus randomly masked texts, and padding first minus random; confirmed above zero.
- *Reconstruction* (FLP-08, FLP-09): with minus without. Confirmed that it does not help if below zero, refuted if
  above. Time of a step with, divided by without: confirmed slower if above 1.
- *Memory* (FLP-16): bytes at 50 % over bytes at 0. Confirmed that half the patches need more than half if above 0.5 and
  below 1.
- *Count* (FLP-04): multiply-adds of ViT-L/16 with its text tower at 50 and 75 % over those at 0. Confirmed if they round
  to the paper's 0.52 and 0.28.

What this scale cannot tell. 12,800 pairs seen, some 70 words, 36 patches, no search for the best rate of each arm: an order found
here need not hold at ViT-L with 65,536 pairs a batch. Of the paper's arms, batches of four times the
size at equal epochs, the ensemble of masked views and reconstruction at 50 % were left out for want of time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, median

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis.cost import (
    flip_image_macs,
    flip_text_macs,
    mae_decoder_macs,
)
from mmlab.datasets import Tokenizer, scenes, train_wordpiece
from mmlab.models.flip import (
    FLIP,
    FLIP_L_16,
    FLIPConfig,
    FLIPPretraining,
)
from mmlab.models.mae import (
    MAEConfig,
    MAEDecoder,
    pixel_targets,
    reconstruction_loss,
)
from mmlab.nn import keep_patches, random_masking
from mmlab.objectives.contrastive import contrastive_loss
from mmlab.tasks.retrieval import retrieval
from mmlab.training.seeds import generator

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    Interval,
    difference,
    interval,
    main,
    verdict,
)
from experiments.training import Batch, Labels, Pictures, fit, prepare

RATIOS = (0.0, 0.5, 0.75)
STEPS, BATCH_SIZE, LR = 200, 64, 2e-3
TUNING_STEPS, TUNING_LR = 20, 2e-4
NUM_PAIRS, NUM_TEST, GALLERY, K = 8000, 1000, 100, 5

CONFIG = FLIPConfig(
    image_size=48,
    patch_size=8,
    dim=48,
    depth=3,
    num_heads=4,
    mlp_dim=96,
    vocab_size=400,
    context_length=24,
    text_dim=32,
    text_depth=1,
    text_num_heads=4,
    text_mlp_dim=64,
    embed_dim=48,
    mask_ratio=0.0,
)
DECODER = MAEConfig(
    image_size=CONFIG.image_size,
    patch_size=CONFIG.patch_size,
    dim=CONFIG.dim,
    depth=CONFIG.depth,
    num_heads=CONFIG.num_heads,
    mlp_dim=CONFIG.mlp_dim,
    decoder_dim=32,
    decoder_depth=1,
    decoder_num_heads=4,
    decoder_mlp_dim=64,
)


@lru_cache(maxsize=4)
def pairs(
    num: int, split: str, seed: int
) -> tuple[Pictures, Int64[Tensor, "num tokens"]]:
    """Scenes, and their detailed captions as rows of equal length."""
    data = scenes(
        num, split=split, image_size=CONFIG.image_size, seed=seed
    )
    texts = data.captions("en", "detailed")
    rows = tokenizer()(texts, CONFIG.context_length, "max_length")
    return data.images(), rows.input_ids


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """All words of the scenes, one token each."""
    texts = scenes(2000, seed=0).captions("en", "detailed")
    return train_wordpiece(texts, vocab_size=CONFIG.vocab_size)


class FLIPWithDecoder(nn.Module):
    """FLIP's contrastive loss and, on the same visible patches, MAE's reconstruction loss."""

    def __init__(self, network: FLIP, mask_ratio: float):
        super().__init__()
        self.network, self.mask_ratio = network, mask_ratio
        self.decoder = MAEDecoder(DECODER)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both losses; the image tower runs once for the two."""
        images, network = batch["images"], self.network
        num_patches = CONFIG.image.num_patches
        mask = random_masking(
            torch.rand(len(images), num_patches), self.mask_ratio
        )
        encoder = network.image_encoder
        tokens = keep_patches(encoder.embed(images), mask.kept, 1)
        tokens = encoder.norm(encoder.run_blocks(tokens))
        features = network.image_projection(tokens.mean(dim=1))
        contrast = contrastive_loss(
            F.normalize(features, dim=-1),
            network.encode_text(batch["input_ids"]),
            network.scale(),
        )
        predictions = self.decoder(tokens, mask.restore)
        targets = pixel_targets(images, CONFIG.patch_size, norm_pix=True)
        filled = reconstruction_loss(predictions, targets, mask.removed)
        return {"contrastive": contrast, "reconstruction": filled}


def pair_loss(
    ids: Int64[Tensor, "num tokens"],
    module: nn.Module,
    images: Batch,
    rows: Labels,
) -> Float[Tensor, ""]:
    """The sum of the losses on the pairs ``rows``."""
    losses = module.losses({"images": images, "input_ids": ids[rows]})
    return torch.stack(list(losses.values())).sum()


def train(
    module: nn.Module,
    seed: int,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    lr: float = LR,
    order: int = 0,
) -> nn.Module:
    """Train ``module`` on the scenes of ``seed``; another ``order`` draws other batches of them."""
    images, ids = pairs(NUM_PAIRS, "train", seed)
    rows, loss = torch.arange(NUM_PAIRS), partial(pair_loss, ids)
    draws = seed + order
    return fit(
        module, images, rows, steps, lr, draws, batch_size, loss=loss
    )


def new_network(seed: int, text_mask: str = "none") -> FLIP:
    """The weights that all arms of a seed start from."""
    torch.manual_seed(seed)
    return FLIP(replace(CONFIG, text_mask=text_mask))


@torch.no_grad()
def recall(
    network: FLIP, seed: int, mask_ratio: float = 0.0, k: int = K
) -> float:
    """R@k in galleries of new pairs, mean of both directions; whole texts, images as ``mask_ratio`` says."""
    images, ids = pairs(NUM_TEST, "test", seed)
    noise = torch.rand(
        NUM_TEST, CONFIG.image.num_patches, generator=generator(seed)
    )
    kept = random_masking(noise, mask_ratio).kept if mask_ratio else None
    features = network.encode_image(prepare(images), kept)
    texts, numbers = network.encode_text(ids), torch.arange(GALLERY)
    found = [
        retrieval(*gallery, numbers, numbers)
        for gallery in zip(
            features.split(GALLERY), texts.split(GALLERY), strict=True
        )
    ]
    return fmean(
        side.recall[k]
        for gallery in found
        for side in (gallery.image_to_text, gallery.text_to_image)
    )


def pair_macs(config: FLIPConfig, mask_ratio: float) -> int:
    """Multiply-adds of a pair's forward pass."""
    return flip_image_macs(config, mask_ratio) + flip_text_macs(config)


def equal_batch(mask_ratio: float) -> int:
    """Pairs a step that cost what the base costs."""
    share = pair_macs(CONFIG, mask_ratio) / pair_macs(CONFIG, 0)
    return round(BATCH_SIZE / share)


def kept_bytes(mask_ratio: float, batch_size: int = BATCH_SIZE) -> int:
    """What the image tower keeps for the backward pass, its weights left out."""
    network = new_network(0)
    weights = {
        p.untyped_storage().data_ptr() for p in network.parameters()
    }
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, _ = pairs(NUM_TEST, "test", 0)
    noise = torch.rand(batch_size, CONFIG.image.num_patches)
    mask = random_masking(noise, mask_ratio)
    batch = prepare(images[:batch_size])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        features = network.encode_image(
            batch, mask.kept if mask_ratio else None
        )
    assert features.requires_grad
    return sum(kept.values())


def step_time_ratio(
    seed: int, mask_ratio: float, rounds: int = 7
) -> float:
    """Processor time of a step with a decoder over that without; both take turns."""
    images, ids = pairs(NUM_PAIRS, "train", seed)
    batch, rows = prepare(images[:BATCH_SIZE]), torch.arange(BATCH_SIZE)
    arms = (
        FLIPWithDecoder(new_network(seed), mask_ratio).train(),
        FLIPPretraining(new_network(seed), mask_ratio).train(),
    )

    def seconds(module: nn.Module) -> float:
        started = time.process_time()
        pair_loss(ids, module, batch, rows).backward()
        return time.process_time() - started

    turns = [tuple(map(seconds, arms)) for _ in range(rounds + 1)]
    return median(a / b for a, b in turns[1:])


def masked(mask_ratio: float, seed: int) -> dict[str, float]:
    """The base or its masked twin, then the tuning and its control."""
    module = train(FLIPPretraining(new_network(seed), mask_ratio), seed)
    network = module.network
    figures = {
        "score": recall(network, seed),
        "R@1": recall(network, seed, k=1),
        "kept bytes": kept_bytes(mask_ratio),
        "L/16 share": pair_macs(FLIP_L_16, mask_ratio)
        / pair_macs(FLIP_L_16, 0),
    }
    if mask_ratio == 0:
        return figures
    figures["masked test"] = recall(network, seed, mask_ratio)
    trained = {k: v.clone() for k, v in network.state_dict().items()}
    for name, ratio in (("tuned", 0.0), ("control", mask_ratio)):
        network.load_state_dict(trained)
        module = FLIPPretraining(network, ratio)
        train(module, seed, TUNING_STEPS, lr=TUNING_LR, order=100)
        figures[name] = recall(network, seed)
    return figures


def contrasted(
    seed: int,
    mask_ratio: float,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    text_mask: str = "none",
) -> dict[str, float]:
    """An arm of which only the score is asked, and its multiply-adds."""
    network = new_network(seed, text_mask)
    train(FLIPPretraining(network, mask_ratio), seed, steps, batch_size)
    macs = 3 * pair_macs(CONFIG, mask_ratio) * steps * batch_size
    return {"score": recall(network, seed), "GMAC": macs / 1e9}


def with_decoder(seed: int, mask_ratio: float) -> dict[str, float]:
    """Contrast and reconstruction together."""
    module = FLIPWithDecoder(new_network(seed), mask_ratio)
    network = train(module, seed).network
    extra = mae_decoder_macs(DECODER, mask_ratio)
    return {
        "score": recall(network, seed),
        "compute, with / without": 1
        + extra / pair_macs(CONFIG, mask_ratio),
        "time, with / without": step_time_ratio(seed, mask_ratio),
    }


def name_of(mask_ratio: float, rest: str = "batch 64") -> str:
    """How a condition is called: ``"50 %, batch 64"``."""
    return f"{mask_ratio:.0%}, {rest}".replace("%", " %")


ARMS: dict[str, Callable[[int], dict[str, float]]] = {
    **{name_of(r): partial(masked, r) for r in RATIOS},
    **{
        name_of(r, "batch 128"): partial(
            contrasted,
            mask_ratio=r,
            steps=STEPS // 2,
            batch_size=2 * BATCH_SIZE,
        )
        for r in RATIOS
    },
    **{
        name_of(r, "equal compute"): partial(
            contrasted, mask_ratio=r, batch_size=equal_batch(r)
        )
        for r in RATIOS[1:]
    },
    **{
        name_of(0.75, f"text {kind.replace('_', ' ')}"): partial(
            contrasted, mask_ratio=0.75, text_mask=kind
        )
        for kind in ("random", "padding_first")
    },
    name_of(0.75, "reconstruction"): partial(
        with_decoder, mask_ratio=0.75
    ),
}
"""Condition → what it runs for a seed."""


def run(condition: str, seed: int) -> dict[str, float]:
    """The figures of one arm and one seed."""
    return ARMS[condition](seed)


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    return [
        _count(figures),
        *_equal_batch(figures),
        *_equal_compute(figures),
        _larger_batch(figures),
        *_test_time(figures),
        *_tuning(figures),
        *_text(figures),
        *_reconstruction(figures),
        _memory(figures),
    ]


def _score(figures: Figures, mask_ratio: float, rest: str = "batch 64"):
    return figures[name_of(mask_ratio, rest)]["score"]


def _percent(mask_ratio: float) -> str:
    return f"{100 * mask_ratio:.0f} %"


def _points(about: Interval) -> str:
    return f"{100 * about.mean:+.1f} points [{100 * about.low:+.1f}, {100 * about.high:+.1f}]"


def _above(
    claims: tuple[str, ...],
    statement: str,
    what: str,
    about: Interval,
    wanted: int = 1,
) -> Finding:
    """Confirmed if the interval lies on the wanted side of zero, refuted on the other."""
    right, wrong = (
        ("above", "below") if wanted > 0 else ("below", "above")
    )
    ok = about.low > 0 if wanted > 0 else about.high < 0
    return Finding(
        claims,
        statement,
        f"Confirmed: the interval of {what} lies {right} zero. Refuted: {wrong}.",
        verdict(ok, undecided=about.holds_zero),
        f"{what[0].upper()}{what[1:]}: {_points(about)}.",
        about,
    )


def _equal_batch(figures: Figures) -> list[Finding]:
    return [
        _above(
            ("FLP-17", "FLP-02", "FLP-21"),
            f"At equal batch and equal epochs, dropping {_percent(r)} of the patches does not help.",
            f"R@5 at {_percent(r)} minus at 0",
            difference(_score(figures, r), _score(figures, 0)),
            wanted=-1,
        )
        for r in RATIOS[1:]
    ]


def _equal_compute(figures: Figures) -> list[Finding]:
    return [
        _above(
            ("FLP-01", "FLP-15", "FLP-20"),
            f"At equal compute, the larger batch that dropping {_percent(r)} pays for makes it better than unmasked training.",
            f"R@5 at {_percent(r)}, batch {equal_batch(r)}, minus at 0, batch {BATCH_SIZE}",
            difference(
                _score(figures, r, "equal compute"), _score(figures, 0)
            ),
        )
        for r in RATIOS[1:]
    ]


def _larger_batch(figures: Figures) -> Finding:
    gains = [
        [
            a - b
            for a, b in zip(
                _score(figures, r, "batch 128"),
                _score(figures, r),
                strict=True,
            )
        ]
        for r in RATIOS
    ]
    about = interval(
        [fmean(of_seed) for of_seed in zip(*gains, strict=True)]
    )
    return _above(
        ("FLP-17",),
        "At equal epochs a batch of 128 is better than one of 64.",
        "R@5 with batch 128 minus with 64, mean over the ratios",
        about,
    )


def _test_time(figures: Figures) -> list[Finding]:
    losses = {
        r: [
            a - b
            for a, b in zip(
                _score(figures, r),
                figures[name_of(r)]["masked test"],
                strict=True,
            )
        ]
        for r in RATIOS[1:]
    }
    found = [
        _above(
            ("FLP-10",),
            f"A model trained at {_percent(r)} is better on whole images than on masked ones.",
            f"R@5 on whole minus on masked images at {_percent(r)}",
            interval(loss),
        )
        for r, loss in losses.items()
    ]
    return [
        *found,
        _above(
            ("FLP-10",),
            "Masks at test time cost more at 75 % than at 50 %.",
            "the loss at 75 % minus that at 50 %",
            difference(losses[0.75], losses[0.5]),
        ),
    ]


def _tuning(figures: Figures) -> list[Finding]:
    gains = {
        r: [
            a - b
            for a, b in zip(
                figures[name_of(r)]["tuned"],
                figures[name_of(r)]["control"],
                strict=True,
            )
        ]
        for r in RATIOS[1:]
    }
    found = [
        _above(
            ("FLP-11", "FLP-21"),
            f"After {_percent(r)}, a short unmasked tuning brings more than as many masked steps.",
            f"R@5 after unmasked minus after masked steps at {_percent(r)}",
            interval(gain),
        )
        for r, gain in gains.items()
    ]
    return [
        *found,
        _above(
            ("FLP-11",),
            "Unmasked tuning brings more after 75 % than after 50 %.",
            "the gain at 75 % minus that at 50 %",
            difference(gains[0.75], gains[0.5]),
        ),
    ]


def _text(figures: Figures) -> list[Finding]:
    whole = _score(figures, 0.75)
    random, padding = (
        _score(figures, 0.75, f"text {kind}")
        for kind in ("random", "padding first")
    )
    return [
        _above(
            ("FLP-05", "FLP-07"),
            "Dropping half of the tokens of the text at random costs accuracy.",
            "R@5 with whole minus with randomly masked texts",
            difference(whole, random),
        ),
        _above(
            ("FLP-05", "FLP-07"),
            "Dropping padding first costs less than dropping at random.",
            "R@5 with padding first minus at random",
            difference(padding, random),
        ),
    ]


def _reconstruction(figures: Figures) -> list[Finding]:
    arm = figures[name_of(0.75, "reconstruction")]
    slower = interval(arm["time, with / without"])
    return [
        _above(
            ("FLP-08",),
            "A reconstruction loss beside the contrastive one does not help.",
            "R@5 with minus without",
            difference(arm["score"], _score(figures, 0.75)),
            wanted=-1,
        ),
        Finding(
            ("FLP-08", "FLP-09"),
            "A decoder makes each step slower.",
            "Confirmed: the interval of time with over time without lies above 1. Refuted: below.",
            verdict(
                slower.low > 1, undecided=slower.low <= 1 <= slower.high
            ),
            f"Time {slower}; multiply-adds {arm['compute, with / without'][0]:.2f}.",
            slower,
        ),
    ]


def _memory(figures: Figures) -> Finding:
    whole, half, quarter = (
        figures[name_of(r)]["kept bytes"][0] for r in RATIOS
    )
    return Finding(
        ("FLP-16",),
        "With half of the patches the image tower keeps less for the backward pass, but more than half.",
        "Confirmed: bytes at 50 % over bytes at 0 lie between 0.5 and 1. Refuted otherwise.",
        verdict(0.5 < half / whole < 1),
        f"{whole / 2**20:.2f} MiB whole, {half / whole:.3f} of it at 50 %, {quarter / whole:.3f} at 75 %.",
    )


def _count(figures: Figures) -> Finding:
    shares = [figures[name_of(r)]["L/16 share"][0] for r in RATIOS[1:]]
    return Finding(
        ("FLP-01", "FLP-04"),
        "Multiply-adds of ViT-L/16 with its text tower fall to the paper's 0.52 and 0.28.",
        "Confirmed: the counts at 50 and 75 % over that at 0 round to 0.52 and 0.28. Refuted otherwise.",
        verdict([round(share, 2) for share in shares] == [0.52, 0.28]),
        f"{shares[0]:.4f} at 50 %, {shares[1]:.4f} at 75 %.",
    )


EXPERIMENT = Experiment(
    name="d17_masking",
    title="FLIP: mask ratio and batch, unmasked tuning, text masks, reconstruction, memory",
    claims=(
        *(f"FLP-{n:02}" for n in (1, 2, 4, 5, 7, 8, 9, 10, 11)),
        *(f"FLP-{n}" for n in (15, 16, 17, 20, 21)),
    ),
    conditions=tuple(ARMS),
    run=run,
    judge=judge,
    config={
        "model": "FLIP: 48 px, patch 8, 3 blocks of width 48 for images, 1 of width 32 for texts",
        "decoder": "1 block of width 32",
        "training pairs": NUM_PAIRS,
        "test pairs": NUM_TEST,
        "gallery": GALLERY,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "batch sizes of equal compute": [
            equal_batch(r) for r in RATIOS[1:]
        ],
        "rate": LR,
        "tuning": [TUNING_STEPS, TUNING_LR],
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
