"""BLIP-2 in the engine, stage 1; stage 2 needs transformers: tests/parity/test_blip2_stage2.py."""

import json
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from mmlab import cli
from mmlab.hub import CheckpointError, create_model, mini_checkpoint
from mmlab.training.blip2_system import load_trained, saved_tokenizer
from mmlab.training.evaluation import choose, measure, tasks_of
from mmlab.training.loop import make_state
from mmlab.training.recipe import Recipe
from mmlab.training.run import new_model, read_metrics, recipe_of, run, training_data
from mmlab.training.systems import SYSTEMS
from tests.training.tiny import TINY_BLIP2, on_shards, write_vit


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return write_vit(tmp_path_factory.mktemp("vit") / "vit.safetensors")


@pytest.fixture(scope="module")
def recipe(vit):
    return replace(TINY_BLIP2, start=vit)


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stage1"
    run(recipe, folder)
    return folder


def state_of(recipe):
    module = new_model(recipe, training_data(recipe))
    return make_state(module, recipe, Accelerator(), SYSTEMS["blip2"].decays)


class Stopped(Exception):
    pass


def stop_at_5(figures):
    if figures["step"] == 5:
        raise Stopped


def test_the_three_losses_are_told(done):
    first = read_metrics(done / "metrics.jsonl")[0]
    parts = {"contrastive", "matching", "language_modeling"}
    assert first["loss"] == pytest.approx(sum(first[part] for part in parts), rel=1e-5)
    assert first["matching"] == pytest.approx(math.log(2), abs=0.3)
    # Similarities are small numbers over the temperature: near the logarithm of the batch.
    assert first["contrastive"] == pytest.approx(math.log(8), abs=0.5)


def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(recipe, done, tmp_path):
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "run", report=stop_at_5)
    run(recipe, tmp_path / "run", resume=True)
    ones, twos = (load_file(folder / "model.safetensors") for folder in (done, tmp_path / "run"))
    assert ones.keys() == twos.keys()
    assert all(torch.equal(ones[key], twos[key]) for key in ones)


def test_the_optimiser_knows_nothing_of_what_is_frozen(recipe):
    state = state_of(recipe)
    network = state.model.network
    learned = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    frozen = {id(p) for p in network.image_encoder.parameters()}
    assert frozen and not frozen & learned
    assert learned == {id(p) for p in network.parameters()} - frozen
    assert not any(p.requires_grad for p in network.image_encoder.parameters())
    assert not network.image_encoder.training
    # Matrices decay, positions of the text among them; norms, biases and the temperature do not.
    decayed = {id(p) for p in state.optimizer.param_groups[0]["params"]}
    assert id(network.qformer.embeddings.position_embedding.weight) in decayed
    assert not {id(p) for n, p in network.named_parameters() if p.ndim < 2} & decayed


def test_checkpoints_leave_out_what_never_changes(vit, done):
    checkpoint = done / "checkpoints" / "step-00000006"
    for name in ("model.safetensors", "average.safetensors"):
        keys = load_file(checkpoint / name).keys()
        assert "qformer.queries" in keys and not [k for k in keys if "image_encoder" in k]
    rest = torch.load(checkpoint / "state.pt", weights_only=True)
    assert rest["own"] == {} and len(rest["frozen"]) == 64
    # Finished weights have all, and the encoder is still the ViT.
    finished, started = load_file(done / "model.safetensors"), load_file(vit)
    encoder = {k.removeprefix("image_encoder."): t for k, t in finished.items() if "encoder" in k}
    assert encoder.keys() == {key for key in started if not key.startswith("head.")}
    assert all(torch.equal(tensor, started[key]) for key, tensor in encoder.items())


def test_a_run_is_not_resumed_with_another_frozen_encoder(tmp_path):
    other = replace(TINY_BLIP2, start=write_vit(tmp_path / "vit.safetensors"))
    with pytest.raises(Stopped):
        run(other, tmp_path / "run", report=stop_at_5)
    write_vit(tmp_path / "vit.safetensors", seed=1)
    with pytest.raises(CheckpointError, match="was trained with other frozen weights than"):
        run(other, tmp_path / "run", resume=True)


def test_a_checkpoint_on_the_way_is_measured_like_finished_weights(recipe, done):
    on_the_way = done / "checkpoints" / "step-00000006" / "average.safetensors"
    one = load_trained(recipe, done / "model.safetensors").state_dict()
    two = load_trained(recipe, on_the_way).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_what_is_frozen_may_be_in_half_precision(precision, dtype, recipe):
    module = new_model(
        replace(recipe, pretraining={"frozen_precision": precision}), training_data(recipe)
    )
    network = module.network
    assert next(network.image_encoder.parameters()).dtype == getattr(torch, dtype)
    assert network.qformer.queries.dtype == network.image_norm.weight.dtype == torch.float32
    images = torch.randn(2, 3, 32, 32)
    tokens = network.image_tokens(images)
    assert tokens.dtype == torch.float32
    exact = new_model(recipe, training_data(recipe)).network.image_tokens(images)
    assert 0 < (tokens - exact).abs().max() < 0.1


