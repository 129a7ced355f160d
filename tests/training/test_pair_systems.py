"""ALBEF, BLIP and VLMo in the engine: twins, queues, stages, questions, how they are measured."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from mmlab.hub import CheckpointError, create_model
from mmlab.models.albef_tasks import albef_answerer
from mmlab.models.blip import BLIPPretraining
from mmlab.models.blip_tasks import blip_answerer
from mmlab.models.vlmo_pretraining import trained_in
from mmlab.tasks import questions
from mmlab.tasks.fusion import load_fusion
from mmlab.tasks.reranking import load_reranker
from mmlab.training.batches import Batches
from mmlab.training.evaluation import tasks_of
from mmlab.training.loop import make_state
from mmlab.training.run import new_model, read_metrics, recipe_of, run, training_data
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import seed_everything
from mmlab.training.systems import SYSTEMS
from tests.training.tiny import (
    PAIR,
    TINY,
    TINY_ALBEF,
    TINY_BLIP,
    TINY_VLMO,
    start,
    write_recipe,
)

RECIPES = {"albef": TINY_ALBEF, "blip": TINY_BLIP, "vlmo": TINY_VLMO}
LOADERS = {"albef": load_reranker, "blip": load_reranker, "vlmo": load_fusion}
MOMENTUM = ("albef", "blip")
THIRD = {"albef": "masked_words", "blip": "language_modeling", "vlmo": "masked_words"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in RECIPES.items():
        run(recipe, folder / name)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def own_state(folder):
    """What the pretraining module has beside its network, after the last step."""
    state = torch.load(folder / "checkpoints/step-00000006/state.pt", weights_only=True)
    return state["own"], state["optimizer"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# A run, and what it leaves.


@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_are_three(name, runs):
    first = read_metrics(runs / name / "metrics.jsonl")[0]
    parts = ("contrastive", "matching", THIRD[name])
    assert first["loss"] == pytest.approx(sum(first[part] for part in parts), rel=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_finished_weights_are_the_network_with_its_words(name, runs):
    file = runs / name / "model.safetensors"
    recipe, model = recipe_of(file), LOADERS[name](f"{name}-mini", file)
    assert recipe == RECIPES[name]
    assert model.tokenizer.to_json() == training_data(recipe).tokenizer.to_json()
    words = {"vocab_size": model.tokenizer.vocab_size}
    network = create_model(f"{name}-mini", pretrained=file, **recipe.model, **words)
    assert same(dict(network.state_dict()), load_file(file))
    assert not [key for key in load_file(file) if key.startswith(("momentum", "queue"))]


@pytest.mark.parametrize("name", RECIPES)
def test_a_broken_run_ends_as_an_unbroken_one(name, runs, tmp_path):
    """Bit for bit, with twin, queues and pointer, and what the optimiser remembers."""

    class Stopped(Exception):
        pass

    def stop(figures):
        if figures["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run(RECIPES[name], tmp_path / "run", report=stop)
    torch.manual_seed(99)
    run(RECIPES[name], tmp_path / "run", resume=True)
    assert same(weights(runs / name), weights(tmp_path / "run"))
    (ones, first), (twos, second) = (own_state(f) for f in (runs / name, tmp_path / "run"))
    assert same(ones, twos)
    for number, memory in first["state"].items():
        assert same(memory, second["state"][number])


@pytest.mark.parametrize("name", MOMENTUM)
def test_the_twin_and_the_queues_have_moved_with_the_steps(name, runs):
    own, _ = own_state(runs / name)
    assert own["momentum.num_updates"] == 6
    # 6 steps of 8 in a queue of 20.
    assert own["queue.pointer"].item() == 48 % 20
    fresh = new_model(RECIPES[name], training_data(RECIPES[name])).state_dict()
    moved = [key for key in own if not torch.equal(own[key], fresh[key])]
    assert {"queue.images", "queue.texts"} < set(moved)
    twin = "momentum.network.image_encoder.blocks.0.mlp.fc1.weight"
    steps = weights(runs / name)[twin.removeprefix("momentum.network.")] - fresh[twin]
    # It follows slowly.
    assert 0 < (own[twin] - fresh[twin]).norm() < steps.norm() / 2


@pytest.mark.parametrize("name", MOMENTUM)
def test_the_twin_s_say_rises_over_the_epochs_of_the_paper(name):
    recipe = replace(RECIPES[name], pretraining={})
    module = new_model(recipe, training_data(recipe))
    # 24 scenes in batches of 8.
    assert module.momentum.ramp_steps == {"albef": 3, "blip": 6}[name]
    assert (module.momentum.alpha, module.momentum.decay, module.queue.size) == (0.4, 0.995, 1024)
    told = replace(recipe, pretraining={"ramp_steps": 5, "alpha": 0.2})
    assert new_model(told, training_data(told)).momentum.ramp_steps == 5


# What learns, and what decays.


def groups(recipe):
    module = new_model(recipe, training_data(recipe))
    names = {id(p): name for name, p in module.named_parameters()}
    state = make_state(module, recipe, Accelerator(), SYSTEMS[recipe.system].decays)
    decayed, others = (
        {names[id(p)] for p in group["params"]} for group in state.optimizer.param_groups
    )
    return module, decayed, others


@pytest.mark.parametrize("name", MOMENTUM)
def test_only_the_network_is_optimised(name):
    module, decayed, others = groups(RECIPES[name])
    own = {f"network.{key}" for key, _ in module.network.named_parameters()}
    assert decayed | others == own


def test_albef_lets_all_but_vectors_decay():
    module, decayed, others = groups(TINY_ALBEF)
    vectors = {key for key, p in module.network.named_parameters() if p.ndim == 1}
    assert others == {f"network.{key}" for key in vectors}
    assert "network.heads.contrast.temperature" in decayed
    assert "network.image_encoder.position_embedding" in decayed


def test_blip_lets_everything_decay():
    _, decayed, others = groups(TINY_BLIP)
    assert not others and "network.text_encoder.blocks.0.norm1.bias" in decayed


def test_vlmo_lets_the_norms_of_experts_decay_and_no_others():
    _, decayed, others = groups(TINY_VLMO)
    for key in ("blocks.0.experts.text.norm.weight", "blocks.0.gamma1", "class_token"):
        assert f"network.{key}" in decayed
    for key in ("blocks.0.norm1.weight", "norm.weight", "position_bias.table"):
        assert f"network.{key}" in others
    assert not [key for key in decayed if key.endswith("bias")]
    assert "network.text_embeddings.position_embedding.weight" not in decayed | others


# Several processes.


def words_loss(module, batch, contrast):
    """Masked words count alike in all processes, written ones are averaged in each."""
    if isinstance(module, BLIPPretraining):
        return module.write(batch, contrast.image_tokens).loss()
    return module.predict_words(batch, contrast).loss() * batch["masked_share"]


def by_hand(recipe, num_processes=2):
    """What that many processes must find: a queue for all, negatives of each one's own share.

    Gradients are averaged; the momentum twin moves once a step.
    """
    data = training_data(recipe)
    module = new_model(recipe, data)
    state = make_state(module, recipe, Accelerator(), SYSTEMS[recipe.system].decays)
    given = (data, recipe.batch_size, recipe.seed)
    shares = [Batches(*given, process, num_processes) for process in range(num_processes)]
    losses = []
    for step in range(recipe.steps):
        factor = rate_factor(recipe.schedule, step, recipe.steps, recipe.warmup)
        set_rate(state.optimizer, recipe.lr * factor)
        module.network.head("contrast").clamp_temperature()
        module.momentum.update(module.network)
        found, contrasts = [], []
        for process, share in enumerate(shares):
            seed_everything(recipe.seed, 3, step, process)
            batch = share[step]
            contrast = module.contrast(batch)
            pairs = contrast.loss() + module.match(batch, contrast).loss()
            found.append(pairs + words_loss(module, batch, contrast))
            contrasts.append(contrast)
        module.queue.enqueue(
            images=torch.cat([contrast.momentum_image_features for contrast in contrasts]),
            texts=torch.cat([contrast.momentum_text_features for contrast in contrasts]),
        )
        loss = sum(found) / num_processes
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
    return module, losses


def in_two_processes(recipe, folder):
    """The figures of the steps, and the weights, of a run of two processes."""
    config = write_recipe(recipe, folder)
    pair = start("train", "--config", config, "--out", str(folder / "two"), launcher=PAIR)
    _, errors = pair.communicate()
    assert pair.returncode == 0, errors
    return read_metrics(folder / "two" / "metrics.jsonl"), weights(folder / "two")


def assert_same_weights(found, network):
    for name, tensor in network.state_dict().items():
        # A bias of the keys has no gradient but rounding, which Adam blows up to its full rate.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


def first_step_alone(recipe, folder):
    run(replace(recipe, steps=1), folder / "one")
    return read_metrics(folder / "one" / "metrics.jsonl")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTUM)
def test_two_processes_share_the_queue_and_not_the_batch(name, tmp_path):
    """Samples of other processes come by way of the queue alone, as in the official code."""
    recipe = replace(RECIPES[name], model={**RECIPES[name].model, "dropout": 0.0})
    lines, found = in_two_processes(recipe, tmp_path)
    module, losses = by_hand(recipe)
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert_same_weights(found, module.network)
    own, _ = own_state(tmp_path / "two")
    for key, tensor in module.state_dict().items():
        if key.startswith("queue.") or key == "momentum.num_updates":
            torch.testing.assert_close(own[key], tensor, atol=1e-5, rtol=1e-5)
    # A single process has twice the negatives in its batch, but the same words.
    first = first_step_alone(recipe, tmp_path)
    assert abs(first["contrastive"] - lines[0]["contrastive"]) > 1e-3
    same_words = {"albef": 1e-5, "blip": 2e-2}[name]
    assert first[THIRD[name]] == pytest.approx(lines[0][THIRD[name]], abs=same_words)


class Pretended:
    """``gather_own_first`` of two processes, which are played one after the other.

    While it listens it remembers what each of them shows; that depends on nothing it is shown.
    """

    def __init__(self):
        self.shown, self.listens, self.process, self.place = ([], []), True, 0, 0

    def __call__(self, x):
        if self.listens:
            self.shown[self.process].append(x.detach())
            return torch.cat([x, x.detach()])
        self.place += 1
        return torch.cat([x, self.shown[1 - self.process][self.place - 1]])

    def begin(self, process, listens):
        self.process, self.listens, self.place = process, listens, 0
        if listens:
            self.shown[process].clear()


def vlmo_by_hand(recipe, gather):
    """What two processes must find: each the whole table, whose gradient is its own rows' alone."""
    data = training_data(recipe)
    module = new_model(recipe, data)
    state = make_state(module, recipe, Accelerator(), SYSTEMS["vlmo"].decays)
    shares = [Batches(data, recipe.batch_size, recipe.seed, process, 2) for process in range(2)]
    losses = []
    for step in range(recipe.steps):
        factor = rate_factor(recipe.schedule, step, recipe.steps, recipe.warmup)
        set_rate(state.optimizer, recipe.lr * factor)
        for listens in (True, False):
            found = []
            for process, share in enumerate(shares):
                gather.begin(process, listens)
                seed_everything(recipe.seed, 3, step, process)
                found.append(sum(module.losses(share[step]).values()))
        loss = sum(found) / 2
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
    return module, losses


