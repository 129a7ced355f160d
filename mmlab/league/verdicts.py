"""What a league says of the papers' claims, each by a rule that was written before the run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmlab.league.intervals import ROUNDING, Estimate, estimate, welch
from mmlab.league.judging import (
    AS_GOOD,
    CONFIRMED,
    NO_DIFFERENCE,
    REFUTED,
    Group,
    Judge,
    Judged,
    Values,
    as_good,
    common,
    compare,
    compare_within,
    direction,
    folders,
    not_measured,
    percent,
    points,
    seed_means,
    too_few,
    with_left_out,
)
from mmlab.league.measures import (
    FINETUNED,
    accuracy,
    probe_binding,
    probe_recall,
    recall,
    single,
)
from mmlab.league.plan import PRETRAINING, TEXT_ONLY
from mmlab.league.results import DONE, Cell, Measure, by_seed, done
from mmlab.training.checkpoints import write_text

# Who is what, by the papers. clip-vit is CLIP with the image encoder that FLIP has.
DUAL = ("clip", "clip-vit", "flip")
CONTRAST_FIRST = ("albef", "blip", "blip2", "vlmo")
PATCHES = ("vilt", *CONTRAST_FIRST)
SINGLE_STREAM = ("uniter", "oscar", "visualbert")
DUAL_STREAM = ("vilbert", "lxmert")
REGIONS = (*DUAL_STREAM, *SINGLE_STREAM)
FUSION = (*PATCHES, *REGIONS)
WITHOUT_CONTRAST = ("vilt", "uniter")
WRITERS = ("albef", "blip")

WITHOUT_PICTURE = 0.03
"""At most so much above the text-only baseline counts as having dropped to it."""
FEW_PASSES = 0.20
"""The share of fusion's passes below which re-ranking is cheap."""
SAME_BUDGET = 0.05
"""How far apart the FLOPs of two pretrainings may lie to be called equal."""
LOSSES = {"contrast": "ITC", "match": "ITM", "words": "MLM"}
"""Names of losses in the names of entries, as in ``vilt-words+match``; see ``losses_of``."""

ATTRIBUTES = Measure(
    "attribute questions",
    tuple(("vqa", ("by_kind", kind)) for kind in ("color", "shape", "texture")),
)
DUAL_RECALL = probe_recall("dual")
TUNED_RECALL = recall("retrieval, fine-tuned", "matching", "retrieval")
FUSION_PASSES, RERANKED_PASSES = (
    single(f"passes, {way}", "probe", "ways", way, "passes") for way in ("fusion", "reranked")
)


@dataclass(frozen=True)
class Rule:
    """A claim, and how the cells of a league decide it; ``judge`` sees nothing but the cells."""

    name: str
    claims: tuple[str, ...]
    statement: str
    source: str
    rule: str
    judge: Judge


@dataclass(frozen=True)
class Verdict:
    """A rule and what came of it, with its numbers and the folders of the cells behind them."""

    name: str
    claims: tuple[str, ...]
    statement: str
    source: str
    rule: str
    outcome: str
    measured: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


def judge(league: Mapping[str, object]) -> list[Verdict]:
    """Every rule applied to what ``league.json`` holds; cells may be missing or failed."""
    return [_verdict(rule, rule.judge(league["cells"])) for rule in RULES]


def _verdict(rule: Rule, found: Judged) -> Verdict:
    told = (rule.name, rule.claims, rule.statement, rule.source, rule.rule)
    return Verdict(*told, found.outcome, found.measured, dict(found.estimates), found.folders)


# ---- Streams


