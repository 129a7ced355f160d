"""The protocol of the experiments, and that every shipped result is what its script says."""

import importlib
import json
import math
import statistics
import sys

import pytest
from scipy import stats

from tests.book.pages import ROOT

sys.path.insert(0, str(ROOT / "book"))
protocol = importlib.import_module("experiments.protocol")
NAMES = protocol.names()


@pytest.mark.parametrize("num_seeds", [2, 5, 10, 13])
def test_the_interval_is_students(num_seeds):
    values = [math.sin(3 * i) for i in range(num_seeds)]
    low, high = stats.t.interval(0.95, num_seeds - 1, statistics.fmean(values), stats.sem(values))
    measured = protocol.interval(values)
    assert measured.low == pytest.approx(low, abs=1e-3)
    assert measured.high == pytest.approx(high, abs=1e-3)


def test_the_difference_is_paired():
    noise = [5.0, -3.0, 0.5, 9.0, -7.0]
    better = [n + 1 + 0.01 * i for i, n in enumerate(noise)]
    assert protocol.difference(better, noise).low > 0.9
    with pytest.raises(ValueError):
        protocol.difference(better, noise[:4])


def test_an_interval_of_one_seed_is_refused():
    with pytest.raises(ValueError, match="needs 2 to 13 seeds, not 1"):
        protocol.interval([0.5])


def test_a_verdict_outside_the_three_is_refused():
    with pytest.raises(ValueError, match="'maybe'"):
        protocol.Finding(("VIT-01",), "s", "r", "maybe", "m")


def _experiment(run, judge):
    return protocol.Experiment(
        name="d00_demo",
        title="a demonstration",
        claims=("VIT-01",),
        conditions=("a", "b"),
        run=run,
        judge=judge,
        seeds=(3, 1, 2),
    )


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    for name in ("HERE", "RESULTS", "UNFINISHED"):
        monkeypatch.setattr(protocol, name, tmp_path / name)
    (tmp_path / "HERE").mkdir()
    script = tmp_path / "HERE" / "d00_demo.py"
    script.write_text("x = 1\n")
    monkeypatch.setattr(sys, "argv", ["d00_demo.py"])
    calls = []

    def run(condition, seed):
        calls.append((condition, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"figure": seed * (2 if condition == "a" else 1)}

    def judge(figures):
        gain = protocol.difference(figures["a"]["figure"], figures["b"]["figure"])
        word = protocol.verdict(gain.low > 0, gain.holds_zero)
        return [protocol.Finding(("VIT-01",), "a above b.", "low > 0", word, str(gain), gain)]

    experiment = _experiment(run, judge)
    with pytest.raises(KeyboardInterrupt):
        protocol.main(experiment)
    assert not (tmp_path / "RESULTS").exists()
    script.write_text("x = 1  # a comment changes nothing\n")
    protocol.main(experiment)
    assert len(calls) == 7 and len(set(calls)) == 6
    result = protocol.load("d00_demo")
    assert result["figures"] == {"a": {"figure": [6, 2, 4]}, "b": {"figure": [3, 1, 2]}}
    assert result["findings"][0]["verdict"] == "no difference seen"
    assert result["script"] == protocol.script_hash("d00_demo")
    script.write_text("x = 2\n")
    assert result["script"] != protocol.script_hash("d00_demo")
    assert not list((tmp_path / "UNFINISHED").iterdir())


def test_every_result_has_a_script():
    assert sorted(p.stem for p in protocol.RESULTS.glob("d[0-9]*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_of_this_script(name):
    """A script that changed after its result must be run again."""
    assert protocol.load(name)["script"] == protocol.script_hash(name), (
        f"book/experiments/{name}.py has changed since data/results/{name}.json was written"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_findings_follow_from_the_figures(name):
    """Judged again, the recorded figures give the recorded findings."""
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    result = protocol.load(name)
    findings = [protocol.asdict(finding) for finding in experiment.judge(result["figures"])]
    assert json.loads(json.dumps(findings)) == result["findings"]
    assert result["name"] == experiment.name == name
    assert result["seeds"] == list(experiment.seeds)
    assert set(result["figures"]) == set(experiment.conditions)
    for measures in result["figures"].values():
        assert all(len(values) == len(experiment.seeds) for values in measures.values())
    assert {c for f in result["findings"] for c in f["claims"]} <= set(experiment.claims)
