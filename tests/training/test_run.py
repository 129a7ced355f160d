import json
import math
import signal
from dataclasses import replace
from random import Random

import pytest
import torch
from accelerate import DistributedType, PartialState
from safetensors.torch import load_file

from mmlab.hub import CheckpointError, create_model
from mmlab.training.loop import TrainingError
from mmlab.training.run import (
    _check_distribution,
    load_network,
    read_metrics,
    recipe_of,
    run,
    training_data,
    weights_file,
)
from mmlab.training.system import image_size
from tests.training.tiny import (
    PAIR,
    TINY,
    TINY_CLIP,
    TINY_VILT,
    TINY_VLMO,
    start,
    write_recipe,
)


class Killed(Exception):
    pass


def die_at(step):
    def report(figures):
        if figures["step"] == step:
            raise Killed

    return report


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(TINY, folder)
    return folder


def test_a_run_folder_holds_everything(unbroken):
    assert recipe_of(unbroken) == TINY
    assert recipe_of(unbroken / "model.safetensors") == TINY
    lines = read_metrics(unbroken / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "lr", "seconds", "gradient_norm"} < line.keys() for line in lines)
    checkpoints = sorted(p.name for p in (unbroken / "checkpoints").iterdir())
    assert checkpoints == ["step-00000004", "step-00000006"]


def test_the_first_loss_is_that_of_a_zero_head(unbroken):
    first = read_metrics(unbroken / "metrics.jsonl")[0]["loss"]
    assert first == pytest.approx(math.log(9), abs=1e-5)


def test_the_finished_weights_make_a_model(unbroken):
    options = {**TINY.model, "num_classes": 9}
    model = create_model("vit-mini", pretrained=unbroken, **options)
    assert same(dict(model.state_dict()), weights(unbroken))
    # They are the average, not the last step.
    last = load_file(unbroken / "checkpoints/step-00000006/model.safetensors")
    assert not same(last, weights(unbroken))


def test_the_same_recipe_gives_the_same_weights(unbroken, tmp_path):
    torch.manual_seed(99)
    run(replace(TINY, workers=1), tmp_path / "again")
    assert same(weights(tmp_path / "again"), weights(unbroken))


def test_another_seed_gives_other_weights(unbroken, tmp_path):
    run(replace(TINY, seed=1), tmp_path / "other")
    assert not same(weights(tmp_path / "other"), weights(unbroken))


@pytest.mark.parametrize("steps", [(1,), (3,), (5, 6)])
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(steps, unbroken, tmp_path):
    for i, step in enumerate(steps):
        with pytest.raises(Killed):
            run(TINY, tmp_path, resume=i > 0, report=die_at(step))
    torch.manual_seed(99)
    run(TINY, tmp_path, resume=True)
    assert same(weights(tmp_path), weights(unbroken))
    broken, whole = (read_metrics(f / "metrics.jsonl") for f in (tmp_path, unbroken))
    assert [line["loss"] for line in broken] == [line["loss"] for line in whole]


def test_a_line_of_metrics_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_training_learns(tmp_path):
    model = {**TINY.model, "dropout": 0.0}
    recipe = replace(TINY, model=model, steps=60, batch_size=32, ema_decay=0.0, checkpoint_every=60)
    run(replace(recipe, data="scenes", target="background", num_images=200), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_bfloat16_stays_close_to_float32(unbroken, tmp_path):
    run(replace(TINY, precision="bf16"), tmp_path)
    halves, singles = (
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path, unbroken)
    )
    assert halves == pytest.approx(singles, rel=0.02) and halves != singles
    assert all(t.dtype != torch.bfloat16 for t in weights(tmp_path).values())


def test_label_smoothing_changes_the_loss_only_after_the_zero_head(unbroken, tmp_path):
    run(replace(TINY, label_smoothing=0.2), tmp_path)
    smooth, sharp = (read_metrics(f / "metrics.jsonl") for f in (tmp_path, unbroken))
    assert smooth[0]["loss"] == pytest.approx(sharp[0]["loss"], abs=1e-5)
    assert smooth[-1]["loss"] != sharp[-1]["loss"]


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_checkpoint(tmp_path):
    recipe = replace(TINY, lr=1e30, warmup=0, checkpoint_every=1, clip_norm=0.0, keep=1)
    with pytest.raises(TrainingError, match=r"(loss|norm) is (nan|inf) at step \d; .*step-0") as e:
        run(recipe, tmp_path)
    assert "\n" not in str(e.value)
    assert weights_file(tmp_path).parent.name in str(e.value)


