"""The table of a league from cells with known means; cells may be missing, failed or damaged."""

import csv
import io
import json

import pytest

from mmlab.hub import CheckpointError
from mmlab.league import place
from mmlab.league.intervals import estimate
from mmlab.league.results import league_json, read_cells, read_league
from mmlab.league.standings import FLOPS, MEMORY, PARAMETERS, SECONDS
from mmlab.league.table import make_table, summary_lines, to_csv, to_markdown, write_table
from tests.league.made_up import PLAN, cell, league, probe, seeds, whole, write

UNITER = seeds("uniter", "vqa", [0.5, 0.6, 0.7])
FAILED = cell("uniter", 1, "vqa", status="failed", error="ValueError: no\n  room")


def table_of(*cells, **plan):
    return make_table(league(cells, **plan))


# ---- Cells


def test_cells_are_read_in_order_with_their_folders(tmp_path):
    made = league([*UNITER, cell("albef", 10, "vqa"), cell("albef", 9, "vqa")])
    write(tmp_path, made)
    found = read_cells(tmp_path)
    assert [(c["entry"], c["seed"]) for c in found] == [
        ("albef", 9),
        ("albef", 10),
        ("uniter", 0),
        ("uniter", 1),
        ("uniter", 2),
    ]
    assert found[2] == UNITER[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"entry": "uniter", "se', "damaged"),
        ("[]", "an object"),
        (json.dumps({**UNITER[0], "entry": "lxmert"}), "entry must be 'uniter'"),
        (json.dumps({**UNITER[0], "seed": 3}), "seed must be 0"),
        (json.dumps({**UNITER[0], "status": "fine"}), "status"),
        (json.dumps({**UNITER[0], "figures": None}), "figures"),
    ],
)
def test_a_damaged_cell_is_a_failed_one(tmp_path, text, reason):
    write(tmp_path, league(UNITER))
    (tmp_path / UNITER[0]["folder"] / "cell.json").write_text(text)
    bad, *rest = read_cells(tmp_path)
    assert (bad["entry"], bad["seed"], bad["task"], bad["status"]) == ("uniter", 0, "vqa", "failed")
    assert reason in bad["error"]
    assert rest == UNITER[1:]


def test_a_cell_of_bytes_that_are_no_text_is_a_failed_one(tmp_path):
    write(tmp_path, league(UNITER))
    (tmp_path / UNITER[0]["folder"] / "cell.json").write_bytes(b"\xff\xfe\x00")
    assert [c["status"] for c in read_cells(tmp_path)] == ["failed", "done", "done"]


def test_a_failed_cell_as_a_run_writes_it_is_read(tmp_path):
    where = place.Cell("uniter", 0, "vqa")
    result = place.Result("uniter", "uniter", 0, "vqa", place.FAILED, "ValueError: no room")
    place.write_result(tmp_path, where, result)
    (found,) = read_cells(tmp_path)
    assert (found["error"], found["figures"]) == ("ValueError: no room", {})


def test_a_figure_that_is_no_number_is_not_measured(tmp_path):
    write(tmp_path, league(seeds("uniter", "vqa", [float("nan"), 0.5, "much"])))
    figure = make_table(league(read_cells(tmp_path))).figures["uniter", "vqa"]
    assert figure.estimate.num_seeds == 1
    assert figure.folders == ("cells/uniter/seed1/vqa",)


def test_all_of_a_league_in_one_file(tmp_path):
    write(tmp_path, league(UNITER))
    told = league_json(PLAN, tmp_path)
    assert told["plan"] == PLAN
    assert told["cells"] == UNITER
    assert {"processor", "cores", "torch", "cuda"} <= told["machine"].keys()


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": []}'])
def test_a_file_that_is_no_league_is_an_error(tmp_path, text):
    (tmp_path / "league.json").write_text(text)
    with pytest.raises(ValueError, match=r"league\.json"):
        read_league(tmp_path)


# ---- Means, intervals, seeds


def test_a_mean_has_students_interval_over_the_seeds():
    table = table_of(*UNITER)
    about = table.mean("uniter", "vqa")
    # 4.3027 · 0.1 / √3
    assert (about.mean, about.low, about.high) == pytest.approx((0.6, 0.35159, 0.84841), abs=1e-5)
    assert table.figures["uniter", "vqa"].folders == tuple(c["folder"] for c in UNITER)


def test_one_seed_has_no_interval_and_is_no_error():
    table = table_of(UNITER[0], seeds=[0])
    about = table.mean("uniter", "vqa")
    assert (about.mean, about.low, about.num_seeds) == (0.5, None, 1)
    assert any(line.split() == ["uniter", "50.0"] for line in summary_lines(table))