@pytest.mark.slow
def test_vlmo_s_pairs_on_two_processes_are_one_batch_whose_gradient_is_halved(
    tmp_path, monkeypatch
):
    recipe = replace(TINY_VLMO, model={**TINY_VLMO.model, "dropout": 0.0, "drop_path": 0.0})
    lines, found = in_two_processes(recipe, tmp_path)
    first = first_step_alone(recipe, tmp_path)
    # The same table of similarities and the same masked words; wrong pairs are drawn anew.
    for part in ("contrastive", "masked_words"):
        assert first[part] == pytest.approx(lines[0][part], abs=1e-5)
    # Of the contrast, the weights feel half: 1/W, as the official code averages it.
    assert lines[0]["gradient_norm"] != pytest.approx(first["gradient_norm"], rel=1e-2)
    gather = Pretended()
    for module in ("mmlab.objectives.global_contrast", "mmlab.models.vlmo_pretraining"):
        monkeypatch.setattr(f"{module}.gather_own_first", gather)
    module, losses = vlmo_by_hand(recipe, gather)
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert_same_weights(found, module.network)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["codes", "words"])
def test_the_stages_before_are_the_same_on_two_processes(head, tmp_path):
    model = {**TINY_VLMO.model, "heads": (head,), "dropout": 0.0, "drop_path": 0.0}
    recipe = replace(TINY_VLMO, model=model)
    lines, found = in_two_processes(recipe, tmp_path)
    network = run(recipe, tmp_path / "one")
    alone = read_metrics(tmp_path / "one" / "metrics.jsonl")
    losses = [line["loss"] for line in alone]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert_same_weights(found, network)


