"""CapFilt: captions from the web are cleaned by a model that writes new ones and one that judges.

Li et al. 2022 (BLIP, arXiv 2201.12086), section 3.3. A captioner describes every picture anew, a
filter drops what does not fit, of the web's texts and of the new ones; pairs that people wrote stay
as they are. Captioner and filter start from the same pretrained model and are fine-tuned apart from
each other, so that the one does not forgive the other's mistakes. Then a new model is trained on
what is left. The official code has no script for this: the threshold of 0.5 is what its author
gives in issue 54, the paper says "predicted as unmatched".
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab.datasets.example import Caption, Example
from mmlab.datasets.shards import write_shards
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.models.blip import BLIP
from mmlab.models.blip_tasks import match_probabilities, sample_captions
from mmlab.models.checks import check

SYNTHETIC, HUMAN = "synthetic", "human"
"""What ``Caption.kind`` is for texts that a captioner or a person wrote; all others are the web's.
"""
SETTINGS_FILE = "capfilt.json"

Write = Callable[[Sequence[Example], torch.Generator], Sequence[str]]
"""A captioner: one new text for each example; what it draws comes from the generator."""
Judge = Callable[[Sequence[Example], Sequence[str]], Float[Tensor, " pairs"]]
"""A filter: how likely each text fits its example, 0 to 1."""


class CapFiltError(ValueError):
    """A folder that cannot be gone on with; the message is one sentence."""


@dataclass(frozen=True)
class CapFiltOptions:
    """How texts are judged and where they go.

    - ``threshold``: the least probability of a match that is kept.
    - ``seed``: of all that the captioner draws.
    - ``chunk_size``: examples that are written together, as a shard of their own.
    - ``batch_size``: examples that captioner and filter see at a time.

    A wrong value raises ValueError.
    """

    threshold: float = 0.5
    seed: int = 0
    chunk_size: int = 1000
    batch_size: int = 32

    def __post_init__(self) -> None:
        check(0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1]")
        for name in ("chunk_size", "batch_size"):
            value = getattr(self, name)
            check(value >= 1, name, value, "at least 1")


@dataclass(frozen=True)
class Verdict:
    """What became of one text, and why.

    ``example`` is the example's id, which no other has; ``origin`` is ``"web"``, ``"synthetic"`` or
    ``"human"``; ``match`` is the filter's probability, None where no filter was asked.
    """

    example: str
    text: str
    origin: str
    match: float | None
    kept: bool
    reason: str


@dataclass
class CapFiltReport:
    """How many texts of each origin there were, and how many of them were kept."""

    seen: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.seen[verdict.origin] += 1
        self.kept[verdict.origin] += verdict.kept

    def noise_ratio(self, origin: str) -> float:
        """The share of texts of ``origin`` that were dropped (BLIP, table 2); NaN without any."""
        seen = self.seen[origin]
        return 1 - self.kept[origin] / seen if seen else float("nan")

    def __str__(self) -> str:
        parts = (f"{self.kept[o]:,} of {n:,} {o} texts" for o, n in sorted(self.seen.items()))
        return f"kept {', '.join(parts)}" if self.seen else "no texts"


def bootstrap_captions(
    examples: Iterable[Example],
    folder: str | os.PathLike[str],
    captioner: Write | None,
    judge: Judge | None,
    options: CapFiltOptions = CapFiltOptions(),
) -> CapFiltReport:
    """Write the cleaned data as shards into ``folder``, and a verdict on every text beside them.

    For the ablations of the paper, ``captioner=None`` writes no new texts, and ``judge=None`` keeps
    all. Chunk ``n`` is ``chunk-<n>-00000.tar``, which holds those examples that kept a text, and
    ``chunk-<n>.jsonl`` with the verdicts, whole or not at all. A killed run is gone on with by the
    same call, which reads the same examples in the same order again, skips whole chunks and then
    gives what an unbroken run gives. CapFiltError if the folder is of other examples or options.
    """
    folder = Path(folder)
    _check_settings(folder, options, captioner, judge)
    report = CapFiltReport()
    for number, chunk in enumerate(_parts(examples, options.chunk_size)):
        verdicts = _finished(folder, number, chunk)
        if verdicts is None:
            draws = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
            verdicts = _judge_chunk(chunk, captioner, judge, options, draws)
            _write_chunk(folder, number, chunk, verdicts)
        for verdict in verdicts:
            report.add(verdict)
    return report


def read_verdicts(folder: str | os.PathLike[str]) -> Iterator[Verdict]:
    """All verdicts of the whole chunks in ``folder``, in order."""
    for path in sorted(Path(folder).glob("chunk-*.jsonl")):
        yield from _read_lines(path)


# With BLIP


@dataclass(frozen=True)
class BlipCaptioner:
    """A BLIP with a words head as captioner: nucleus sampling, one text a picture.

    ``prepare`` makes a batch of images of examples; ``prompt`` begins every text and is cut off
    again. ``sampling`` are options of ``mmlab.nn.sample_text``.
    """

    model: BLIP
    tokenizer: Tokenizer
    prepare: Callable[[Sequence[Example]], Float[Tensor, "batch channels height width"]]
    prompt: str = ""
    sampling: dict[str, float | int] = field(default_factory=dict)

    def __call__(self, examples: Sequence[Example], draws: torch.Generator) -> list[str]:
        """One text for each example."""
        images = self.prepare(examples).to(_device(self.model))
        ids = self.tokenizer(self.prompt, add_last=False, allow_empty=True).input_ids[0]
        found = sample_captions(
            self.model, images, ids, self.tokenizer.sep_id, generator=draws, **self.sampling
        )
        return self.tokenizer.decode(found[:, len(ids) :])


@dataclass(frozen=True)
class BlipFilter:
    """A BLIP with a match head as filter; ``prepare`` as above."""

    model: BLIP
    tokenizer: Tokenizer
    prepare: Callable[[Sequence[Example]], Float[Tensor, "batch channels height width"]]

    def __call__(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Float[Tensor, " pairs"]:
        """How likely each text fits its example."""
        device = _device(self.model)
        length = self.model.config.context_length
        tokens = self.tokenizer(list(texts), length, allow_empty=True).to(device)
        images = self.prepare(examples).to(device)
        return match_probabilities(self.model, images, tokens.input_ids, tokens.attention_mask)


def _device(model: BLIP) -> torch.device:
    return next(model.parameters()).device


# The steps


def _judge_chunk(
    chunk: Sequence[Example],
    captioner: Write | None,
    judge: Judge | None,
    options: CapFiltOptions,
    draws: torch.Generator,
) -> list[Verdict]:
    verdicts = []
    for batch in _parts(chunk, options.batch_size):
        pairs = [(example, c.text, _origin(c)) for example in batch for c in example.captions]
        if captioner is not None:
            texts = captioner(batch, draws)
            new = zip(batch, texts, strict=True)
            pairs += [(example, text.strip(), SYNTHETIC) for example, text in new]
        verdicts += _verdicts(pairs, judge, options)
    return verdicts


def _verdicts(
    pairs: Sequence[tuple[Example, str, str]], judge: Judge | None, options: CapFiltOptions
) -> list[Verdict]:
    """The filter is asked about all texts but people's and empty ones."""
    asked = [pair for pair in pairs if judge is not None and pair[1] and pair[2] != HUMAN]
    chances = {}
    for part in _parts(asked, options.batch_size):
        found = judge([example for example, _, _ in part], [text for _, text, _ in part])
        chances |= {
            (id(example), text): chance
            for (example, text, _), chance in zip(part, found.tolist(), strict=True)
        }
    verdicts = []
    for example, text, origin in pairs:
        match = None if origin == HUMAN else chances.get((id(example), text))
        kept, reason = _decide(text, origin, match, options.threshold)
        verdicts.append(Verdict(example.id, text, origin, match, kept, reason))
    return verdicts


