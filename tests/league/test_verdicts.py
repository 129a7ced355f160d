"""Every rule on leagues that were never run, on both sides of it and with cells missing."""

import json

import pytest

from mmlab.league.judging import OUTCOMES, common
from mmlab.league.measures import FINETUNED
from mmlab.league.results import Found
from mmlab.league.verdicts import (
    CONTRAST_FIRST,
    DUAL,
    DUAL_STREAM,
    FUSION,
    PATCHES,
    REGIONS,
    RULES,
    SINGLE_STREAM,
    WITHOUT_CONTRAST,
    judge,
    losses_of,
    to_markdown,
    write_verdicts,
)
from tests.league.made_up import cell, found, league, probe, seeds, whole

NOISE = (-0.01, 0.0, 0.01)


def verdict(name, cells, **plan):
    return {v.name: v for v in judge(league(cells, **plan))}[name]


def groups(task, first, second, high, low, noise=NOISE):
    """Cells of two groups; the seeds of the first are noisy around ``high``."""
    cells = [c for e in first for c in seeds(e, task, [high + n for n in noise])]
    return cells + [c for e in second for c in seeds(e, task, [low] * len(noise))]


def probes(entries, way, recall, binding, passes=10_000, num_seeds=3):
    return [
        probe(entry, k, **{way: (recall + NOISE[k], binding + NOISE[k], passes)})
        for entry in entries
        for k in range(num_seeds)
    ]


SIDES = [(0.8, 0.5, "confirmed"), (0.5, 0.8, "refuted"), (0.502, 0.5, "no difference seen")]


# ---- Binding


@pytest.mark.parametrize(("fusion", "dual", "outcome"), SIDES)
def test_binding_by_pretrained_heads(fusion, dual, outcome):
    first = probes(FUSION, "fusion", 0.5, fusion)
    second = [probe(e, k, dual=(0.5, dual, 200)) for e in DUAL for k in range(3)]
    told = verdict("binding-pretrained", first + second)
    assert told.outcome == outcome
    assert told.estimates["difference"].mean == pytest.approx(fusion - dual)
    assert set(told.folders) == {c["folder"] for c in first + second}


def test_the_interval_of_two_groups_as_computed_by_hand():
    told = verdict("binding-fine-tuned", groups("binding", ["vilt", "uniter"], DUAL, 0.7, 0.5))
    about = told.estimates["difference"]
    # The differences of the seeds: 0.19, 0.20, 0.21; 4.3027 · 0.01 / √3 = 0.02484.
    assert (about.mean, about.low, about.high) == pytest.approx((0.2, 0.17516, 0.22484), abs=1e-5)
    assert "+20.0 points [+17.5, +22.5], 3 seeds" in told.measured


@pytest.mark.parametrize(("fusion", "dual", "outcome"), SIDES)
def test_binding_after_fine_tuning(fusion, dual, outcome):
    cells = groups("binding", FUSION, DUAL, fusion, dual)
    assert verdict("binding-fine-tuned", cells).outcome == outcome


@pytest.mark.parametrize(("fusion", "dual", "outcome"), SIDES)
def test_binding_of_one_network_with_both_heads(fusion, dual, outcome):
    cells = [
        probe(e, k, fusion=(0.5, fusion + NOISE[k], 10_000), dual=(0.5, dual, 200))
        for e in CONTRAST_FIRST
        for k in range(3)
    ]
    # A system with one head alone says nothing here.
    cells += probes(["uniter"], "fusion", 0.5, 0.99)
    told = verdict("binding-same-network", cells)
    assert told.outcome == outcome
    assert not any("uniter" in folder for folder in told.folders)


def test_baselines_and_ablations_are_in_no_group():
    cells = groups("binding", FUSION, DUAL, 0.7, 0.5)
    more = [*seeds("vilt-words", "binding", [0.1] * 3), *seeds("vit", "binding", [0.1] * 3)]
    name = "binding-fine-tuned"
    assert verdict(name, cells + more).estimates == verdict(name, cells).estimates


# ---- Contrast, regions