def test_a_missing_seed_is_told():
    table = table_of(UNITER[0], UNITER[2])
    figure = table.figures["uniter", "vqa"]
    assert (figure.estimate.mean, figure.estimate.num_seeds) == (pytest.approx(0.6), 2)
    assert (figure.missing, figure.failed) == ((1,), ())
    assert "(2 of 3)" in to_markdown(table)


def test_a_failed_cell_is_counted_and_named():
    table = table_of(UNITER[0], FAILED, UNITER[2])
    figure = table.figures["uniter", "vqa"]
    assert figure.estimate.num_seeds == 2
    assert (figure.failed, figure.missing) == ((FAILED["folder"],), ())
    text = to_markdown(table)
    assert "(2 of 3) 1 failed" in text
    assert f"- `{FAILED['folder']}`: ValueError: no room" in text
    assert f"failed: {FAILED['folder']}: ValueError: no room" in summary_lines(table)


def test_an_entry_of_which_all_failed_stands_in_the_table():
    table = table_of(FAILED, *seeds("lxmert", "vqa", [0.5, 0.5, 0.5]))
    assert table.mean("uniter", "vqa") is None
    assert any(line.split() == ["uniter", "failed"] for line in summary_lines(table))


def test_an_entry_without_any_cell_stands_in_the_table():
    table = table_of(*UNITER)
    assert table.figures["vilt", "vqa"].missing == ()
    assert "| vilt | – |" in to_markdown(table)


def test_a_league_without_cells_is_told_as_such():
    table = table_of()
    text = to_markdown(table)
    assert "No task is measured yet." in text
    assert "None." in text
    assert summary_lines(table) == ["No task is measured yet."]


def test_the_blind_stand_last_and_others_as_in_the_plan():
    table = table_of(*seeds("text-only", "vqa", [0.3] * 3), *seeds("vilt-words", "vqa", [0.3] * 3))
    names = [name for name in PLAN["systems"] if name != "vit"]
    assert table.entries == (*names, "vilt-words", "text-only", "vit")
    assert table.systems == (*names, "vilt-words")


def test_recall_is_the_mean_of_both_directions():
    one = probe("albef", 0, dual=(0.4, 0.6, 200))
    one["figures"]["ways"]["dual"]["retrieval"]["text_to_image"]["r@1"] = 0.2
    table = table_of(one)
    assert table.mean("albef", "retrieval, dual").mean == pytest.approx(0.3)
    assert table.mean("albef", "binding, dual").mean == 0.6
    assert table.mean("albef", "retrieval, fusion") is None


def test_columns_of_tasks_that_nobody_did_are_left_out():
    names = {column.name for column in table_of(*UNITER).columns}
    assert "vqa" in names and "vqa score" in names
    assert not names & {"matching", "CIDEr", "retrieval, dual"}


# ---- Costs


def test_costs_are_means_over_seeds():
    first = [cell("uniter", k, "pretraining") for k in range(2)]
    first[1] |= {"flops": 1.2e13, "memory_mib": 700.0}
    rest = [cell("uniter", k, "vqa", accuracy=0.5) | {"seconds": 50.0} for k in range(2)]
    table = table_of(*first, *rest)
    told = {name: table.costs["uniter", name].estimate for name in (PARAMETERS, FLOPS)}
    assert told[PARAMETERS].mean == 1_000_000
    assert told[FLOPS].mean == pytest.approx(1.1e13)
    assert table.costs["uniter", SECONDS].estimate.mean == pytest.approx(150)
    assert table.costs["uniter", MEMORY].estimate.mean == pytest.approx(600)
    assert table.costs["uniter", FLOPS].folders == tuple(c["folder"] for c in first)


def test_an_entry_that_is_not_pretrained_has_no_flops_of_that():
    table = table_of(*seeds("text-only", "vqa", [0.3] * 3))
    assert table.costs["text-only", FLOPS].estimate is None
    assert table.costs["text-only", PARAMETERS].estimate.mean == 1_000_000


# ---- The blind


def blind_league(system, text_only=(0.3, 0.31, 0.29), image_only=(0.2, 0.2, 0.2)):
    return table_of(
        *seeds("uniter", "vqa", system, chance=0.1, commonest=0.15),
        *seeds("lxmert", "vqa", [0.25] * len(system)),
        *seeds("text-only", "vqa", text_only, chance=0.1),
        *seeds("vit", "vqa", image_only),
    )