def within_spread(cells: Sequence[Cell]) -> Judged:
    """Whether single- and dual-stream differ by less than the seeds of one system do."""
    entries = (*SINGLE_STREAM, *DUAL_STREAM)
    there = {c["task"] for c in cells if c["entry"] in entries and c["status"] == DONE}
    tasks = [task for task in FINETUNED if task in there]
    if not tasks:
        return not_measured("No fine-tuned task of these systems is finished")
    measure = Measure("mean over tasks", tuple(accuracy(task).parts[0] for task in tasks))
    values, seeds = common({entry: by_seed(cells, entry, measure) for entry in entries})
    sides = [[e for e in side if e in values] for side in (SINGLE_STREAM, DUAL_STREAM)]
    if not all(sides):
        return not_measured("One of the two groups has no whole figures")
    if len(seeds) < 2:
        return too_few(len(seeds))
    single_stream, dual_stream = (seed_means(values, side, seeds) for side in sides)
    about = estimate([a - b for a, b in zip(single_stream, dual_stream, strict=True)])
    spread = statistics.fmean(
        statistics.stdev(one.value for one in own.values()) for own in values.values()
    )
    small = abs(about.mean) < spread
    apart = about.above(0) or about.below(0)
    outcome = CONFIRMED if small else REFUTED if apart else NO_DIFFERENCE
    text = (
        f"Single-stream {percent(single_stream)} ({', '.join(sides[0])}), dual-stream "
        f"{percent(dual_stream)} ({', '.join(sides[1])}): {points(about)}; spread of the seeds "
        f"{100 * spread:.1f} points; mean over {', '.join(tasks)}; {len(seeds)} seeds"
    )
    missing = [entry for entry in entries if entry not in values]
    estimates = {"difference": about, "spread": Estimate(spread, None, None, len(seeds))}
    return Judged(outcome, with_left_out(text, missing), estimates, folders(values))


# ---- Re-ranking


def reranking(cells: Sequence[Cell]) -> Judged:
    """Whether re-ranking is as good as fusion for few of its passes."""
    within = compare_within(
        probe_recall("reranked"), probe_recall("fusion"), CONTRAST_FIRST, as_good
    )
    found = within(cells)
    share = _passes_share(cells)
    if not found.estimates:
        return found
    if share is None:
        return not_measured("The passes were not counted")
    # How many candidates there are is chosen, not found: too many say nothing of a few.
    if share >= FEW_PASSES:
        return not_measured(f"Re-ranking took up to {100 * share:.1f} % of the passes of fusion")
    text = f"{found.measured} Passes: at most {100 * share:.1f} % of those of fusion."
    return found._replace(measured=text)


def _passes_share(cells: Sequence[Cell]) -> float | None:
    """The largest share of fusion's passes that re-ranking took, of all systems and seeds."""
    sides = [
        (by_seed(cells, entry, RERANKED_PASSES), by_seed(cells, entry, FUSION_PASSES))
        for entry in CONTRAST_FIRST
    ]
    shares = [
        few[seed].value / every[seed].value
        for few, every in sides
        for seed in few
        if seed in every and every[seed].value
    ]
    return max(shares, default=None)


# ---- Without the picture


def without_picture(cells: Sequence[Cell]) -> Judged:
    """Whether fusion models that see nothing, or another picture, fall to the text-only baseline.

    Every system, task and way of hiding the picture is one comparison.
    """
    told, estimates, sources, holds, fails, is_short = [], {}, {}, 0, 0, False
    for entry, task, way in _hidden(cells):
        shown = by_seed(cells, entry, single(task, task, way))
        blind = by_seed(cells, TEXT_ONLY, accuracy(task))
        about = welch(*([one.value for one in own.values()] for own in (shown, blind)))
        if not about.has_interval:
            is_short = True
            continue
        name = f"{entry}, {task}, {way.replace('_', ' ')}"
        estimates[name] = about
        sources |= {(entry, task, way): shown, (TEXT_ONLY, task): blind}
        holds += about.mean <= WITHOUT_PICTURE + ROUNDING
        fails += about.above(WITHOUT_PICTURE)
        if about.mean > WITHOUT_PICTURE + ROUNDING:
            told.append(f"{name} {points(about)}")
    if not estimates:
        return too_few(1) if is_short else not_measured("No text-only baseline to drop to")
    outcome = REFUTED if fails else CONFIRMED if holds == len(estimates) else NO_DIFFERENCE
    text = f"{holds} of {len(estimates)} comparisons lie within the margin"
    text += f". Above it: {'; '.join(told)}" if told else ""
    systems = {name.split(",")[0] for name in estimates}
    missing = [entry for entry in FUSION if entry not in systems]
    return Judged(outcome, with_left_out(text, missing), estimates, folders(sources))