def test_a_flip_never_touches_left_and_right():
    assert training_data(TINY).augment
    recipe = replace(TINY, data="scenes", target="left_right", num_images=20)
    data = training_data(recipe)
    rows = torch.arange(20)
    first, second = (
        data.batch(rows, slice(None), torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert torch.equal(first["images"], second["images"])


def test_a_run_is_not_overwritten(unbroken):
    with pytest.raises(ValueError, match="holds a run; resume it"):
        run(TINY, unbroken)


def test_a_run_is_resumed_with_its_own_recipe(unbroken):
    with pytest.raises(ValueError, match=r"has lr = 0\.002, not 0\.1$"):
        run(replace(TINY, lr=0.1), unbroken, resume=True)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        run(TINY, tmp_path, resume=True)


def test_nothing_is_written_for_a_recipe_that_cannot_be(tmp_path):
    for change in (
        {"size": "mimi"},
        {"model": {"dmi": 3}},
        {"model": {"num_classes": 3}},
        {"model": {"num_channels": 1}},
        {"model": {"grid": 3}},
        {"target": "grup"},
        {"batch_size": 10_000},
    ):
        with pytest.raises(ValueError):
            run(replace(TINY, **change), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_recipe_s_own_patches_must_fill_the_image():
    model = {"image_size": 42, "patch_size": 14, "stem": "linear"}
    assert image_size(replace(TINY, model=model)) == 42
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size=14, got 48"):
        image_size(replace(TINY, model={**model, "image_size": 48}))


def test_weights_of_another_target_are_refused(unbroken):
    with pytest.raises(CheckpointError, match="tells 9 classes apart, the target has 95"):
        load_network(TINY, unbroken / "model.safetensors", 95)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        weights_file(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_costs_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda")
    PartialState._reset_state()
    try:
        with pytest.raises(
            ValueError, match=r"the device that accelerate is set to: .*CUDA"
        ) as caught:
            run(TINY, tmp_path / "run")
    finally:
        PartialState._reset_state()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_model_in_pieces_is_refused():
    with pytest.raises(ValueError, match="whole model; FSDP splits it"):
        _check_distribution(DistributedType.FSDP)
    _check_distribution(DistributedType.MULTI_GPU)


LONG = replace(TINY, steps=150, checkpoint_every=3)


@pytest.mark.slow
def test_a_killed_process_resumed_gives_the_same_weights(tmp_path):
    recipe = write_recipe(LONG, tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start("train", "--config", recipe, "--out", str(whole)).wait() == 0
    killed = start("train", "--config", recipe, "--out", str(broken))
    moment = Random().randint(5, 120)
    while len(read_metrics(broken / "metrics.jsonl")) < moment:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    resumed = start("train", "--resume", "--out", str(broken))
    assert resumed.wait() == 0, resumed.stderr.read()
    for name in ("model.safetensors", "checkpoints/step-00000150/model.safetensors"):
        assert same(load_file(whole / name), load_file(broken / name)), f"killed at {moment}"
    steps = [line["step"] for line in read_metrics(broken / "metrics.jsonl")]
    assert steps == list(range(1, 151))
    assert not list((broken / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_can_go_on(tmp_path):
    recipe, folder = write_recipe(replace(LONG, steps=5000), tmp_path), tmp_path / "run"
    process = start("train", "--config", recipe, "--out", str(folder))
    while len(read_metrics(folder / "metrics.jsonl")) < 10:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].endswith(f"mmlab train --resume --out {folder}")
    assert "Traceback" not in errors
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vit", "clip", "vilt", "vlmo-vision", "vlmo-language"])
def test_two_processes_are_one_with_the_whole_batch(system, tmp_path):
    # No dropout and no batch norm: they see the share of a process, not the whole batch. The
    # contrast of CLIP does see the whole batch, and so do the masks and false pairs of ViLT and
    # those of VLMo's stages before pairs. (ALBEF is in test_pair_systems.py.)
    model = {**TINY.model, "dropout": 0.0, "stem": "linear"}
    vilt = replace(TINY_VILT, model={**TINY_VILT.model, "dropout": 0.0})
    vlmo = {**TINY_VLMO.model, "dropout": 0.0, "drop_path": 0.0}
    tiny = {
        "vit": replace(TINY, model=model),
        "clip": TINY_CLIP,
        "vilt": vilt,
        "vlmo-vision": replace(TINY_VLMO, model={**vlmo, "heads": ("codes",)}),
        "vlmo-language": replace(TINY_VLMO, model={**vlmo, "heads": ("words",)}),
    }[system]
    recipe = write_recipe(replace(tiny, steps=10), tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    pair = start("train", "--config", recipe, "--out", str(two), launcher=PAIR)
    _, errors = pair.communicate()
    assert pair.returncode == 0, errors
    assert start("train", "--config", recipe, "--out", str(one)).wait() == 0
    ones, twos = weights(one), weights(two)
    for name in ones:
        # A bias of the keys has no gradient but rounding, which Adam blows up to its full rate.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(ones[name], twos[name], atol=1e-5, rtol=1e-5)
    first, second = (read_metrics(f / "metrics.jsonl") for f in (one, two))
    assert [x["loss"] for x in first] == pytest.approx([x["loss"] for x in second], abs=1e-5)


@pytest.mark.slow
def test_the_launcher_starts_two_processes(tmp_path):
    """Else the test above would compare one process with one."""
    recipe = write_recipe(replace(TINY, batch_size=7), tmp_path)
    pair = start("train", "--config", recipe, "--out", str(tmp_path / "run"), launcher=PAIR)
    _, errors = pair.communicate()
    assert pair.returncode != 0
    assert "batch_size must be a multiple of the 2 processes, got 7" in errors