def _decide(text: str, origin: str, match: float | None, threshold: float) -> tuple[bool, str]:
    if origin == HUMAN:
        return True, "written by a person"
    if not text:
        return False, "empty"
    if match is None:
        return True, "no filter"
    kept = match >= threshold
    return kept, f"match {match:.3f} is {'at least' if kept else 'below'} {threshold}"


def _origin(caption: Caption) -> str:
    return caption.kind if caption.kind in (HUMAN, SYNTHETIC) else "web"


def _cleaned(chunk: Sequence[Example], verdicts: Sequence[Verdict]) -> Iterator[Example]:
    """Examples with the texts that were kept, their own first, and no text twice."""
    kept: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        if verdict.kept:
            kept.setdefault(verdict.example, {})[verdict.text] = verdict
    for example in chunk:
        texts = kept.get(example.id, {})
        old = tuple(caption for caption in example.captions if caption.text in texts)
        known = {caption.text for caption in old}
        new = tuple(Caption(text, kind=SYNTHETIC) for text in texts if text not in known)
        if old or new:
            yield replace(example, captions=old + new)


# The folder


def _check_settings(
    folder: Path, options: CapFiltOptions, captioner: Write | None, judge: Judge | None
) -> None:
    """A folder belongs to one run; the first call writes down which."""
    roles = {"captioner": captioner is not None, "judge": judge is not None}
    settings = asdict(options) | roles
    path = folder / SETTINGS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    known = json.loads(path.read_text("utf-8"))
    other = [name for name in settings if known.get(name) != settings[name]]
    if other:
        name = other[0]
        raise CapFiltError(
            f"{str(folder)!r} is of a run with {name} {known.get(name)!r}, not {settings[name]!r}"
        )


def _finished(folder: Path, number: int, chunk: Sequence[Example]) -> list[Verdict] | None:
    """The verdicts of a chunk that is done; None if it is not."""
    path = folder / f"chunk-{number:05d}.jsonl"
    if not path.exists():
        return None
    verdicts = list(_read_lines(path))
    known = {example.id for example in chunk}
    strange = [v.example for v in verdicts if v.example not in known]
    if strange:
        raise CapFiltError(
            f"{str(path)!r} has a verdict on {strange[0]!r}, which is not in this chunk; the "
            "examples must be those of the first call, in their order"
        )
    return verdicts


def _write_chunk(
    folder: Path, number: int, chunk: Sequence[Example], verdicts: Sequence[Verdict]
) -> None:
    """The shards first: the verdicts beside them say that the chunk is whole."""
    prefix = f"chunk-{number:05d}"
    for left_over in folder.glob(f"{prefix}-*.tar"):
        left_over.unlink()
    write_shards(_cleaned(chunk, verdicts), folder, prefix)
    lines = (json.dumps(asdict(v), ensure_ascii=False) for v in verdicts)
    _write_text(folder / f"{prefix}.jsonl", "".join(f"{line}\n" for line in lines))


def _read_lines(path: Path) -> Iterator[Verdict]:
    for line in path.read_text("utf-8").splitlines():
        yield Verdict(**json.loads(line))


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _parts(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