def test_finished_weights_bring_their_words(recipe, done):
    file = done / "model.safetensors"
    assert recipe_of(file) == recipe
    where = choose("scenes", {"num_images": 12}, "blip2", "retrieval")
    figures = measure(recipe, file, "retrieval", where, "en")
    assert figures["num_images"] == 12 and figures["held_out"]["num_images"] == 12
    for part in (figures, figures["by_features"]):
        assert 0 <= part["image_to_text"]["r@1"] <= part["image_to_text"]["r@10"] <= 1
    assert 0.2 < figures["matching_accuracy"] < 0.8


def test_captions_are_written_and_judged(recipe, done, capsys):
    options = ("--task", "captioning", "--num-images", "4", "--split", "test", "--json")
    assert cli.main(["evaluate", "blip2", "--checkpoint", str(done), *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["task"] == "captioning" and figures["num_images"] == 4
    for name in ("exact", "exact_wrong_image", "named", "named_wrong_image"):
        assert 0 <= figures[name] <= 1
    assert 1 <= figures["num_different"] <= 4


def test_shards_may_hold_the_pairs(recipe, tmp_path):
    streamed = on_shards(recipe, tmp_path / "shards")
    run(streamed, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(streamed, tmp_path / "broken", report=stop_at_5)
    run(streamed, tmp_path / "broken", resume=True)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "broken")]
    ones, twos = map(load_file, files)
    assert all(torch.equal(ones[key], twos[key]) for key in ones)
    assert saved_tokenizer(files[0]).token_id("[DEC]") == saved_tokenizer(files[0]).vocab_size - 1


def test_it_goes_on_from_a_trained_blip2(recipe, done, tmp_path):
    start = str(done / "model.safetensors")
    given = {"steps": 1, "lr": 1e-12, "warmup": 0, "ema_decay": 0.0, "seed": 3}
    run(replace(recipe, start=start, **given), tmp_path / "run")
    old, new = load_file(start), load_file(tmp_path / "run" / "model.safetensors")
    assert old.keys() == new.keys()
    for key, tensor in new.items():
        torch.testing.assert_close(tensor, old[key], atol=1e-6, rtol=0)


def test_the_mini_starts_from_the_mini_vit():
    recipe = Recipe(system="blip2", data="scenes", num_images=8, batch_size=8)
    network = new_model(recipe, training_data(recipe)).network
    file = mini_checkpoint("vit-mini")
    theirs = {key: tensor.float() for key, tensor in load_file(file).items()}
    for key, tensor in network.image_encoder.state_dict().items():
        assert torch.equal(tensor, theirs[key])
    assert network.config.decoder_id == training_data(recipe).tokenizer.token_id("[DEC]")


def test_it_is_measured_by_what_it_can():
    assert tasks_of("blip2") == ("retrieval", "captioning")
    assert choose("scenes", {}, "blip2", "captioning")["num_images"] == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "emoji"}, "data must be scenes or shards: blip2 learns from captions"),
        ({"target": "count"}, "target must be left out: blip2 learns from captions"),
        ({"model": {"vocab_size": 7}}, "model must not set vocab_size: the data give it"),
        ({"pretraining": {"queue_size": 7}}, "unknown pretraining setting 'queue_size'"),
        ({"pretraining": {"frozen_precision": "int4"}}, "unknown frozen_precision 'int4'"),
        ({"model": {**TINY_BLIP2.model, "dim": 64}}, "cannot start with .* the same shape"),
        ({"start": "nowhere.safetensors"}, "nowhere.safetensors"),
        (
            {"size": "l-14", "model": {}, "start": ""},
            "start must be the weights of a trained image encoder or BLIP-2",
        ),
        (
            {"size": "g-14-opt-2.7b", "model": {}},
            "language_model must be told in pretraining: it is what speaks",
        ),
    ],
)
def test_what_cannot_be_trained_is_told(settings, message, recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(replace(recipe, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_encoder_that_learns_may_begin_afresh():
    model = {**TINY_BLIP2.model, "freeze_images": False}
    recipe = replace(TINY_BLIP2, model=model)
    state = state_of(recipe)
    learned = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in state.model.network.parameters()}
    assert state.model.network.train().image_encoder.training


def test_a_start_of_another_size_of_queries_is_told(recipe, done):
    start = str(done / "model.safetensors")
    other = replace(recipe, start=start, model={**recipe.model, "num_queries": 3})
    with pytest.raises(ValueError, match=r"cannot start with .* differ in 'qformer.queries'"):
        new_model(other, training_data(other))


def test_another_model_is_refused(recipe, vit):
    with pytest.raises(CheckpointError, match=r"vit.safetensors' is no 'blip2-mini'"):
        load_trained(recipe, vit)


def test_a_recipe_of_other_sizes_makes_another_model(done):
    config = create_model("blip2-mini").config
    assert load_trained(TINY_BLIP2, done / "model.safetensors").config != config
