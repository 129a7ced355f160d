import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mmlab import create_model, hub
from mmlab.training.run import run
from tests.training.tiny import TINY, write_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(TINY, folder)
    return folder


def test_train_then_evaluate(mmlab, tmp_path):
    recipe = write_recipe(TINY, tmp_path)
    code, _, told = mmlab("train", "--config", recipe, "--steps", 3, "--out", "run")
    assert code == 0
    assert "step 3/3  loss" in told
    assert told.strip().endswith("next: mmlab evaluate vit --checkpoint run")
    code, out, _ = mmlab("evaluate", "vit", "--checkpoint", "run", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["vendor"], result["num_classes"]) == ("fluent", 9)
    assert 0 <= result["accuracy"] <= 1


def test_without_out_the_run_has_a_name(mmlab, tmp_path):
    recipe = write_recipe(replace(TINY, steps=1), tmp_path)
    assert mmlab("train", "vit", "--config", recipe)[0] == 0
    assert (tmp_path / "runs/vit-mini-emoji/model.safetensors").is_file()
    code, _, told = mmlab("train", "vit", "--resume")
    assert (code, told.splitlines()[0]) == (
        0,
        "done: weights, metrics and recipe are in runs/vit-mini-emoji",
    )


def test_scenes_are_trained_on_and_evaluated(mmlab, tmp_path):
    recipe = write_recipe(replace(TINY, steps=1, num_images=16), tmp_path)
    options = ("--data", "scenes", "--target", "count", "--out", "run")
    assert mmlab("train", "--config", recipe, *options)[0] == 0
    code, out, _ = mmlab("evaluate", "vit", "--checkpoint", "run", "--num-images", 20, "--json")
    result = json.loads(out)
    assert (code, result["data"], result["split"]) == (0, "scenes", "test")
    assert (result["num_images"], result["num_classes"]) == (20, 4)


def test_a_checkpoint_of_the_run_can_be_evaluated(mmlab, trained):
    folder = trained / "checkpoints/step-00000004"
    code, out, _ = mmlab("evaluate", "vit", "--checkpoint", folder, "--vendor", "noto", "--json")
    assert code == 0
    assert json.loads(out)["weights"] == str(folder / "average.safetensors")


def test_a_file_of_weights_can_be_evaluated(mmlab, tmp_path):
    hub.save(create_model("vit-mini", num_classes=9), tmp_path / "fresh.safetensors")
    code, out, _ = mmlab("evaluate", "vit", "--checkpoint", "fresh.safetensors", "--json")
    # A zero head names the first class always.
    assert code == 0 and json.loads(out)["accuracy"] < 0.2