def _hidden(cells: Sequence[Cell]) -> Iterator[tuple[str, str, str]]:
    """System, task and way of hiding the picture, where both sides are measured."""
    for entry in FUSION:
        for task in FINETUNED:
            if not by_seed(cells, TEXT_ONLY, accuracy(task)):
                continue
            for way in ("blank_image", "other_image"):
                if by_seed(cells, entry, single(task, task, way)):
                    yield entry, task, way


# ---- Masking at equal FLOPs


def masking(cells: Sequence[Cell]) -> Judged:
    """Whether FLIP retrieves better than the CLIP of its size that cost as much."""
    flip, clip = (
        Group(name, (entry,), DUAL_RECALL)
        for name, entry in (("FLIP", "flip"), ("CLIP", "clip-vit"))
    )
    found = compare(flip, clip, direction)(cells)
    if not found.estimates:
        return found
    runs = [_runs(cells, entry) for entry in ("flip", "clip-vit")]
    if not all(runs):
        return not_measured("The FLOPs of the two pretrainings are not known")
    costs = [statistics.fmean(float(cell["flops"]) for cell in own) for own in runs]
    ratio = costs[0] / costs[1]
    if abs(ratio - 1) > SAME_BUDGET:
        return not_measured(f"FLIP took {ratio:.2f} times the FLOPs of CLIP")
    read = (*found.folders, *(cell["folder"] for own in runs for cell in own))
    text = f"{found.measured} FLOPs of FLIP / CLIP: {ratio:.3f}."
    return found._replace(measured=text, folders=read)


def _runs(cells: Sequence[Cell], entry: str) -> list[Cell]:
    """The pretrainings of an entry whose FLOPs were counted."""
    return [cell for cell in done(cells, entry, PRETRAINING) if cell.get("flops")]


# ---- Losses left out


def losses_of(entry: str) -> tuple[str, frozenset[str]] | None:
    """System and losses of an entry of a loss ablation, None for any other entry.

    ``vilt-words+match`` learns from both; ``vilt-both`` says the same, and ``vilt-none`` is not
    pretrained.
    """
    system, _, rest = entry.partition("-")
    aliases = {"both": "words+match", "none": ""}
    names = frozenset(filter(None, aliases.get(rest, rest).split("+")))
    is_arm = rest and names <= LOSSES.keys()
    return (system, names) if is_arm else None


def loss_effects(measure: Measure) -> Judge:
    """A judge of the main effect of each loss: with it minus without, all others alike."""

    def judge(cells: Sequence[Cell]) -> Judged:
        arms = {e: arm for e in dict.fromkeys(c["entry"] for c in cells) if (arm := losses_of(e))}
        values, seeds = common({entry: by_seed(cells, entry, measure) for entry in arms})
        pairs = {loss: _pairs({e: arms[e] for e in values}, loss) for loss in LOSSES}
        pairs = {loss: own for loss, own in pairs.items() if own}
        if not pairs:
            return not_measured("No two entries that differ by one loss")
        if len(seeds) < 2:
            return too_few(len(seeds))
        effects = {LOSSES[loss]: _effect(values, own, seeds) for loss, own in pairs.items()}
        outcomes = [direction(about) for about in effects.values()]
        outcome = (
            REFUTED
            if REFUTED in outcomes
            else NO_DIFFERENCE
            if NO_DIFFERENCE in outcomes
            else CONFIRMED
        )
        told = "; ".join(f"{loss} {points(about)}" for loss, about in effects.items())
        text = f"Main effects on {measure.name}: {told}; {len(seeds)} seeds"
        missing = [entry for entry in arms if entry not in values]
        return Judged(outcome, with_left_out(text, missing), effects, folders(values))

    return judge


def _pairs(arms: Mapping[str, tuple[str, frozenset[str]]], loss: str) -> list[tuple[str, str]]:
    """Entries with a loss, each with the one that lacks it and is the same otherwise."""
    by_arm = {arm: entry for entry, arm in arms.items()}
    without = {entry: (system, names - {loss}) for entry, (system, names) in arms.items()}
    return [
        (entry, by_arm[without[entry]])
        for entry, (_, names) in arms.items()
        if loss in names and without[entry] in by_arm
    ]