@pytest.mark.parametrize(("with_it", "without", "outcome"), SIDES)
def test_contrast_before_fusion(with_it, without, outcome):
    cells = groups("matching", CONTRAST_FIRST, WITHOUT_CONTRAST, with_it, without)
    for one in cells:
        one["figures"]["retrieval"] = found(one["figures"]["accuracy"])
    cells += probes(CONTRAST_FIRST, "fusion", with_it, 0.5)
    cells += [probe(e, k, fusion=(without, 0.5, 1)) for e in WITHOUT_CONTRAST for k in range(3)]
    for name in ("contrast-matching", "contrast-retrieval", "contrast-retrieval-fine-tuned"):
        assert verdict(name, cells).outcome == outcome


@pytest.mark.parametrize(("regions", "patches", "outcome"), SIDES)
def test_regions_against_patches(regions, patches, outcome):
    cells = groups("grounding", REGIONS, PATCHES, regions, patches)
    assert verdict("regions-grounding", cells).outcome == outcome
    asked = groups("vqa", REGIONS, PATCHES, regions, patches)
    for one in asked:
        share = one["figures"].pop("accuracy")
        kinds = {"color": share, "shape": share + 0.1, "texture": share - 0.1, "count": 0.0}
        one["figures"]["by_kind"] = kinds
    told = verdict("regions-attributes", asked)
    assert told.outcome == outcome
    assert told.estimates["difference"].mean == pytest.approx(regions - patches)


# ---- Streams


def streams(single, dual, noise):
    return [
        c
        for task in FINETUNED
        for c in groups(task, SINGLE_STREAM, [], single, 0, noise)
        + groups(task, DUAL_STREAM, [], dual, 0, noise)
    ]


@pytest.mark.parametrize(
    ("single", "dual", "outcome"),
    [(0.605, 0.6, "confirmed"), (0.6, 0.605, "confirmed"), (0.65, 0.6, "refuted")],
)
def test_streams_differ_by_less_than_seeds(single, dual, outcome):
    told = verdict("streams", streams(single, dual, NOISE))
    assert told.outcome == outcome
    # The standard deviation of -0.01, 0, 0.01.
    assert told.estimates["spread"].mean == pytest.approx(0.01)


def test_streams_may_be_undecided():
    cells = streams(0.65, 0.6, NOISE)
    for one in cells:
        if one["entry"] in DUAL_STREAM:
            one["figures"]["accuracy"] += (0.06, 0, -0.03)[one["seed"]]
    assert verdict("streams", cells).outcome == "no difference seen"


# ---- Re-ranking


def reranked(recall, passes=1_800, fusion=0.6, entries=CONTRAST_FIRST, noise=(0, 0, 0)):
    return [
        probe(e, k, reranked=(recall + noise[k], 0.5, passes), fusion=(fusion, 0.5, 10_000))
        for e in entries
        for k in range(3)
    ]


@pytest.mark.parametrize(
    ("recall", "noise", "outcome"),
    [
        (0.62, (0, 0, 0), "confirmed"),
        (0.59, (0, 0, 0), "confirmed"),
        (0.57, (0, 0, 0), "refuted"),
        (0.59, (-0.05, 0, 0.05), "no difference seen"),
    ],
)
def test_reranking_reaches_fusion(recall, noise, outcome):
    told = verdict("re-ranking", reranked(recall, noise=noise))
    assert told.outcome == outcome
    assert "18.0 %" in told.measured


def test_reranking_many_candidates_says_nothing_of_a_few():
    cells = reranked(0.6) + reranked(0.6, passes=2_000, entries=["blip"])
    cells = list({c["folder"]: c for c in cells}.values())
    told = verdict("re-ranking", cells)
    assert told.outcome == "not measured" and "20.0 %" in told.measured


def test_reranking_without_counted_passes_is_not_measured():
    cells = reranked(0.6)
    for one in cells:
        del one["figures"]["ways"]["reranked"]["passes"]
    assert verdict("re-ranking", cells).outcome == "not measured"


# ---- Without the picture


def hidden(blank, other, text_only=0.3, entries=("vilt", "uniter"), task="vqa", noise=NOISE):
    cells = seeds("text-only", task, [text_only] * len(noise))
    for entry in entries:
        for k, n in enumerate(noise):
            figures = {"accuracy": 0.8, "blank_image": blank + n, "other_image": other + n}
            cells.append(cell(entry, k, task, **figures))
    return cells


