"""ViLBERT, LXMERT, UNITER, OSCAR, VisualBERT, Unicoder-VL and VL-BERT in the engine."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import mmlab
from mmlab import datasets
from mmlab.hub import CheckpointError
from mmlab.tasks import questions
from mmlab.tasks.fusion import matching_accuracy
from mmlab.training.batches import Batches
from mmlab.training.evaluation import tasks_of
from mmlab.training.region_systems import (
    MANNERS,
    entries_of,
    load_trained_regions,
)
from mmlab.training.run import new_model, read_metrics, recipe_of, run, training_data
from tests.hub.published import bert_shapes, write
from tests.training.tiny import PAIR, TINY, start, write_recipe

_SMALL = {"dim": 32, "num_heads": 2, "mlp_dim": 64, "dropout": 0.1}
_SINGLE = {**_SMALL, "depth": 1}
_MODELS = {
    "vilbert": {
        **_SMALL,
        **{"depth": 1, "region_depth": 1, "text_connections": (0,), "region_connections": (0,)},
        **{"region_dim": 32, "region_num_heads": 2, "region_mlp_dim": 32, "fusion_dim": 32},
        **{"fusion_num_heads": 2},
    },
    "lxmert": {**_SMALL, "text_depth": 1, "region_depth": 1, "cross_depth": 1},
    "uniter": _SINGLE,
    "oscar": _SINGLE,
    "visualbert": _SINGLE,
    "unicoder-vl": _SINGLE,
    "vlbert": {**_SINGLE, "location_dim": 16},
}
_ANSWERS_TOO = ("words", "match", "regions", "answer")
_MODELS["lxmert"]["heads"] = _ANSWERS_TOO
RECIPES = {
    name: replace(
        TINY,
        **{"system": name, "data": "scenes", "num_images": 24, "model": model},
        **{"batch_size": 12, "steps": 4, "ema_decay": 0.0},
    )
    for name, model in _MODELS.items()
}
LOSSES = {
    "vilbert": {"masked_words", "masked_regions", "matching"},
    "lxmert": {
        *("masked_words", "matching", "answers", "masked_region_features"),
        *("masked_region_classes", "masked_region_attributes"),
    },
    "uniter": {
        *("masked_words", "matching", "alignment", "masked_region_features"),
        "masked_region_distributions",
    },
    "oscar": {"masked_words", "matching"},
    "visualbert": {"masked_words", "matching"},
    "unicoder-vl": {"masked_words", "masked_region_classes", "matching"},
    "vlbert": {"masked_words", "masked_regions"},
}
MATCHING = [name for name in LOSSES if "matching" in LOSSES[name]]
OTHERS = {"step", "loss", "lr", "gradient_norm", "seconds"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in RECIPES.items():
        run(recipe, folder / name)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def model_of(runs, name):
    return load_trained_regions(RECIPES[name], runs / name / "model.safetensors")


def first_batch(recipe):
    data = training_data(recipe)
    return data, Batches(data, recipe.batch_size, recipe.seed)[0]


# A run, and what it leaves.


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_the_sum_of_those_of_the_paper(name, runs):
    lines = read_metrics(runs / name / "metrics.jsonl")
    for line in lines:
        parts = line.keys() - OTHERS
        assert parts and parts <= LOSSES[name]
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), rel=1e-5)
    if name != "uniter":
        assert lines[0].keys() - OTHERS == LOSSES[name]


def test_uniter_takes_one_task_a_step(runs):
    lines = read_metrics(runs / "uniter" / "metrics.jsonl")
    tasks = {tuple(sorted(line.keys() - OTHERS)) for line in lines}
    assert len(tasks) > 1
    assert tasks <= {
        *(("masked_words",), ("masked_region_features",), ("masked_region_distributions",)),
        ("alignment", "matching"),
    }


LESSONS = [(name, {}) for name in RECIPES if name not in ("lxmert", "uniter")]
LESSONS += [("uniter", {"pool": {task: 1}}) for task in ("itm", "mlm", "mrfr", "mrc-kl", "mrc")]
LESSONS += [("lxmert", {"question_share": 0.95})]


@pytest.mark.parametrize(("name", "pretraining"), LESSONS)
def test_a_batch_can_be_learned_by_heart(name, pretraining):
    """Every loss falls: no head is cut off from what it needs."""
    model = {**RECIPES[name].model, "dropout": 0.0}
    recipe = replace(RECIPES[name], model=model, pretraining=pretraining)
    data, batch = first_batch(recipe)
    module = new_model(recipe, data)
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    found = []
    for _ in range(50):
        found.append(module.losses(batch))
        sum(found[-1].values()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for loss, begin in found[0].items():
        # A distance that is to grow may end below 0.
        assert begin != 0 and found[-1][loss] < begin - 0.5 * abs(begin), loss


@pytest.mark.parametrize("name", RECIPES)
def test_finished_weights_are_the_network_with_its_words(name, runs):
    file = runs / name / "model.safetensors"
    recipe, model = recipe_of(file), model_of(runs, name)
    assert recipe == RECIPES[name]
    data = training_data(recipe)
    assert model.tokenizer.to_json() == data.tokenizer.to_json()
    assert model.answers == (data.answers if name == "lxmert" else ())
    own = dict(model.network.state_dict())
    assert all(torch.equal(tensor, own[key]) for key, tensor in load_file(file).items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_broken_run_ends_as_an_unbroken_one(name, runs, tmp_path):
    class Stopped(Exception):
        pass

    def stop(figures):
        if figures["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(RECIPES[name], tmp_path / "run", report=stop)
    torch.manual_seed(99)
    run(RECIPES[name], tmp_path / "run", resume=True)
    ones, twos = weights(runs / name), weights(tmp_path / "run")
    assert ones.keys() == twos.keys() and all(torch.equal(ones[key], twos[key]) for key in ones)
    first, second = (
        torch.load(f / "checkpoints/step-00000004/state.pt", weights_only=True)["optimizer"]
        for f in (runs / name, tmp_path / "run")
    )
    for number, memory in first["state"].items():
        assert all(torch.equal(memory[key], second["state"][number][key]) for key in memory)


# Several processes.


@pytest.mark.parametrize("name", RECIPES)
def test_shares_of_a_batch_have_the_losses_of_the_whole(name):
    recipe = replace(RECIPES[name], model={**RECIPES[name].model, "dropout": 0.0})
    data = training_data(recipe)
    module = new_model(recipe, data).eval()
    given = (data, recipe.batch_size, recipe.seed)
    whole, shares = Batches(*given), [Batches(*given, process, 3) for process in range(3)]
    for step in range(4):
        losses = module.losses(whole[step])
        parts = [module.losses(share[step]) for share in shares]
        for loss, value in losses.items():
            together = torch.stack([part[loss] for part in parts]).mean()
            torch.testing.assert_close(together, value, msg=loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vilbert", "uniter"])
def test_two_processes_learn_as_one(name, tmp_path):
    recipe = replace(RECIPES[name], model={**RECIPES[name].model, "dropout": 0.0})
    config = write_recipe(recipe, tmp_path)
    pair = start("train", "--config", config, "--out", str(tmp_path / "two"), launcher=PAIR)
    run(recipe, tmp_path / "one")
    _, errors = pair.communicate()
    assert pair.returncode == 0, errors
    ones, twos = (read_metrics(tmp_path / f / "metrics.jsonl") for f in ("one", "two"))
    for one, two in zip(ones, twos, strict=True):
        parts = one.keys() - {"seconds"}
        assert parts == two.keys() - {"seconds"}
        assert [two[key] for key in parts] == pytest.approx([one[key] for key in parts], abs=1e-4)
    found = weights(tmp_path / "two")
    for key, tensor in weights(tmp_path / "one").items():
        # A bias of the keys has no gradient but rounding, which Adam blows up to its full rate.
        if not key.endswith("k_proj.bias"):
            torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-4)


# What the networks take, and what their outputs mean.


@pytest.mark.parametrize("name", ["vilbert", "lxmert", "oscar"])
def test_regions_are_located_as_in_the_lesson(name):
    """These exchange texts only, so a batch has the regions of its own images."""
    data, batch = first_batch(RECIPES[name])
    rows = Batches(data, 12, 0).rows(0)
    pairs = data.pairs(rows, torch.Generator().manual_seed(3))
    entries, longest = entries_of(RECIPES[name])(pairs), int(batch["region_valid"].sum(1).max())
    for entry in ("locations", "region_valid"):
        assert torch.equal(entries[entry][:, :longest], batch[entry][:, :longest])


@pytest.mark.parametrize("name", MATCHING)
def test_the_right_output_means_that_a_text_fits(name, runs):
    model = model_of(runs, name)
    data, batch = first_batch(RECIPES[name])
    module = new_model(RECIPES[name], data).eval()
    batch["matched"], batch["pollution"] = torch.ones(12, dtype=torch.bool), torch.zeros(12).long()
    losses = {}
    with torch.no_grad():
        for network in (model.network, module.network):
            network.heads["match"].weight.zero_()
        for output in (0, 1):
            bias = 4.0 * torch.nn.functional.one_hot(torch.tensor(output), 2)
            module.network.heads["match"].bias.copy_(bias)
            if name == "uniter":
                module._lessons[0].alignment_weight = 0
                batch = {k: v for k, v in batch.items() if "target" not in k and k != "labels"}
            losses[output] = module.losses(batch)["matching"].item()
            model.network.heads["match"].bias.copy_(bias)
            scenes = datasets.scenes(3, "test")
            said = model.match(model.prepared(scenes), scenes.captions())
            assert (said > 0).all() == (output == model.matched)
            torch.testing.assert_close(said.abs(), torch.full((3,), 4.0))
    assert losses[model.matched] < 0.1 < losses[1 - model.matched]


@pytest.mark.parametrize("name", MATCHING)
def test_padding_and_company_change_no_score(name, runs):
    model, scenes = model_of(runs, name), datasets.scenes(6, "test")
    regions, texts = model.prepared(scenes), scenes.captions("en", "medium")
    together = model.match(regions, texts)
    alone = [
        model.match(model.prepared(scenes, torch.tensor([i])), [texts[i]])
        for i in range(len(texts))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    table = model.match_all(regions, texts[:3])
    torch.testing.assert_close(table.diagonal(), together[:3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_attention_is_recorded(name, runs):
    model = model_of(runs, name)
    data = training_data(RECIPES[name])
    pairs = data.pairs(torch.arange(4), torch.Generator().manual_seed(0))
    entries = entries_of(RECIPES[name])(pairs)
    with torch.no_grad(), mmlab.record_attention(model.network) as maps:
        recorded = model.network(**entries)
    assert maps and all(key.count("attention") for key in maps)
    for weight in maps.values():
        torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:-1]))
    with torch.no_grad():
        plain = model.network(**entries)
    assert torch.equal(recorded[0], plain[0])
    # Nobody looks at padding; behind a VL-BERT's regions stands [END].
    hidden = torch.nn.functional.pad(~entries["region_valid"], (0, int(name == "vlbert")))
    assert hidden.any()
    width = hidden.shape[1]
    ends = [weight for weight in maps.values() if weight.shape[-1] >= width]
    seen = [weight[..., -width:] * hidden[:, None, None] for weight in ends]
    assert sum(not part.any() for part in seen) > 0


# The switches of the papers.


def tiny(name, heads=(), **pretraining):
    model = {**RECIPES[name].model, "dropout": 0.0, **({"heads": heads} if heads else {})}
    return replace(RECIPES[name], model=model, steps=1, pretraining=pretraining)


def losses_of(recipe):
    data, batch = first_batch(recipe)
    return batch, new_model(recipe, data).losses(batch)


def test_vilbert_may_do_without_false_pairs():
    _, losses = losses_of(tiny("vilbert", objective=2))
    assert losses.keys() == {"masked_words", "masked_regions"}
    batch, _ = losses_of(tiny("vilbert", objective=1))
    assert not batch["masked_regions"][~batch["matched"]].any()


def test_vilbert_may_predict_features():
    recipe = tiny("vilbert")
    recipe = replace(recipe, model={**recipe.model, "region_target": "features"})
    _, losses = losses_of(recipe)
    assert 0 < losses["masked_regions"] < 10


def test_lxmert_may_ask_no_questions_and_predict_less():
    heads = ("words", "match", "regions")
    batch, losses = losses_of(tiny("lxmert", heads, question_share=0.0))
    assert (batch["answers"] == -100).all() and "answers" not in losses
    _, losses = losses_of(tiny("lxmert", heads, region_losses=("classes",)))
    assert losses.keys() == {"masked_words", "matching", "masked_region_classes"}


def test_uniter_draws_from_the_pool_of_the_recipe():
    batch, losses = losses_of(tiny("uniter", pool={"mrc": 1}))
    assert losses.keys() == {"masked_region_classes"} and (batch["class_targets"] > 0).all()
    _, losses = losses_of(tiny("uniter", pool={"itm": 1}, alignment_weight=0.0))
    assert losses.keys() == {"matching"}
    batch, _ = losses_of(tiny("uniter", pool={"mlm": 1}, joint=True))
    assert batch["masked_regions"].any()


def test_oscar_may_be_told_of_three_classes_and_of_questions():
    plus = {"textb_sample_mode": 1, "texta_false_prob": 0.25, "question_share": 0.5}
    recipe = tiny("oscar", **plus)
    batch, losses = losses_of(recipe)
    assert set(batch["pollution"].tolist()) == {0, 1, 2} and losses["matching"] > 0
    assert new_model(recipe, training_data(recipe)).network.config.num_contrast_classes == 3
    batch, _ = losses_of(tiny("oscar", texta_false_prob=0.5, use_tags=False))
    assert not batch["token_types"].any()


def test_visualbert_may_be_told_where_regions_are(tmp_path):
    recipe = tiny("visualbert", locations=True)
    recipe = replace(recipe, model={**recipe.model, "feature_dim": 22})
    batch, _ = losses_of(recipe)
    assert batch["features"].shape[-1] == 22
    assert ((batch["features"][..., -6:] >= 0) & (batch["features"][..., -6:] <= 1)).all()
    run(recipe, tmp_path / "run")
    model = load_trained_regions(recipe, tmp_path / "run" / "model.safetensors")
    assert model.detector.feature_dim == 16
    scenes = datasets.scenes(2, "test")
    assert model.match(model.prepared(scenes), scenes.captions()).isfinite().all()


def test_the_detector_errs_as_the_recipe_says():
    perfect = {"missed": 0.0, "wrong_class": 0.0, "overlapping": 0.0, "jitter": 0.0}
    data = training_data(tiny("uniter", **perfect, image_size=32))
    assert (data.regions.image_sizes == 32).all()
    truth = data.dataset.objects(torch.arange(24))
    assert torch.equal(data.regions.num_regions, truth.count)
    blind = training_data(tiny("uniter", missed=1.0)).regions
    assert (blind.num_regions == 1).all()


# Questions after pretraining.


@pytest.fixture(scope="module")
def answering(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    for name, recipe in RECIPES.items():
        begin = str(runs / name / "model.safetensors")
        model = {**recipe.model, "heads": ("answer",)}
        run(replace(recipe, model=model, start=begin, steps=2), folder / name)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_answers_are_learned_by_a_pretrained_model(name, runs, answering):
    line = read_metrics(answering / name / "metrics.jsonl")[-1]
    assert line.keys() - OTHERS == {"answers"}
    recipe = recipe_of(answering / name)
    begun = new_model(recipe, training_data(recipe)).network.state_dict()
    pretrained = weights(runs / name)
    kept = [key for key in begun if key in pretrained and "heads." not in key]
    assert kept and all(torch.equal(begun[key], pretrained[key]) for key in kept)


@pytest.mark.parametrize("name", RECIPES)
def test_questions_are_measured(name, mmlab, answering, monkeypatch):
    monkeypatch.setattr(questions, "NUM_GUESSED_FROM", 60)
    options = ("--task", "vqa", "--num-images", 4, "--split", "held_out", "--json")
    code, out, _ = mmlab("evaluate", name, "--checkpoint", answering / name, *options)
    figures = json.loads(out)
    assert code == 0 and figures["num_images"] == 4 and figures["num_questions"] > 16
    assert all(0 <= figures[k] <= 1 for k in ("accuracy", "wrong_image", "question_only"))


# Retrieval and matching.


def test_each_system_has_tasks():
    for name in MANNERS:
        first = {"visualbert": ("matching",), "vlbert": ()}.get(name, ("retrieval",))
        assert tasks_of(name) == (*first, "vqa")


@pytest.mark.parametrize("name", MATCHING)
def test_the_usual_task_is_printed_as_json(name, mmlab, runs):
    options = ("--num-images", 6, "--json")
    code, out, _ = mmlab("evaluate", name, "--checkpoint", runs / name, *options)
    figures = json.loads(out)
    assert code == 0 and figures["task"] == tasks_of(name)[0] and figures["split"] == "test"
    for part in (figures, figures["held_out"]):
        assert part["num_images"] == 6 and 0 <= part["matching_accuracy"] <= 1
        if name == "visualbert":
            assert 0 <= part["wrong_image"] <= 1
        else:
            assert 0 <= part["image_to_text"]["r@5"] <= part["image_to_text"]["r@10"] <= 1


def test_a_second_caption_is_told_by_what_the_matching_head_says(runs):
    from mmlab.tasks.region_fusion import second_caption_figures

    model, scenes = model_of(runs, "visualbert"), datasets.scenes(8, "test")
    with torch.no_grad():
        model.network.heads["match"].weight.zero_()
        model.network.heads["match"].bias.copy_(torch.tensor([0.0, 1.0]))
    # It says yes to everything, and is right half of the time.
    assert second_caption_figures(model, scenes)["matching_accuracy"] == 0.5
    assert matching_accuracy(model, scenes) == 0.5


# What cannot be.


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vilbert", {"data": "emoji"}, "data must be scenes: vilbert learns from what a detector"),
        ("lxmert", {"target": "count"}, "target must be left out: lxmert learns from captions"),
        ("oscar", {"label_smoothing": 0.1}, "label_smoothing must be left out"),
        ("uniter", {"pretraining": {"pol": {}}}, "unknown pretraining setting 'pol'; did you mean"),
        ("uniter", {"pretraining": {"pool": {"wra": 1}}}, "pool must be of 'itm', 'mlm'"),
        ("uniter", {"pretraining": {"joint": 1}}, "joint must be true or false, got 1"),
        ("uniter", {"pretraining": {"alignment_weight": -1.0}}, "alignment_weight must be a num"),
        ("vilbert", {"pretraining": {"objective": 3}}, "objective must be 0, 1 or 2, got 3"),
        ("vilbert", {"pretraining": {"missed": 1.5}}, "missed is 1.5; it must be between 0 and 1"),
        ("oscar", {"pretraining": {"texta_false_prob": 0.7}}, "texta_false_prob must be from 0 to"),
        ("oscar", {"pretraining": {"locations": True}}, "unknown pretraining setting 'locations'"),
        ("lxmert", {"pretraining": {"question_share": 2.0}}, "question_share must be in"),
        ("visualbert", {"pretraining": {"image_size": 1}}, "image_size"),
        (
            "vilbert",
            {"model": {"vocab_size": 9}},
            "model must not set vocab_size: the data give it",
        ),
        ("lxmert", {"model": {"num_attributes": 9}}, "model must not set num_attributes"),
        ("uniter", {"model": {"heads": ("rank",)}}, "heads must be without rank: no lesson is for"),
        ("oscar", {"model": {"heads": ("words", "answer")}}, "'answer' alone, as questions are"),
        ("vilbert", {"model": {"region_target": "contrast"}}, "region_target must be 'classes' or"),
        ("visualbert", {"start": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_trained_is_told(name, settings, message, tmp_path):
    if "model" in settings:
        settings = {"model": RECIPES[name].model | settings["model"]}
    with pytest.raises(ValueError, match=message) as caught:
        run(replace(RECIPES[name], **settings), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_start_of_another_shape_or_system_is_refused(runs, tmp_path):
    begin = str(runs / "uniter" / "model.safetensors")
    other = replace(RECIPES["uniter"], start=begin, model=RECIPES["uniter"].model | {"mlp_dim": 32})
    with pytest.raises(ValueError, match="cannot start with"):
        run(other, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no 'oscar-mini'"):
        run(replace(RECIPES["oscar"], start=begin), tmp_path / "run")


def test_questions_want_a_model_that_learned_to_answer(mmlab, runs):
    options = ("--checkpoint", runs / "uniter", "--task", "vqa", "--num-images", 2)
    code, _, err = mmlab("evaluate", "uniter", *options)
    assert code == 2 and "no 'answer' head" in err and err.count("\n") == 1


WORD_TABLES = {
    "vilbert": "embeddings",
    "uniter": "text_embeddings",
    "oscar": "embeddings",
    "visualbert": "embeddings",
    "unicoder-vl": "text_embeddings",
}


@pytest.mark.parametrize("name", WORD_TABLES)
def test_a_model_may_begin_with_a_bert(name, tmp_path):
    words = training_data(RECIPES[name]).tokenizer
    (tmp_path / "words.json").write_text(words.to_json())
    write(tmp_path / "bert.bin", bert_shapes(words.vocab_size, depth=1, positions=64))
    given = {"start_text": str(tmp_path / "bert.bin"), "tokenizer": str(tmp_path / "words.json")}
    recipe = replace(RECIPES[name], **given)
    state = new_model(recipe, training_data(recipe)).network.state_dict()
    bert = torch.load(tmp_path / "bert.bin", weights_only=True)["model"]
    table = WORD_TABLES[name]
    ours = state[f"{table}.word_embedding.weight"]
    assert torch.equal(ours, bert["bert.embeddings.word_embeddings.weight"])
    positions = state[f"{table}.position_embedding.weight"]
    theirs = bert["bert.embeddings.position_embeddings.weight"]
    assert torch.equal(positions, theirs[: len(positions)])
    block = "text_blocks" if name == "vilbert" else "trunk.blocks"
    dense = bert["bert.encoder.layer.0.intermediate.dense.weight"]
    assert torch.equal(state[f"{block}.0.mlp.fc1.weight"], dense)
    head = "heads.words.transform" if name == "oscar" else "heads.words"
    assert torch.equal(state[f"{head}.bias"], bert["cls.predictions.bias"])
    if name == "visualbert":
        assert torch.equal(state["region_embeddings.position_embedding.weight"], positions)


@pytest.mark.parametrize("name", ["lxmert", "vlbert"])
def test_who_does_not_begin_with_a_bert_says_so(name):
    recipe = replace(RECIPES[name], start_text="bert.bin", tokenizer="vocab.txt")
    with pytest.raises(ValueError, match=f"start_text must be left out: a {name} takes none"):
        training_data(recipe)


def test_the_command_line_trains_from_a_file(mmlab, tmp_path):
    config = write_recipe(replace(RECIPES["visualbert"], steps=1), tmp_path)
    code, _, err = mmlab("train", "--config", config, "--out", tmp_path / "run")
    assert code == 0 and f"mmlab evaluate visualbert --checkpoint {tmp_path / 'run'}" in err
    assert recipe_of(tmp_path / "run").system == "visualbert"