def test_finished_weights_remember_their_recipe(mmlab, trained, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((trained / "model.safetensors").read_bytes())
    code, out, _ = mmlab("evaluate", "vit", "--checkpoint", alone, "--json")
    assert (code, json.loads(out)["weights"]) == (0, str(alone))


def test_without_a_checkpoint_the_shipped_one_is_evaluated_and_named(mmlab):
    code, out, err = mmlab("evaluate", "vit", "--json")
    path = hub.mini_checkpoint("vit-mini")
    assert (code, err) == (0, "no --checkpoint given: this is mmlab's own vit-mini\n")
    result = json.loads(out)
    assert (result["weights"], result["vendor"]) == (str(path), "fluent")
    recorded = json.loads(hub.read_checkpoint(path).metadata["mmlab.metrics"])["fluent"]
    assert result["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.005)


def test_list_takes_a_glob(mmlab):
    assert mmlab("list", "vit-b-*")[1].split() == ["vit-b-8", "vit-b-16", "vit-b-32"]
    assert json.loads(mmlab("list", "--json")[1]) == list(hub.list_models())


def test_info_tells_what_the_paper_tells(mmlab):
    code, out, _ = mmlab("info", "vit-b-16", "--json")
    told = json.loads(out)
    assert code == 0
    # ViT, table 1: 12 layers, D = 768, MLP 3072, 86M parameters.
    block = 4 * (768**2 + 768) + (2 * 768 * 3072 + 3072 + 768) + 4 * 768
    ends = (16 * 16 * 3 + 1) * 768 + 768 + 197 * 768 + 2 * 768
    assert told["parameters_without_head"] == 12 * block + ends
    assert told["parameters"] == 12 * block + ends + 769 * 1000
    assert round(told["parameters_without_head"] / 1e6) == 86
    assert told["images"] == [1, 3, 224, 224]
    assert told["tokens"] == [1, 197, 768]
    assert told["logits"] == [1, 1000]
    block = 4 * 197 * 768**2 + 2 * 197**2 * 768 + 2 * 197 * 768 * 3072
    macs = 12 * block + 196 * 768**2 + 768 * 1000
    assert told["gmacs"] == pytest.approx(macs / 1e9, abs=1e-4)
    assert told["gflops"] == pytest.approx(2 * told["gmacs"], abs=1e-3)


def test_info_agrees_with_a_real_model(mmlab):
    told = json.loads(mmlab("info", "vit-mini", "--json")[1])
    model = create_model("vit-mini")
    assert told["parameters"] == sum(p.numel() for p in model.parameters())


def test_info_reads_well(mmlab):
    lines = mmlab("info", "vit-b-16")[1].splitlines()
    assert "tokens                   1 x 197 x 768" in lines
    assert "parameters               86,567,656" in lines


@pytest.mark.parametrize(
    "command", [(), ("train",), ("evaluate",), ("league",), ("list",), ("info",)]
)
def test_help_answers(command, mmlab):
    code, out, _ = mmlab(*command, "--help")
    assert code == 0 and "Usage: mmlab" in out


def test_without_a_command_there_is_help_and_nothing_else(mmlab):
    code, out, err = mmlab()
    assert (code, err) == (2, "") and "Usage: mmlab" in out


def test_help_needs_no_torch():
    code = "import sys, mmlab.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


WRONG = [
    ("train vitt", "unknown system 'vitt'; did you mean 'vit'?"),
    ("train vit --size mimi", "unknown model 'vit-mimi'; did you mean 'vit-mini'?"),
    ("train vit --data emoij", "unknown data 'emoij'; did you mean 'emoji'?"),
    ("train vit --data scenes --target grup", "target is 'grup'; it must be one of"),
    ("train vit --schedule cosin", "unknown schedule 'cosin'; did you mean 'cosine'?"),
    ("train vit --precision fp16", "unknown precision 'fp16'"),
    ("train vit --steps 0", "steps must be an integer of at least 1, got 0"),
    ("train vit --lr -1", "lr must be a positive number, got -1.0"),
    ("train vit --lr fast", "Invalid value for '--lr'"),
    ("train vit --batch-size 100000", "batch_size must be at most the 3815 images, got 100000"),
    ("train vit --stps 3", "--steps"),
    ("train", "name what to train"),
    ("train --config nothing.yaml", "there is no recipe 'nothing.yaml'"),
    ("train --config typo.yaml", "unknown recipe key 'step'; did you mean 'steps'?"),
    ("train vit --resume --out nothing", "there is no run in 'nothing' to resume"),
    ("train vit --out typo.yaml", "'typo.yaml' is a file"),
    ("train --config grey.yaml", "num_channels must be 3, as the emoji are in colour, got 1"),
    ("train --config uneven.yaml", "image_size must be a multiple of patch_size=14, got 48"),
    ("train --config .", "recipe '.' cannot be read: Is a directory"),
    ("train vit --out typo.yaml/run", "typo.yaml/run"),
    ("evaluate vit --size b-16", "no trained 'vit-b-16'; there are clip-mini, vilt-mini"),
    ("evaluate vitt", "unknown system 'vitt'; did you mean 'vit'?"),
    ("evaluate vit --checkpoint TRAINED --num-images 5", "--num-images means nothing for emoji"),
    ("evaluate vit --checkpoint TRAINED --seed 0", "--seed means nothing for emoji, which take"),
    (
        "evaluate vit --checkpoint TRAINED --data scenes --vendor noto",
        "--vendor means nothing for scenes",
    ),
    ("evaluate vit --checkpoint nothing.safetensors", "there is no checkpoint file"),
    ("evaluate vit --checkpoint typo.yaml", "known endings are"),
    ("evaluate vit --checkpoint TRAINED --size b-16", "trained 'vit-mini', not 'vit-b-16'"),
    ("evaluate vit --checkpoint TRAINED --vendor fluint", "did you mean 'fluent'?"),
    ("evaluate vit --checkpoint TRAINED --target subgroup", "9 classes apart, the target has 95"),
    ("evaluate vit --checkpoint OTHER", "it fits 'vit-ti-16'"),
    ("evaluate vit --checkpoint CUT", "may be truncated"),
    ("league --plan smal", "there is no plan 'smal'; mmlab comes with full, small"),
    ("league --plan typo.yaml", "plan 'typo.yaml': it must hold 'systems:'"),
    ("league --systems viltt", "unknown system of this league 'viltt'; did you mean 'vit'?"),
    ("league --tasks vqaa", "unknown task of this league 'vqaa'; did you mean 'vqa'?"),
    ("league --seeds 7", "unknown seed of this league '7'"),
    ("league --jobs 0", "jobs must be at least 1, got 0"),
    ("league --out typo.yaml", "'typo.yaml' is a file, not a folder for a league"),
    ("league --table --out nothing", "there is no league in 'nothing'"),
    ("info vit-b16", "unknown model 'vit-b16'; did you mean 'vit-b-16'?"),
    ("list zz*", "no model matches 'zz*'"),
    ("trian", "No such command 'trian'."),
]


@pytest.mark.parametrize(("line", "expected"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_value_costs_one_line_and_exit_code_2(line, expected, mmlab, trained, tmp_path):
    (tmp_path / "typo.yaml").write_text("step: 3\n")
    (tmp_path / "grey.yaml").write_text("model: {num_channels: 1}\n")
    (tmp_path / "uneven.yaml").write_text("model: {patch_size: 14, stem: linear}\n")
    paths = {"TRAINED": trained, "OTHER": "other.safetensors", "CUT": "cut.safetensors"}
    if "OTHER" in line:
        hub.save(create_model("vit-ti-16", num_classes=9), "other.safetensors")
    whole = (trained / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:2000])
    before = sorted(tmp_path.rglob("*"))
    code, out, err = mmlab(*(paths.get(word, word) for word in line.split()))
    assert (code, out) == (2, "")
    assert err.startswith("mmlab: ") and err.count("\n") == 1
    assert expected in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_way_to_a_traceback(mmlab, monkeypatch):
    monkeypatch.setenv("MMLAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown model"):
        mmlab("info", "nothing")


def test_a_full_disk_costs_one_line(mmlab, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = mmlab("train", "--config", write_recipe(TINY, tmp_path), "--out", "run")
    assert code == 2
    assert "No space left on device" in err and err.count("\n") == 1