@pytest.mark.parametrize(
    ("blank", "other", "outcome"),
    [
        (0.30, 0.25, "confirmed"),
        (0.33, 0.30, "confirmed"),
        (0.30, 0.40, "refuted"),
        (0.40, 0.30, "refuted"),
        (0.34, 0.30, "no difference seen"),
    ],
)
def test_without_its_picture_a_model_falls_to_the_baseline(blank, other, outcome):
    told = verdict("without-picture", hidden(blank, other))
    assert told.outcome == outcome
    assert len(told.estimates) == 4


def test_what_lies_above_the_baseline_is_named():
    told = verdict("without-picture", hidden(0.3, 0.4, entries=["uniter"]))
    assert "1 of 2 comparisons" in told.measured
    assert "uniter, vqa, other image +10.0 points" in told.measured


def test_dual_encoders_are_not_asked_to_fall():
    cells = hidden(0.3, 0.3) + hidden(0.9, 0.9, entries=["clip"])
    assert verdict("without-picture", cells).outcome == "confirmed"


def test_without_a_text_only_baseline_nothing_is_said():
    cells = [c for c in hidden(0.3, 0.3) if c["entry"] != "text-only"]
    assert verdict("without-picture", cells).outcome == "not measured"


# ---- Masking


def masked(flip, clip, flops=1e13):
    cells = probes(["flip"], "dual", flip, 0.5)
    cells += [probe("clip-vit", k, dual=(clip, 0.5, 200)) for k in range(3)]
    cells += [cell("flip", k, "pretraining") | {"flops": flops} for k in range(3)]
    return cells + [cell("clip-vit", k, "pretraining") for k in range(3)]


@pytest.mark.parametrize(("flip", "clip", "outcome"), SIDES)
def test_masking_at_equal_flops(flip, clip, outcome):
    told = verdict("masking", masked(flip, clip))
    assert told.outcome == outcome
    assert {f"cells/{e}/seed0/pretraining" for e in ("flip", "clip-vit")} <= set(told.folders)


@pytest.mark.parametrize("flops", [0.9e13, 1.1e13, 0.0])
def test_masking_at_other_flops_is_not_measured(flops):
    assert verdict("masking", masked(0.8, 0.5, flops)).outcome == "not measured"


# ---- Answers


@pytest.mark.parametrize(
    ("written", "outcome"), [(0.7, "confirmed"), (0.5, "refuted"), (0.585, "no difference seen")]
)
def test_a_decoder_answers_as_well_as_a_classifier(written, outcome):
    cells = []
    for entry in ("albef", "blip"):
        cells += seeds(entry, "vqa", [0.6] * 3)
        for k in range(3):
            both = {f"{way}_accuracy": written + 3 * NOISE[k] for way in ("ranked", "written")}
            cells.append(cell(entry, k, "vqa_written", **both))
    for name in ("answers-ranked", "answers-written"):
        assert verdict(name, cells).outcome == outcome


# ---- Losses


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("vilt-words", ("vilt", {"words"})),
        ("vilt-match", ("vilt", {"match"})),
        ("vilt-both", ("vilt", {"words", "match"})),
        ("vilt-none", ("vilt", set())),
        ("albef-contrast+match", ("albef", {"contrast", "match"})),
        ("vilt", None),
        ("clip-vit", None),
        ("text-only", None),
    ],
)
def test_losses_are_read_off_the_name(entry, told):
    assert losses_of(entry) == told


def arms(none, words, match, both, task="vqa"):
    told = {"none": none, "words": words, "match": match, "both": both}
    return [
        c
        for name, share in told.items()
        if share is not None
        for c in seeds(f"vilt-{name}", task, [share + n for n in NOISE])
    ]


def test_main_effects_as_computed_by_hand():
    told = verdict("losses-vqa", arms(0.3, 0.4, 0.5, 0.7))
    # MLM: ((0.4 - 0.3) + (0.7 - 0.5)) / 2; ITM: ((0.5 - 0.3) + (0.7 - 0.4)) / 2.
    assert told.estimates["MLM"].mean == pytest.approx(0.15)
    assert told.estimates["ITM"].mean == pytest.approx(0.25)
    assert told.outcome == "confirmed"