# The stages of VLMo.


def run_stage(folder, heads, before=None, **changes):
    model = {**TINY_VLMO.model, "heads": heads}
    given = {"start": str(before / "model.safetensors")} if before else {}
    run(replace(TINY_VLMO, model=model, **given, **changes), folder)


ALL_HEADS = ("contrast", "fusion_contrast", "match", "words")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    run_stage(folder / "vision", ("codes",), lr=1e-2)
    run_stage(folder / "language", ("words",), folder / "vision", lr=1e-2)
    run_stage(folder / "pairs", ALL_HEADS, folder / "language", num_images=40)
    return folder


def test_each_stage_has_its_loss(stages):
    for name, loss in (("vision", "masked_patches"), ("language", "masked_words")):
        line = read_metrics(stages / name / "metrics.jsonl")[-1]
        assert set(line) == {"step", "loss", "lr", "gradient_norm", "seconds"}, loss
    assert "contrastive" in read_metrics(stages / "pairs" / "metrics.jsonl")[-1]


def test_texts_alone_leave_images_as_they_are(stages):
    vision, language = (weights(stages / name) for name in ("vision", "language"))
    both = [key for key in vision.keys() & language.keys() if "heads." not in key]
    changed = {key for key in both if not torch.equal(vision[key], language[key])}
    model = load_fusion("vlmo-mini", stages / "language" / "model.safetensors").network
    learned = {key for key in trained_in(model, "language") if "heads." not in key}
    assert changed == learned
    images = torch.randn(2, 3, 32, 32)
    before, after = (
        load_fusion("vlmo-mini", stages / name / "model.safetensors").network.image_paths(images)
        for name in ("vision", "language")
    )
    assert torch.equal(before.tokens, after.tokens)