def test_guesses_and_baselines_stand_beside_a_task():
    blind = blind_league([0.5, 0.51, 0.52]).blind["vqa"]
    assert (blind.chance, blind.commonest) == pytest.approx((0.1, 0.15))
    assert blind.text_only == estimate([0.3, 0.31, 0.29])
    assert blind.image_only == estimate([0.2, 0.2, 0.2])
    assert (blind.best, blind.baseline, blind.solved) == ("uniter", "text-only", False)


@pytest.mark.parametrize(
    ("system", "baseline", "solved"),
    [
        # 0.5 ± 4.3027 · 0.02 / √3 = 0.5 ± 0.0497
        ((0.48, 0.50, 0.52), (0.44, 0.44, 0.44), False),
        ((0.48, 0.50, 0.52), (0.46, 0.46, 0.46), True),
        ((0.48, 0.50, 0.52), (0.60, 0.60, 0.60), True),
        ((0.50,), (0.47,), False),
        ((0.50,), (0.49,), True),
        ((0.50,), (0.55,), True),
    ],
)
@pytest.mark.parametrize("which", ["text-only", "vit"])
def test_a_task_that_a_blind_baseline_reaches_is_flagged(system, baseline, solved, which):
    table = table_of(*seeds("uniter", "vqa", system), *seeds(which, "vqa", baseline))
    assert table.blind["vqa"].solved is solved
    assert (f"blind ({which})" in to_markdown(table)) is solved
    assert any(line.split() == ["blind"] for line in summary_lines(table)) is solved


def test_without_baselines_nothing_is_said_of_blindness():
    table = table_of(*UNITER)
    assert table.blind["vqa"].solved is None
    assert table.figures["uniter", "vqa"].above_blind is None
    assert "not measured" in to_markdown(table)


def test_above_blind_needs_an_interval_without_zero():
    table = blind_league([0.5, 0.51, 0.52])
    assert table.figures["uniter", "vqa"].above_blind is True
    assert table.figures["lxmert", "vqa"].above_blind is False
    assert table.figures["text-only", "vqa"].above_blind is None
    # Welch: 0.05 ± 4.30 · 0.058, wide beyond zero, though the mean is above.
    wide = blind_league([0.25, 0.35, 0.45], text_only=(0.3, 0.3, 0.3))
    assert wide.figures["uniter", "vqa"].above_blind is False


def test_above_blind_is_not_said_of_one_seed():
    table = blind_league([0.5], text_only=(0.3,), image_only=(0.2,))
    assert table.figures["uniter", "vqa"].above_blind is None


# ---- Files


def test_every_number_of_the_csv_is_traced():
    table = make_table(whole())
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == len(table.entries) * (len(table.columns) + 5)
    row = next(r for r in rows if (r["entry"], r["column"]) == ("uniter", "vqa"))
    about = table.mean("uniter", "vqa")
    assert [float(row[name]) for name in ("mean", "low", "high")] == [
        about.mean,
        about.low,
        about.high,
    ]
    assert row["folders"].split() == [f"cells/uniter/seed{k}/vqa" for k in range(3)]
    assert all(r["folders"] for r in rows if r["mean"])


def test_the_markdown_tables_have_as_many_cells_in_each_row():
    lines = [line for line in to_markdown(make_table(whole())).splitlines() if line[:1] == "|"]
    blocks, width = 0, 0
    for line in lines:
        blocks += set(line) <= set("| -:")
        width = line.count("|") if line.startswith(("| entry", "| task")) else width
        assert line.count("|") == width
    assert blocks >= 5


def test_the_summary_is_aligned():
    head, *rest = summary_lines(make_table(whole()))
    assert head.split() == PLAN["tasks"]
    assert len({len(line) for line in [head, *rest]}) == 1


def test_a_run_folder_gets_its_three_files(tmp_path):
    made = whole()
    write(tmp_path, made)
    table = write_table(tmp_path)
    assert (tmp_path / "table.md").read_text() == to_markdown(table)
    assert (tmp_path / "table.csv").read_text() == to_csv(table)
    shipped = read_league(tmp_path / "league.json")
    assert {c["folder"]: c for c in shipped["cells"]} == {c["folder"]: c for c in made["cells"]}
    assert make_table(shipped) == table


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path, league(UNITER))
    write_table(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(path):
        raise OSError("no space left")

    monkeypatch.setattr("mmlab.training.checkpoints._force_to_disk", full)
    with pytest.raises(CheckpointError, match="no space left"):
        write_table(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_a_folder_without_a_plan_is_no_league(tmp_path):
    with pytest.raises(ValueError, match="holds no league"):
        write_table(tmp_path)