def _effect(values: Values, pairs: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Estimate:
    return estimate(
        [
            statistics.fmean(values[a][seed].value - values[b][seed].value for a, b in pairs)
            for seed in seeds
        ]
    )


# ---- The rules

_DIRECTION = (
    "The difference of the groups' means, seed by seed. Confirmed: its interval lies above zero. "
    "Refuted: below zero."
)
_AS_GOOD = (
    f"Confirmed: the interval of the difference lies above minus {100 * AS_GOOD:.0f} points. "
    "Refuted: it does not, and lies below zero."
)
_EFFECTS = (
    "Main effect of a loss: with it minus without, all others alike, seed by seed. Confirmed: "
    "every interval lies above zero. Refuted: one lies below zero."
)
_ALBEF = "ALBEF (Li et al. 2021, arXiv 2107.07651)"
_BLIP = "BLIP (Li et al. 2022, arXiv 2201.12086)"
_VILT = "ViLT (Kim et al. 2021, arXiv 2102.03334)"


def _binding_rules() -> Iterator[Rule]:
    weak = ("FND-10", "FND-22", "CLP-21")
    yield Rule(
        "binding-pretrained",
        weak,
        "Dual encoders are weak at binding words to objects, fusion encoders are strong.",
        f"{_VILT}, section 2.1; D03",
        f"Fusion minus dual, by the heads that pretraining trained; chance is 50 %. {_DIRECTION}",
        compare(
            Group("fusion", FUSION, probe_binding("fusion")),
            Group("dual", DUAL, probe_binding("dual")),
            direction,
        ),
    )
    yield Rule(
        "binding-same-network",
        ("FND-11", "FND-22"),
        "In a network that has both heads, the fusion head binds better than the dual one.",
        "VLMo (Bao et al. 2021, arXiv 2111.02358), abstract; D03",
        f"Fusion minus dual head of the same networks, pretrained. {_DIRECTION}",
        compare_within(probe_binding("fusion"), probe_binding("dual"), CONTRAST_FIRST, direction),
    )
    yield Rule(
        "binding-fine-tuned",
        weak,
        "Dual encoders stay weak at binding even when they learn from hard negatives.",
        f"{_VILT}, section 2.1; the control of D03",
        "Fusion minus dual on the task binding, fine-tuned on captions that are bound wrongly; "
        f"chance is 50 %. {_DIRECTION}",
        compare(
            Group("fusion", FUSION, accuracy("binding")),
            Group("dual", DUAL, accuracy("binding")),
            direction,
        ),
    )


def _contrast_rules() -> Iterator[Rule]:
    told = (
        ("retrieval", "retrieval by the pretrained fusion head", probe_recall("fusion")),
        ("retrieval-fine-tuned", "retrieval after fine-tuning", TUNED_RECALL),
        ("matching", "matching after fine-tuning", accuracy("matching")),
    )
    for name, what, measure in told:
        yield Rule(
            f"contrast-{name}",
            ("ALB-12", "BLP-08"),
            f"A contrastive loss before fusion helps {what}.",
            f"{_ALBEF}, section 3.2; D41",
            "Systems with the loss (ALBEF, BLIP, BLIP-2, VLMo) minus those without (ViLT, UNITER). "
            f"They differ in more than that loss. {_DIRECTION}",
            compare(
                Group("with contrast", CONTRAST_FIRST, measure),
                Group("without", WITHOUT_CONTRAST, measure),
                direction,
            ),
        )


def _region_rules() -> Iterator[Rule]:
    told = (
        ("grounding", "grounding", accuracy("grounding")),
        ("attributes", "questions for colour, shape and texture", ATTRIBUTES),
    )
    for name, what, measure in told:
        yield Rule(
            f"regions-{name}",
            ("VLT-02", "VLT-19"),
            f"Regions, though from a noisy detector, serve {what} better than patches.",
            f"{_VILT}, Table 2; D03",
            f"Region systems minus patch systems, fine-tuned. {_DIRECTION}",
            compare(
                Group("regions", REGIONS, measure), Group("patches", PATCHES, measure), direction
            ),
        )


def _other_rules() -> Iterator[Rule]:
    yield Rule(
        "streams",
        ("FND-18", "VLT-08", "REG-03"),
        "Single-stream and dual-stream systems differ by less than the seeds of one system.",
        "Bugliarello et al. 2020 (arXiv 2011.15124), against claims for either design; D02",
        "Mean accuracy over the fine-tuned tasks, UNITER, OSCAR and VisualBERT minus ViLBERT and "
        "LXMERT. Confirmed: the difference is smaller than the standard deviation over seeds, mean "
        "of the systems. Refuted: it is not, and its interval leaves out zero.",
        within_spread,
    )
    yield Rule(
        "re-ranking",
        ("FND-11", "VMO-03", "DST-19"),
        "Re-ranking a few candidates reaches fusion's recall in less than a fifth of its passes.",
        f"{_BLIP}, section 5.1; D36",
        "Recall at 1, re-ranked minus fusion, of the same pretrained networks. "
        f"{_AS_GOOD} Not measured where a system took {100 * FEW_PASSES:.0f} % of fusion's passes "
        "or more.",
        reranking,
    )
    yield Rule(
        "without-picture",
        (),
        "Without its picture a fusion model does no better than a model that only reads.",
        "A check of the league itself: a model above that baseline would know the answers from "
        "elsewhere; D35",
        "Accuracy with a blank and with another item's picture, minus the text-only baseline, for "
        f"each system and task. Confirmed: every mean is at most {100 * WITHOUT_PICTURE:.0f} "
        "points. Refuted: a whole interval (Welch) lies above that.",
        without_picture,
    )
    yield Rule(
        "masking",
        ("FLP-01", "FLP-02"),
        "At equal FLOPs, learning from some of the image patches retrieves better than from all.",
        "FLIP (Li et al. 2022, arXiv 2212.00794), abstract; D17",
        "Recall at 1, FLIP minus the CLIP with the same image encoder, whose pretraining took the "
        f"same FLOPs within {100 * SAME_BUDGET:.0f} %. {_DIRECTION}",
        masking,
    )
    for way, how in (("ranked", "ranks all answers"), ("written", "writes its answer")):
        yield Rule(
            f"answers-{way}",
            ("DST-06",),
            f"A head that {how} answers as well as one that classifies.",
            f"{_ALBEF} and {_BLIP}: questions answered by a decoder; D34",
            f"ALBEF and BLIP, {way} minus classified, of the same systems. {_AS_GOOD}",
            compare_within(
                single(way, "vqa_written", f"{way}_accuracy"), accuracy("vqa"), WRITERS, as_good
            ),
        )


def _loss_rules() -> Iterator[Rule]:
    for measure in (TUNED_RECALL, accuracy("matching"), accuracy("vqa")):
        yield Rule(
            f"losses-{measure.name}".replace(", ", "-"),
            ("FND-26", "ALB-10"),
            f"Each of ITC, ITM and MLM that is left out costs {measure.name}.",
            f"{_ALBEF}, section 3.2; D41",
            _EFFECTS,
            loss_effects(measure),
        )


RULES = (
    *_binding_rules(),
    *_contrast_rules(),
    *_region_rules(),
    *_other_rules(),
    *_loss_rules(),
)
"""Every claim that a league can judge."""


# ---- Written


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """All verdicts for reading, each with its rule, its numbers and the cells behind them."""
    parts = ["# What the league says of the papers' claims"]
    for verdict in verdicts:
        claims = f" ({', '.join(verdict.claims)})" if verdict.claims else ""
        cells = ", ".join(f"`{folder}`" for folder in verdict.folders) or "none"
        parts.append(
            f"## {verdict.outcome.capitalize()}: {verdict.statement}\n\n"
            f"- Source: {verdict.source}{claims}.\n"
            f"- Rule: {verdict.rule}\n"
            f"- Measured: {verdict.measured}\n"
            f"- Cells: {cells}."
        )
    return "\n\n".join(parts) + "\n"


def write_verdicts(folder: Path, league: Mapping[str, object]) -> list[Verdict]:
    """Write ``verdicts.json`` and ``verdicts.md``, each whole or not at all.

    CheckpointError if a file cannot be written.
    """
    verdicts, folder = judge(league), Path(folder)
    told = [asdict(verdict) for verdict in verdicts]
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "verdicts.json", text + "\n")
    write_text(folder / "verdicts.md", to_markdown(verdicts))
    return verdicts