def test_all_stages_number_words_alike(stages):
    models = [load_fusion("vlmo-mini", f / "model.safetensors") for f in stages.iterdir()]
    assert len(models) == 3
    assert len({model.tokenizer.to_json() for model in models}) == 1


def test_pairs_begin_with_what_texts_and_images_have_left(stages, tmp_path):
    recipe = replace(TINY_VLMO, start=str(stages / "language" / "model.safetensors"))
    begun = new_model(recipe, training_data(recipe)).network.state_dict()
    language = weights(stages / "language")
    taken = [key for key in language if not key.startswith("heads.")]
    assert all(torch.equal(begun[key], language[key]) for key in taken)
    fresh = {key for key in begun if ".experts.fusion." in key}
    assert fresh and not fresh & language.keys()


# Questions after pretraining.

ANSWERING = {"albef": ("answers",), "blip": ("answers",), "vlmo": ("answer",)}


@pytest.fixture(scope="module")
def answering(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    for name, recipe in RECIPES.items():
        changes = {"start": str(runs / name / "model.safetensors"), "pretraining": {}, "steps": 1}
        model = {**recipe.model, "heads": ANSWERING[name]}
        run(replace(recipe, model=model, lr=1e-12, warmup=0, **changes), folder / name)
    return folder


@pytest.mark.parametrize(("name", "change"), [("albef", albef_answerer), ("blip", blip_answerer)])
def test_a_decoder_of_answers_starts_with_pretrained_blocks(name, change, runs, answering):
    pretrained = load_reranker(f"{name}-mini", runs / name / "model.safetensors").network
    begun = change(pretrained).state_dict()
    found = weights(answering / name)
    assert begun.keys() == found.keys()
    for key, tensor in begun.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_questions_are_measured(name, mmlab, answering, monkeypatch):
    monkeypatch.setattr(questions, "NUM_GUESSED_FROM", 60)
    options = ("--task", "vqa", "--num-images", 4, "--split", "held_out", "--json")
    code, out, _ = mmlab("evaluate", name, "--checkpoint", answering / name, *options)
    figures = json.loads(out)
    assert code == 0 and figures["num_images"] == 4 and figures["num_questions"] > 16
    assert all(0 <= figures[k] <= 1 for k in ("accuracy", "wrong_image", "question_only"))


# Retrieval.


def test_each_system_has_tasks():
    assert all(tasks_of(name) == ("retrieval", "vqa") for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_retrieval_is_printed_as_json(name, mmlab, runs):
    options = ("--num-images", 12, "--json")
    code, out, _ = mmlab("evaluate", name, "--checkpoint", runs / name, *options)
    figures = json.loads(out)
    assert code == 0 and figures["task"] == "retrieval" and figures["split"] == "test"
    for part in (figures, figures["held_out"]):
        assert part["num_images"] == part["num_texts"] == 12
        assert 0 <= part["matching_accuracy"] <= 1
        assert 0 <= part["image_to_text"]["r@5"] <= part["image_to_text"]["r@10"] <= 1
        assert ("by_features" in part) == (name in MOMENTUM)


# What cannot be.


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("albef", {"data": "emoji"}, "data must be scenes or shards: albef learns from captions"),
        ("blip", {"target": "count"}, "target must be left out: blip learns from captions"),
        ("vlmo", {"label_smoothing": 0.1}, "label_smoothing must be left out"),
        ("albef", {"pretraining": {"queue_size": 7}}, "queue_size must be at least batch_size=8"),
        ("albef", {"pretraining": {"queue": 9}}, "unknown pretraining setting 'queue'; did you"),
        ("blip", {"pretraining": {"decay": "slow"}}, "decay must be a number, got 'slow'"),
        ("blip", {"pretraining": {"decay": 1.5}}, r"decay must lie in \[0, 1\], got 1.5"),
        ("vlmo", {"pretraining": {"decay": 0.5}}, "pretraining must be left out: a vlmo has no"),
        ("albef", {"model": {"heads": ["contrast"]}}, "no 'match' head"),
        ("albef", {"model": {"heads": ["answers"]}}, "unknown pretraining setting 'queue_size'"),
        ("blip", {"model": {"heads": ["answers"]}}, "pretraining must be left out: a blip has no"),
        ("albef", {"model": {"heads": ["words", "answers"]}}, "'answers' alone"),
        ("vlmo", {"model": {"heads": ["codes", "words"]}}, "'codes' and 'answer' each alone"),
        ("vlmo", {"model": {"vocab_size": 9}}, "model must not set vocab_size: the data give it"),
        ("blip", {"start": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_trained_is_told(name, settings, message, tmp_path):
    if "model" in settings:
        settings = {"model": RECIPES[name].model | settings["model"]}
    with pytest.raises(ValueError, match=message) as caught:
        run(replace(RECIPES[name], **settings), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_start_of_another_shape_is_refused(name, runs, tmp_path):
    start = str(runs / name / "model.safetensors")
    other = replace(RECIPES[name], start=start, model=RECIPES[name].model | {"mlp_dim": 32})
    with pytest.raises(ValueError, match="cannot start with"):
        run(other, tmp_path / "run")
    wrong = str(runs / ("vlmo" if name == "albef" else "albef") / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"is no '{name}-mini'"):
        run(replace(RECIPES[name], start=wrong), tmp_path / "run")


def test_other_systems_have_no_settings_of_pretraining(tmp_path):
    with pytest.raises(ValueError, match="pretraining must be left out: a vit has no such"):
        run(replace(TINY, pretraining={"decay": 0.5}), tmp_path / "run")


def test_questions_want_a_model_that_learned_to_answer(mmlab, runs):
    options = ("--checkpoint", runs / "albef", "--task", "vqa", "--num-images", 2)
    code, _, err = mmlab("evaluate", "albef", *options)
    assert code == 2 and "no 'answers' head" in err and err.count("\n") == 1


def test_the_command_line_trains_from_a_file(mmlab, tmp_path):
    config = write_recipe(replace(TINY_BLIP, steps=1), tmp_path)
    code, _, err = mmlab("train", "--config", config, "--out", tmp_path / "run")
    assert code == 0 and f"mmlab evaluate blip --checkpoint {tmp_path / 'run'}" in err
    recipe = recipe_of(tmp_path / "run")
    assert recipe.pretraining == TINY_BLIP.pretraining


@pytest.mark.parametrize("heads", [("codes",), ("words",)])
def test_after_a_stage_of_one_kind_the_next_stage_is_next(heads, mmlab, tmp_path):
    recipe = replace(TINY_VLMO, model={**TINY_VLMO.model, "heads": heads}, steps=1)
    config, out = write_recipe(recipe, tmp_path), tmp_path / "run"
    code, _, err = mmlab("train", "--config", config, "--out", out)
    told = f"next: the stage after this one, with --start {out}/model.safetensors"
    assert code == 0 and err.splitlines()[-1] == told
    code, _, err = mmlab("evaluate", "vlmo", "--checkpoint", out)
    assert code == 2 and "has learned nothing yet that a task measures" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_after_questions_the_hint_leads_to_their_figures(name, mmlab, answering, monkeypatch):
    monkeypatch.setattr(questions, "NUM_GUESSED_FROM", 60)
    options = ("--checkpoint", answering / name, "--num-images", 2, "--split", "test", "--json")
    code, out, _ = mmlab("evaluate", name, *options)
    assert code == 0 and json.loads(out)["task"] == "vqa"