@pytest.mark.parametrize(
    ("shares", "outcome"),
    [
        ((None, 0.4, 0.5, 0.7), "confirmed"),
        ((0.3, 0.4, 0.5, 0.35), "refuted"),
        ((0.5, 0.6, 0.5, 0.6), "no difference seen"),
        ((None, 0.4, 0.5, None), "not measured"),
        ((None, None, None, 0.5), "not measured"),
    ],
)
def test_losses_left_out(shares, outcome):
    assert verdict("losses-vqa", arms(*shares)).outcome == outcome


# ---- Missing cells


def test_a_seed_that_few_have_does_not_count():
    values = {name: {0: Found(1.0, ("a",)), 1: Found(2.0, ("b",))} for name in "xyz"}
    values["x"] = {**values["x"], 2: Found(9.0, ("c",))}
    whole_ones, seen = common({**values, "w": {}})
    assert seen == (0, 1)
    assert {key: list(own) for key, own in whole_ones.items()} == {key: [0, 1] for key in "xyz"}


def test_what_lacks_a_seed_that_most_have_is_left_out():
    values = {name: {k: Found(1.0, ()) for k in range(3)} for name in "xyz"}
    values["x"] = {0: Found(1.0, ())}
    whole_ones, seen = common(values)
    assert (set(whole_ones), seen) == ({"y", "z"}, (0, 1, 2))


def test_a_system_left_out_is_named():
    cells = [c for c in groups("binding", FUSION, DUAL, 0.7, 0.5) if c["folder"] != _gone("oscar")]
    told = verdict("binding-fine-tuned", cells)
    assert told.outcome == "confirmed"
    assert "Left out, not measured with every seed: oscar." in told.measured
    assert not any("oscar" in folder for folder in told.folders)


def _gone(entry):
    return f"cells/{entry}/seed1/binding"


def test_a_failed_cell_is_as_good_as_none():
    cells = groups("binding", FUSION, DUAL, 0.7, 0.5)
    broken = [{**c, "status": "failed"} if c["folder"] == _gone("oscar") else c for c in cells]
    without = [c for c in cells if c["folder"] != _gone("oscar")]
    name = "binding-fine-tuned"
    assert verdict(name, broken) == verdict(name, without)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("num_seeds", [0, 1])
def test_no_rule_decides_without_two_seeds(rule, num_seeds):
    found = rule.judge(whole(num_seeds=num_seeds)["cells"])
    assert found.outcome == "not measured"
    assert found.measured and not found.folders


@pytest.mark.parametrize("task", ["probe", "vqa", "binding", "pretraining", "vqa_written"])
def test_no_rule_falls_over_a_task_that_is_missing(task):
    cells = [c for c in whole()["cells"] if c["task"] != task]
    assert {v.outcome for v in judge(league(cells))} <= set(OUTCOMES)


# ---- Told


def test_every_rule_says_what_it_needs_to():
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.statement.endswith(".") and "Confirmed" in rule.rule and "Refuted" in rule.rule
        assert rule.source and all("-" in claim for claim in rule.claims)
        assert rule.claims or rule.name == "without-picture"


def test_all_but_the_ablation_is_measured_in_a_whole_league():
    told = judge(whole())
    missing = [v.name for v in told if v.outcome == "not measured"]
    assert missing == [rule.name for rule in RULES if rule.name.startswith("losses-")]
    assert all(v.folders and v.estimates for v in told if v.name not in missing)


def test_verdicts_are_written_with_their_cells(tmp_path):
    told = write_verdicts(tmp_path, whole())
    read = json.loads((tmp_path / "verdicts.json").read_text())
    assert [v["outcome"] for v in read] == [v.outcome for v in told]
    assert read[0]["estimates"]["difference"]["mean"] == told[0].estimates["difference"].mean
    text = (tmp_path / "verdicts.md").read_text()
    assert text == to_markdown(told)
    assert all(v.measured in text and v.rule in text for v in told)
    assert "`cells/uniter/seed0/probe`" in text
