"""D16: what a small CLIP learns from captions, and what it does not.

Question. CLIP learns from captions in place of labels and then names classes that it was only told
about (sections 1 and 3.1). How does it fare on combinations that it never saw, against a classifier of
fixed labels, with other prompts, against a linear probe and supervised training, at counting, under a
shift of style, and with fewer pairs?

Set-up. A small CLIP (32 pixels, patches of 8, convolutional stem, 2 blocks of width 64 on either side)
sees pairs of two sorts: close-ups of one shape (four fifths), and whole scenes of one to four shapes.
One picture has one caption. Half of the captions are short ("an image of a red circle and two blue
stars"), half begin with what is there ("Three shapes on a plain background. A large striped red circle
is in the upper left."), cut after 24 tokens. So colours and shapes are named in all captions; number,
texture, size and background in half of them. Six combinations of colour and shape never occur. 500 steps of 64
pairs with 1,000 and with 16,000 pairs. As controls the same image encoder learns from labels of the same pictures (of
the largest shape), twice: with one head for all 64 combinations, of which 58 occur, and with a head for each
attribute and for the number.
Tests: 1,000 close-ups each of seen and of unseen combinations, 1,000 whole scenes for counting; in tests of
single attributes all classes are equally frequent. *Skill* is an accuracy on a scale from 0 (chance) to
1. A seed draws pictures, weights and batches, so differences are taken seed by seed.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired:

- *Unseen combinations* (CLP-01): zero-shot accuracy minus chance (1 of 64). Confirmed if the interval lies
  above zero, refuted if below. The head of 64 labels: confirmed to fail if its interval ends below chance. And a
  control, captions minus the two heads for colour and for shape: confirmed that captions are ahead if above
  zero, refuted if below.
- *Prompts* (CLP-14): a sentence minus the bare name, and the mean of several sentences minus the bare
  name, on seen and unseen combinations together. Confirmed above zero, refuted below.
- *Features* (CLP-02): linear probes on up to 1,000 labelled pictures a task, on CLIP's features minus on those of the network
  that learned combinations from labels, mean over what those labels do not say: texture, size, background and number.
- *No labels* (CLP-16): zero-shot skill. Confirmed if its interval lies above zero for each of colour, shape,
  texture, size, background and number, else refuted. And zero-shot minus a probe with four examples a class on the same features.
- *Against supervision* (CLP-17): the supervised heads minus zero-shot, mean over the six tasks; and zero-shot minus the probe on
  the features that were learned from labels of combinations, mean over the four tasks that those do not say.
- *Counting and small differences* (CLP-18): zero-shot skill in number, and in texture, minus the mean skill in colour and shape.
  Confirmed that it is weaker there if below zero, refuted if above.
- *Shift* (CLP-19), on pictures of other shapes than circle and ring, since an outlined circle is a ring.
  Natural shifts: turned by 10 degrees, and a fifth darker. Far: outlines in colour on white. Share of the accuracy
  that is lost: outlines minus the mean of the natural shifts; and, under each, the head of 64 labels minus zero-shot.
- *Data* (CLP-20): zero-shot with 16,000 minus with 1,000 pairs; and with 1,000 pictures the head of labels minus
  zero-shot, which says whether captions make up for few pictures.
- *Binding* (CLP-21): the caption of a scene of two shapes against the same words with the colours exchanged (chance one half).
  Skill there minus the mean skill in colour and shape; confirmed below zero.

What this scale cannot tell. 32,000 pairs seen, some 70 words, flat shapes: nothing here measures CLIP
itself. Our captions name the number in every second caption, the web hardly ever.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.datasets import Scenes, Tokenizer, scenes, train_wordpiece
from mmlab.datasets.scenes import (
    BACKGROUNDS,
    COLORS,
    PALETTE,
    SHAPES,
    SIZES,
    TEXTURES,
)
from mmlab.datasets.transforms import to_float, to_uint8
from mmlab.datasets.transforms.randaugment import rotate
from mmlab.models.clip import CLIP, CLIPConfig
from mmlab.objectives.contrastive import contrastive_loss
from mmlab.tasks.linear_probe import (
    few_shot_curve,
    linear_probe,
    sample_shots,
)
from mmlab.tasks.zero_shot import class_features
from mmlab.training.seeds import generator

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    above_zero,
    interval,
    main,
    verdict,
)
from experiments.training import Batch, Labels, Pictures, fit, prepare

PAIRS = FEWEST, MOST = 1000, 16000
STEPS, BATCH_SIZE, LR = 500, 64, 2e-3
CLOSE = 4 / 5  # share of close-ups among the pairs
IMAGE_SIZE, CONTEXT = 32, 24
NUM_TEST = 1000
SHOTS = (1, 2, 4, 8, 16)
CHANCE = 1 / (len(COLORS) * len(SHAPES))
NUMBERS = ("one shape", "two shapes", "three shapes", "four shapes")
COMBINATIONS = tuple(f"{c} {s}" for c in COLORS for s in SHAPES)

CLASSES: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "size": SIZES,
    "background": BACKGROUNDS,
    "number": NUMBERS,
}
"""Task → its classes, as the captions name them."""

UNTOLD = ("texture", "size", "background", "number")
"""The tasks of which labels of combinations say nothing."""

HEADS: dict[str, tuple[str, ...]] = {
    "combination labels": ("combination",),
    "attribute labels": tuple(CLASSES),
}
"""What stands in place of captions → what the image side learns to name."""

PROMPTS: dict[str, tuple[str, ...]] = {
    "bare name": ("{}",),
    "one sentence": ("a picture of a {}",),
    "several": (
        "a {}",
        "there is a {}",
        "an image of a {}",
        "a picture of a {}",
        "one shape on a plain background. a large {} is in the center",
        "one shape on a plain background. a small {} is in the center",
    ),
}
_OPENING = "one shape on a {} background. a {} {} {} {} is in the center"
_OTHERS = (("large", "red", "circle"), ("small", "blue", "cross"))
TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": tuple(f"a picture of a {{}} {s}" for s in SHAPES),
    "shape": tuple(f"a picture of a {c} {{}}" for c in COLORS),
    "texture": tuple(
        _OPENING.format(b, size, "{}", c, s)
        for b in BACKGROUNDS
        for size, c, s in _OTHERS
    ),
    "size": tuple(
        _OPENING.format(b, "{}", "solid", c, s)
        for b in BACKGROUNDS
        for _, c, s in _OTHERS
    ),
    "background": ("one shape on a {} background.",),
    "number": tuple(f"{{}} on a {b} background." for b in BACKGROUNDS),
}
"""Task → sentences whose mean direction is the class."""

CONFIG = CLIPConfig(
    image_size=IMAGE_SIZE,
    patch_size=8,
    dim=64,
    depth=2,
    num_heads=4,
    mlp_dim=128,
    stem="conv",
    vocab_size=400,
    context_length=CONTEXT,
    end_id=3,
    text_dim=64,
    text_depth=2,
    text_num_heads=4,
    text_mlp_dim=128,
    embed_dim=64,
)


@dataclass(frozen=True)
class Examples:
    """Pictures with the classes of every task and one caption each."""

    images: Pictures
    targets: dict[str, Labels]
    captions: list[str]


def close_ups(data: Scenes, seed: int) -> Pictures:
    """Windows of 32 pixels around the only shape of scenes of 64, somewhere inside the window."""
    corners = _corners(data, seed)
    return _windows(data.images(), corners)


def outlines(data: Scenes, seed: int) -> Pictures:
    """The same windows as line drawings: the rim of the shape in its colour, on white."""
    drawn = torch.full((len(data), 3, 64, 64), 255, dtype=torch.uint8)
    for i, scene in enumerate(data.scenes):
        mask = data.masks(i).float()
        # A pixel stays inside if all pixels around it are inside.
        inside = -F.max_pool2d(-mask, 3, stride=1, padding=1)
        rim = (mask - inside)[0] > 0
        color = torch.tensor(
            PALETTE[scene.objects[0].color], dtype=torch.uint8
        )
        drawn[i, :, rim] = color[:, None]
    return _windows(drawn, _corners(data, seed))


def _corners(data: Scenes, seed: int) -> list[tuple[int, int]]:
    luck = torch.rand(len(data), 2, generator=generator(seed)).tolist()
    corners = []
    for scene, shares in zip(data.scenes, luck, strict=True):
        left, top, right, bottom = scene.objects[0].box(64)
        ends = ((left, right), (top, bottom))
        corners.append(
            tuple(
                _corner(*end, share)
                for end, share in zip(ends, shares, strict=True)
            )
        )
    return corners


def _corner(low: float, high: float, share: float) -> int:
    """Where a window of 32 of 64 pixels begins, so that it holds ``low`` to ``high``."""
    first, last = max(high - 32, 0), min(low, 32)
    return round(first + share * (last - first))


def _windows(
    images: UInt8[Tensor, "num 3 64 64"],
    corners: Sequence[tuple[int, int]],
) -> Pictures:
    return torch.stack(
        [
            image[:, y : y + 32, x : x + 32]
            for image, (x, y) in zip(images, corners, strict=True)
        ]
    )


def _largest(data: Scenes, attribute: str) -> Labels:
    classes = CLASSES[attribute]
    found = [
        getattr(max(s.objects, key=lambda o: o.radius), attribute)
        for s in data.scenes
    ]
    return torch.tensor([classes.index(name) for name in found])


def told(data: Scenes, images: Pictures) -> Examples:
    """``images`` of these scenes, their classes, and short and detailed captions in turn."""
    kinds = (
        data.captions("en", "short"),
        data.captions("en", "detailed"),
    )
    targets = {
        name: _largest(data, name)
        for name in ("color", "shape", "texture", "size")
    }
    targets["background"] = data.targets("background")[0]
    targets["number"] = data.targets("count")[0]
    captions = [
        both[i % 2] for i, both in enumerate(zip(*kinds, strict=True))
    ]
    return Examples(images, targets, captions)


@lru_cache(maxsize=8)
def near(num: int, split: str, seed: int) -> Examples:
    """Close-ups of one shape."""
    data = one_shape(num, split, seed)
    return told(data, close_ups(data, seed))


def one_shape(num: int, split: str, seed: int) -> Scenes:
    """The scenes that close-ups are cut from."""
    return scenes(
        num, split=split, image_size=64, seed=seed, num_objects=(1, 1)
    )


@lru_cache(maxsize=8)
def whole(num: int, split: str, seed: int) -> Examples:
    """Whole scenes of one to four shapes."""
    data = scenes(num, split=split, image_size=IMAGE_SIZE, seed=seed)
    return told(data, data.images())


def mixed(num: int, seed: int) -> Examples:
    """Training examples, close-ups and whole scenes; fewer are the first of more."""
    counts = round(CLOSE * num), num - round(CLOSE * num)
    most = round(CLOSE * MOST), MOST - round(CLOSE * MOST)
    sorts = near(most[0], "train", seed), whole(most[1], "train", seed)
    parts = [
        (sort, slice(count))
        for sort, count in zip(sorts, counts, strict=True)
    ]
    return Examples(
        torch.cat([sort.images[rows] for sort, rows in parts]),
        {
            name: torch.cat(
                [sort.targets[name][rows] for sort, rows in parts]
            )
            for name in CLASSES
        },
        [text for sort, rows in parts for text in sort.captions[rows]],
    )


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """All words of the scenes, one token each."""
    data = scenes(4000, seed=0)
    return train_wordpiece(
        [*data.captions("en", "short"), *data.captions("en", "detailed")],
        vocab_size=CONFIG.vocab_size,
    )


def token_ids(texts: Sequence[str]) -> Int64[Tensor, "texts tokens"]:
    """Texts as rows of equal length, cut after ``CONTEXT`` tokens."""
    return tokenizer()(list(texts), CONTEXT, "max_length").input_ids


def pair_loss(
    ids: Int64[Tensor, "num tokens"],
    model: CLIP,
    images: Batch,
    rows: Labels,
) -> Float[Tensor, ""]:
    """Contrast the pictures of a batch with their captions, the rows ``rows`` of ``ids``."""
    model.clamp_scale()
    texts = ids[rows]
    texts = texts[:, : int((texts != tokenizer().pad_id).sum(1).max())]
    features = model.encode_image(images), model.encode_text(texts)
    return contrastive_loss(*features, model.scale())


@lru_cache(maxsize=2)
def trained_clip(num: int, seed: int) -> CLIP:
    """A small CLIP after ``STEPS`` steps on ``num`` pairs."""
    pairs = mixed(num, seed)
    torch.manual_seed(seed)
    model = CLIP(CONFIG)
    loss = partial(pair_loss, token_ids(pairs.captions))
    rows = torch.arange(num)
    return fit(
        model, pairs.images, rows, STEPS, LR, seed, BATCH_SIZE, loss=loss
    )


class Labelled(nn.Module):
    """CLIP's image side with a linear head for each task of ``heads`` in place of the text side."""

    def __init__(self, heads: Sequence[str]):
        super().__init__()
        self.clip = CLIP(CONFIG)
        sizes = {name: len(names) for name, names in CLASSES.items()}
        sizes["combination"] = len(COMBINATIONS)
        width = CONFIG.embed_dim
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, sizes[name]) for name in heads}
        )

    def encode_image(self, images: Batch) -> Float[Tensor, "batch dim"]:
        """What the heads read."""
        return self.clip.image_projection(self.clip.image_encoder(images))

    def forward(
        self, images: Batch
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Logits by task."""
        features = self.encode_image(images)
        return {name: head(features) for name, head in self.heads.items()}


def label_loss(
    targets: dict[str, Labels],
    model: Labelled,
    images: Batch,
    rows: Labels,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the heads."""
    losses = [
        F.cross_entropy(logits, targets[name][rows])
        for name, logits in model(images).items()
    ]
    return torch.stack(losses).mean()


def trained_on_labels(
    heads: Sequence[str], num: int, seed: int
) -> Labelled:
    """The image side after as many steps on the labels of the same ``num`` pictures."""
    examples = mixed(num, seed)
    targets = examples.targets | {"combination": combination(examples)}
    torch.manual_seed(seed)
    model = Labelled(heads)
    loss, rows = partial(label_loss, targets), torch.arange(num)
    return fit(
        model,
        examples.images,
        rows,
        STEPS,
        LR,
        seed,
        BATCH_SIZE,
        loss=loss,
    )


def combination(examples: Examples) -> Labels:
    """Colour and shape as one class of ``COMBINATIONS``."""
    targets = examples.targets
    return targets["color"] * len(SHAPES) + targets["shape"]


@torch.no_grad()
def image_features(
    model: CLIP | Labelled, images: Pictures
) -> Float[Tensor, "num dim"]:
    """What the image side says of pictures as they come."""
    parts = [model.encode_image(prepare(p)) for p in images.split(250)]
    return torch.cat(parts)


@torch.no_grad()
def text_features(
    model: CLIP, texts: Sequence[str]
) -> Float[Tensor, "texts dim"]:
    """What the text side says of sentences."""
    return model.encode_text(token_ids(texts))


def classifier(
    model: CLIP, classes: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    """The weights of a zero-shot classifier."""
    return class_features(
        partial(text_features, model), classes, templates
    )


def correct(guesses: Labels, labels: Labels) -> float:
    """Share of right guesses."""
    return (guesses == labels).float().mean().item()


def even_rows(labels: Labels) -> Labels:
    """As many rows of each class as the rarest has, so that chance is the same for all."""
    rarest = int(labels.bincount().min())
    return sample_shots(labels, rarest, seed=0)


def asked(task: str, split: str, seed: int) -> tuple[Pictures, Labels]:
    """Pictures and classes of a task: number of whole scenes, all else of close-ups."""
    sort = whole if task == "number" else near
    examples = sort(NUM_TEST, split, seed)
    rows = even_rows(examples.targets[task])
    return examples.images[rows], examples.targets[task][rows]


def probes(model: CLIP | Labelled, seed: int) -> dict[str, float]:
    """Linear probes on frozen features: accuracy by task."""
    scores = {}
    for task in CLASSES:
        train, labels = asked(task, "validation", seed)
        test, truth = asked(task, "test", seed)
        found = linear_probe(
            image_features(model, train),
            labels,
            image_features(model, test),
            truth,
        )
        scores[f"probe, {task}"] = found.accuracy
    return scores


def zero_shots(model: CLIP, seed: int) -> dict[str, float]:
    """Zero-shot accuracy by task."""
    scores = {}
    for task, classes in CLASSES.items():
        weights = classifier(model, classes, TEMPLATES[task])
        images, labels = asked(task, "test", seed)
        guesses = (image_features(model, images) @ weights.T).argmax(1)
        scores[f"zero-shot, {task}"] = correct(guesses, labels)
    return scores


def prompts(model: CLIP, seed: int) -> dict[str, float]:
    """Accuracy among 64 combinations with each set of ``PROMPTS``, seen and unseen apart."""
    scores = {}
    for split, name in (("test", "seen"), ("held_out", "unseen")):
        examples = near(NUM_TEST, split, seed)
        features = image_features(model, examples.images)
        for prompt, templates in PROMPTS.items():
            weights = classifier(model, COMBINATIONS, templates)
            guesses = (features @ weights.T).argmax(1)
            right = correct(guesses, combination(examples))
            scores[f"{name}, {prompt}"] = right
    return scores


def few_shots(model: CLIP, seed: int) -> dict[str, float]:
    """Probes for the seen combinations with few labelled close-ups of each."""
    train, test = (
        near(num, split, seed)
        for num, split in ((3000, "validation"), (NUM_TEST, "test"))
    )
    curve = few_shot_curve(
        image_features(model, train.images),
        combination(train),
        image_features(model, test.images),
        combination(test),
        SHOTS,
        seed,
    )
    return {
        f"probe, {shots} a class": found.accuracy
        for shots, found in curve.items()
    }


@lru_cache(maxsize=1)
def shifted(seed: int) -> tuple[dict[str, Pictures], Labels]:
    """The test close-ups of other shapes than circle and ring, as they are and shifted."""
    examples = near(NUM_TEST, "test", seed)
    shape = examples.targets["shape"]
    round_ones = torch.tensor(
        [SHAPES.index(name) for name in ("circle", "ring")]
    )
    kept = ~torch.isin(shape, round_ones)
    images = examples.images[kept]
    drawn = outlines(one_shape(NUM_TEST, "test", seed), seed)[kept]
    angle = torch.full((len(images),), 10.0)
    styles = {
        "as trained": images,
        "turned": to_uint8(rotate(to_float(images), angle)),
        "dark": (images * 0.8).to(torch.uint8),
        "outlines": drawn,
    }
    return styles, combination(examples)[kept]


def shifts(model: CLIP | Labelled, seed: int) -> dict[str, float]:
    """Accuracy among 64 combinations under each shift: by sentences, or by the head of labels."""
    styles, labels = shifted(seed)
    return {
        f"{style} style": correct(combinations(model, images), labels)
        for style, images in styles.items()
    }


@torch.no_grad()
def combinations(model: CLIP | Labelled, images: Pictures) -> Labels:
    """The combination that the model names."""
    features = image_features(model, images)
    if isinstance(model, Labelled):
        return model.heads["combination"](features).argmax(1)
    weights = classifier(model, COMBINATIONS, PROMPTS["several"])
    return (features @ weights.T).argmax(1)


@torch.no_grad()
def binding(model: CLIP, seed: int) -> float:
    """How often the true caption of two shapes beats the one with their colours exchanged."""
    data = scenes(
        NUM_TEST,
        "test",
        image_size=IMAGE_SIZE,
        seed=seed,
        num_objects=(2, 2),
    )
    items = [i for i in data.binding_pairs(1600) if i.kind == "color"]
    images = data.images([item.image for item in items])
    features = image_features(model, images)
    true, false = (
        (features * text_features(model, texts)).sum(1)
        for texts in (
            [item.text for item in items],
            [item.swapped for item in items],
        )
    )
    return (true > false).float().mean().item()


@torch.no_grad()
def attributes(model: Labelled, seed: int) -> dict[str, float]:
    """Accuracy of the head of each task, and of the heads for colour and shape together."""
    scores = {}
    for task in CLASSES:
        images, labels = asked(task, "test", seed)
        logits = model.heads[task](image_features(model, images))
        scores[f"head, {task}"] = correct(logits.argmax(1), labels)
    for split, name in (("test", "seen"), ("held_out", "unseen")):
        examples = near(NUM_TEST, split, seed)
        features = image_features(model, examples.images)
        color, shape = (
            model.heads[task](features).argmax(1)
            for task in ("color", "shape")
        )
        two = color * len(SHAPES) + shape
        scores[f"{name}, two heads"] = correct(two, combination(examples))
    return scores


def seen_and_unseen(model: Labelled, seed: int) -> dict[str, float]:
    """Accuracy of the head for combinations."""
    scores = {}
    for split, name in (("test", "seen"), ("held_out", "unseen")):
        examples = near(NUM_TEST, split, seed)
        guesses = combinations(model, examples.images)
        scores[f"{name}, one head"] = correct(
            guesses, combination(examples)
        )
    return scores


def condition_name(teacher: str, num: int) -> str:
    """How a condition is called: ``"captions, 1000 pairs"``."""
    return f"{teacher}, {num} pairs"


def run(condition: str, seed: int) -> dict[str, float]:
    """Accuracies from 0 to 1."""
    teacher, size = condition.removesuffix(" pairs").split(", ")
    num = int(size)
    if teacher in HEADS:
        model = trained_on_labels(HEADS[teacher], num, seed)
        if teacher == "attribute labels":
            return attributes(model, seed)
        figures = seen_and_unseen(model, seed)
        if num < MOST:
            return figures
        return figures | shifts(model, seed) | probes(model, seed)
    clip = trained_clip(num, seed)
    figures = prompts(clip, seed) | zero_shots(clip, seed)
    if num < MOST:
        return figures
    return (
        figures
        | probes(clip, seed)
        | few_shots(clip, seed)
        | shifts(clip, seed)
        | {"binding": binding(clip, seed)}
    )


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    return [
        *_unseen(figures),
        *_prompts(figures),
        *_features(figures),
        *_no_labels(figures),
        *_supervision(figures),
        *_weak_spots(figures),
        *_shift(figures),
        *_data(figures),
    ]


def of(figures: Figures, teacher: str, num: int = MOST):
    """The figures of one condition."""
    return figures[condition_name(teacher, num)]


def minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Seed by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def average(*columns: Sequence[float]) -> list[float]:
    """The mean over several measures, seed by seed."""
    return [fmean(values) for values in zip(*columns, strict=True)]


def skill(accuracies: Sequence[float], num_classes: int) -> list[float]:
    """Accuracies on a scale from 0 (chance) to 1, seed by seed."""
    chance = 1 / num_classes
    return [(value - chance) / (1 - chance) for value in accuracies]


def zero_shot_skill(figures: Figures, task: str) -> list[float]:
    """Of the model with the most pairs."""
    accuracies = of(figures, "captions")[f"zero-shot, {task}"]
    return skill(accuracies, len(CLASSES[task]))


def lost(
    scores: dict[str, Sequence[float]], styles: Sequence[str]
) -> list[float]:
    """Share of the accuracy that goes under some styles, on average, seed by seed."""
    whole_score = scores["as trained style"]
    left = average(*(scores[f"{style} style"] for style in styles))
    return [1 - a / b for a, b in zip(left, whole_score, strict=True)]


NATURAL = ("turned", "dark")


def _unseen(figures: Figures) -> list[Finding]:
    captions = of(figures, "captions")["unseen, several"]
    one_head = of(figures, "combination labels")["unseen, one head"]
    two_heads = of(figures, "attribute labels")["unseen, two heads"]
    fails = interval(one_head)
    return [
        above_zero(
            ("CLP-01",),
            "Captions let the model name combinations of colour and shape that it never saw.",
            [value - CHANCE for value in captions],
            "Zero-shot accuracy minus chance",
        ),
        Finding(
            ("CLP-01",),
            "A classifier with one label a combination cannot name those that it never saw.",
            "Confirmed: the interval ends below chance. Refuted: it begins above.",
            verdict(
                fails.high < CHANCE,
                undecided=fails.low <= CHANCE <= fails.high,
            ),
            f"Its accuracy there: {_percent(fails)}; chance {CHANCE:.1%}.",
            fails,
        ),
        above_zero(
            ("CLP-01",),
            "On unseen combinations captions are ahead of labels that name colour and shape apart.",
            minus(captions, two_heads),
            "Zero-shot minus two heads",
        ),
    ]


def _prompts(figures: Figures) -> list[Finding]:
    scores = of(figures, "captions")

    def both(prompt: str) -> list[float]:
        return average(
            *(
                scores[f"{split}, {prompt}"]
                for split in ("seen", "unseen")
            )
        )

    return [
        above_zero(
            ("CLP-14",),
            f"{start} beats the bare name.",
            minus(both(prompt), both("bare name")),
            f"{prompt.capitalize()} minus bare name",
        )
        for prompt, start in (
            ("one sentence", "A sentence as prompt"),
            ("several", "The mean of several sentences"),
        )
    ]


def _features(figures: Figures) -> list[Finding]:
    gains = [
        minus(
            of(figures, "captions")[f"probe, {task}"],
            of(figures, "combination labels")[f"probe, {task}"],
        )
        for task in UNTOLD
    ]
    return [
        above_zero(
            ("CLP-02",),
            "A linear probe reads more from features learned from captions than from features learned from labels of combinations.",
            average(*gains),
            "Mean over the four tasks that those labels do not say",
        )
    ]


def _no_labels(figures: Figures) -> list[Finding]:
    skills = {
        task: interval(zero_shot_skill(figures, task)) for task in CLASSES
    }
    scores = of(figures, "captions")
    return [
        Finding(
            ("CLP-16",),
            "Without a label of the task the model is above chance in each of six tasks.",
            "Confirmed: the interval of the skill lies above zero in each. Refuted otherwise.",
            verdict(all(about.low > 0 for about in skills.values())),
            "Skill: "
            + "; ".join(
                f"{task} {_percent(about)}"
                for task, about in skills.items()
            )
            + ".",
        ),
        above_zero(
            ("CLP-16",),
            "Zero-shot is ahead of a linear probe with four examples a class on the same features.",
            minus(scores["seen, several"], scores["probe, 4 a class"]),
            "Zero-shot minus probe",
        ),
    ]


def _supervision(figures: Figures) -> list[Finding]:
    captions = of(figures, "captions")

    def ahead(teacher: str, kind: str, tasks: Sequence[str]):
        return average(
            *(
                minus(
                    of(figures, teacher)[f"{kind}, {task}"],
                    captions[f"zero-shot, {task}"],
                )
                for task in tasks
            )
        )

    other = ahead("combination labels", "probe", UNTOLD)
    return [
        above_zero(
            ("CLP-17",),
            "A network trained on the labels of the tasks is ahead of zero-shot.",
            ahead("attribute labels", "head", tuple(CLASSES)),
            "Supervised minus zero-shot, mean over six tasks",
        ),
        above_zero(
            ("CLP-17",),
            "Zero-shot is ahead of a linear probe on features that were learned from other labels.",
            [-value for value in other],
            "Zero-shot minus probe, mean over four tasks",
        ),
    ]


def _weak_spots(figures: Figures) -> list[Finding]:
    easy = average(
        *(zero_shot_skill(figures, task) for task in ("color", "shape"))
    )
    binding_skill = skill(of(figures, "captions")["binding"], 2)
    spots = (
        ("CLP-18", "Counting", zero_shot_skill(figures, "number")),
        (
            "CLP-18",
            "Telling textures",
            zero_shot_skill(figures, "texture"),
        ),
        ("CLP-21", "Telling which shape has which colour", binding_skill),
    )
    return [
        above_zero(
            (claim,),
            f"{what} is harder zero-shot than naming colour and shape.",
            minus(easy, weak),
            f"Skill {_percent(interval(weak))} against {_percent(interval(easy))}; difference",
        )
        for claim, what, weak in spots
    ]


def _shift(figures: Figures) -> list[Finding]:
    captions = of(figures, "captions")
    labels = of(figures, "combination labels")
    return [
        above_zero(
            ("CLP-19",),
            "Zero-shot loses a larger share of its accuracy to outlines than to turned and darker pictures.",
            minus(lost(captions, ["outlines"]), lost(captions, NATURAL)),
            "Share lost to outlines minus share lost to the natural shifts",
        ),
        above_zero(
            ("CLP-19",),
            "Under the natural shifts the classifier of labels loses a larger share than zero-shot.",
            minus(lost(labels, NATURAL), lost(captions, NATURAL)),
            "Labels minus captions",
        ),
        above_zero(
            ("CLP-19",),
            "Under outlines the classifier of labels loses a larger share than zero-shot.",
            minus(
                lost(labels, ["outlines"]), lost(captions, ["outlines"])
            ),
            "Labels minus captions",
        ),
    ]


def _data(figures: Figures) -> list[Finding]:
    def zero_shot(num: int) -> list[float]:
        return of(figures, "captions", num)["seen, several"]

    labels = of(figures, "combination labels", FEWEST)["seen, one head"]
    return [
        above_zero(
            ("CLP-20",),
            f"Zero-shot accuracy grows from {FEWEST:,} to {MOST:,} pairs at the same number of steps.",
            minus(zero_shot(MOST), zero_shot(FEWEST)),
            "Gain",
        ),
        above_zero(
            ("CLP-20",),
            f"With {FEWEST:,} pictures labels teach more than captions.",
            minus(labels, zero_shot(FEWEST)),
            "Head of labels minus zero-shot, seen combinations",
        ),
    ]


def _percent(about) -> str:
    return f"{about.mean:.1%} [{about.low:.1%}, {about.high:.1%}]"


EXPERIMENT = Experiment(
    name="d16_zero_shot",
    title="A small CLIP on scenes: unseen combinations, prompts, probes, counting, shifts, data",
    claims=(
        "CLP-01",
        "CLP-02",
        "CLP-14",
        "CLP-16",
        "CLP-17",
        "CLP-18",
        "CLP-19",
        "CLP-20",
        "CLP-21",
    ),
    conditions=(
        *(condition_name("captions", num) for num in PAIRS),
        *(condition_name("combination labels", num) for num in PAIRS),
        condition_name("attribute labels", MOST),
    ),
    run=run,
    judge=judge,
    config={
        "model": "CLIP: 32 px, patch 8, convolutional stem, 2 blocks of width 64 on either side",
        "pairs": list(PAIRS),
        "share of close-ups": CLOSE,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rate": LR,
        "test pictures": NUM_TEST,
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine, gradient norm 1",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
