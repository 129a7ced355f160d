"""VLMo's three stages: what learns in each, what each loss is, what passes from one to the next."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.vlmo import VLMo
from mmlab.models.vlmo_pretraining import (
    VLMoLanguagePretraining,
    VLMoPretraining,
    VLMoVisionPretraining,
    color_codes,
    continue_vlmo,
    freeze_for,
    trained_in,
)
from mmlab.models.vlmo_tasks import VLMoQuestionAnswering, VLMoReasoning, VLMoRetrieval
from mmlab.objectives.contrastive import contrastive_loss
from mmlab.training.optim import make_optimizer
from tests.models.test_vlmo import TINY, build, close, pairs, passes
from tests.models.tiny import TINY_VLMO

MASK = 3
VISION = {"heads": ("codes",), "num_codes": 27, "fusion_depth": 0}
LANGUAGE = {"heads": ("words",), "fusion_depth": 0}


def fresh(seed=0, **changes):
    torch.manual_seed(seed)
    return VLMo(replace(TINY_VLMO, **changes))


def batch_of(count=4, **extra):
    ids, valid, images = pairs(tuple(4 + i % 4 for i in range(count)))
    return {"images": images, "input_ids": ids, "attention_mask": valid, **extra}


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


# What learns


MODULES = {
    "vision": lambda: VLMoVisionPretraining(fresh(**VISION), drawn()),
    "language": lambda: VLMoLanguagePretraining(fresh(**LANGUAGE), MASK, generator=drawn()),
    "pairs": lambda: VLMoPretraining(fresh(), MASK, drawn()),
}


@pytest.mark.parametrize("stage", MODULES)
def test_all_that_learns_in_a_stage_gets_a_gradient_and_nothing_else(stage):
    module = MODULES[stage]()
    network = module.network
    # Whole-word masks of so few words may hit none.
    words = {"masked_ids": batch_of()["input_ids"], "labels": batch_of()["input_ids"]}
    sum(module.losses(batch_of(**words)).values()).backward()
    moved = [name for name, p in network.named_parameters() if p.grad is not None]
    assert moved == trained_in(network, stage)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == moved


def test_what_learns_in_each_stage():
    network = fresh(heads=(*TINY.heads, "codes"), num_codes=27)
    table = "position_bias.table"
    vision, language, pairs_ = (trained_in(network, s) for s in ("vision", "language", "pairs"))
    assert table in vision and table in language and table in pairs_
    assert not any("experts.text" in n or "experts.fusion" in n or "text_" in n for n in vision)
    kinds = {"text_embeddings", "position_bias", "heads.words", "experts.text"}
    assert {kind for kind in kinds for name in language if kind in name} == kinds
    assert all(any(kind in name for kind in kinds) for name in language)
    everything = {name for name, _ in network.named_parameters()}
    assert everything - set(pairs_) == {
        "mask_token",
        "heads.codes.weight",
        "heads.codes.bias",
        "text_embeddings.position_embedding.weight",
    }
    absolute = fresh(positions="absolute")
    assert "text_embeddings.position_embedding.weight" in trained_in(absolute, "language")
    assert "position_embedding" in trained_in(absolute, "vision")
    assert "position_embedding" not in trained_in(absolute, "language")
    with pytest.raises(ValueError, match="stage must be one of 'vision', 'language', 'pairs', got"):
        freeze_for(network, "video")


@pytest.mark.parametrize("freeze", [True, False])
def test_texts_leave_an_images_features_alone_if_attention_is_frozen(freeze):
    module = VLMoLanguagePretraining(build(**LANGUAGE), MASK, freeze, drawn())
    network, batch = module.network, batch_of(labels=batch_of()["input_ids"])
    batch["masked_ids"] = batch["input_ids"]
    ids, valid, images = batch["input_ids"], batch["attention_mask"], batch["images"]
    before = {name: t.clone() for name, t in network.state_dict().items()}
    image, text = network.image_paths(images).tokens, network.text_paths(ids, valid).tokens
    optimizer = make_optimizer(network, 1e-2, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module.losses(batch)["masked_words"].backward()
        optimizer.step()
    same = torch.equal(network.image_paths(images).tokens, image)
    assert same == freeze
    assert (network.text_paths(ids, valid).tokens - text).abs().max() > 1e-2
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("attention" in name for name in moved) != freeze
    if freeze:
        assert moved <= set(trained_in(network, "language"))


# Images alone


def test_the_loss_of_images_is_the_cross_entropy_of_masked_codes():
    network, images = build(**VISION), batch_of()["images"]
    module = VLMoVisionPretraining(network)
    masked = torch.rand(4, 9, generator=drawn()) < 0.5
    codes = torch.randint(27, (4, 9), generator=drawn())
    batch = {"images": images, "masked_patches": masked, "codes": codes}
    logits = network.code_logits(network.image_paths(images, masked).tokens)
    expected = F.cross_entropy(logits[masked], codes[masked])
    close(module.losses(batch)["masked_patches"], expected)
    hidden = images.clone()
    hidden[:, :, :4, :4] = 7
    masked[:, 0] = True
    close(
        module.losses(batch)["masked_patches"],
        module.losses(batch | {"images": hidden})["masked_patches"],
    )


def test_two_fifths_of_the_patches_are_masked():
    module, shares = VLMoVisionPretraining(fresh(**VISION), drawn()), []
    paths = module.network.image_paths

    def watch(images, masked, fused):
        shares.append(masked.float().mean().item())
        return paths(images, masked, fused)

    module.network.image_paths = watch
    module.losses({"images": torch.randn(256, 3, 12, 12, generator=drawn())})
    assert shares == [pytest.approx(0.4, abs=0.04)]


def test_color_codes_number_the_mean_colors():
    images = torch.full((1, 3, 4, 8), -1.0)
    images[0, 0, :, 4:], images[0, 2, :, 4:] = 1.0, 0.0
    assert color_codes(images, 4, 27).tolist() == [[0, 2 + 0 * 3 + 1 * 9]]
    with pytest.raises(ValueError, match="num_codes must be a whole number to the power of 3"):
        color_codes(images, 4, 28)


# Pairs


def test_the_losses_are_those_of_the_sheet():
    module = VLMoPretraining(build(), MASK, drawn())
    network, batch = module.network, batch_of()
    batch["masked_ids"] = batch["input_ids"].masked_fill(
        torch.rand(4, 7, generator=drawn()) < 0.3, MASK
    )
    batch["labels"] = torch.where(batch["masked_ids"] == MASK, batch["input_ids"], -100)
    step = module.step(batch)
    losses = step.losses()
    assert list(losses) == ["contrastive", "matching", "masked_words"]
    images, texts = step.images, step.texts
    plain = contrastive_loss(
        network.image_features(images.tokens), network.text_features(texts.tokens), network.scale()
    )
    fusion = contrastive_loss(
        network.image_features(images.fused, "fusion_contrast"),
        network.text_features(texts.fused, "fusion_contrast"),
        network.scale("fusion_contrast"),
    )
    close(losses["contrastive"], (plain + fusion) / 2)
    logits = step.words.logits.flatten(0, 1)
    close(losses["masked_words"], F.cross_entropy(logits, batch["labels"].flatten()) / 4)
    ids, valid, pixels = batch["input_ids"], batch["attention_mask"], batch["images"]
    wrong_images, wrong_texts = step.matching.negative_images, step.matching.negative_texts
    expected = [
        network.matching_logits(network(*pair))
        for pair in (
            (ids, pixels, valid),
            (ids, pixels[wrong_images], valid),
            (ids[wrong_texts], pixels, valid[wrong_texts]),
        )
    ]
    close(step.matching.logits, torch.cat(expected))
    labels = torch.tensor([1] * 4 + [0] * 8)
    close(losses["matching"], F.cross_entropy(torch.cat(expected), labels))


def test_without_fusion_experts_features_there_is_one_contrast():
    module = VLMoPretraining(build(heads=("contrast", "match", "words")), MASK, drawn())
    step = module.step(batch_of())
    assert step.fusion_contrast is None
    close(step.losses()["contrastive"], step.contrast.loss())


def test_wrong_partners_are_drawn_by_the_softmax_of_similarities():
    module = VLMoPretraining(build(), MASK, drawn())
    contrast = module.step(batch_of()).contrast
    draws = [module._negatives({}, contrast) for _ in range(800)]
    for side, similarity in enumerate((contrast.text_to_image, contrast.image_to_text)):
        found = torch.stack([F.one_hot(pair[side], 4) for pair in draws]).float().mean(0)
        weights = similarity.detach().softmax(1).fill_diagonal_(0)
        assert found.diagonal().max() == 0
        assert (found - weights / weights.sum(1, keepdim=True)).abs().max() < 0.08


def test_initial_losses_are_those_of_guessing():
    module = VLMoPretraining(fresh(layer_scale=0.1), MASK, drawn()).eval()
    losses = module.losses(batch_of(16))
    assert losses["matching"].item() == pytest.approx(math.log(2), abs=0.1)
    assert losses["masked_words"].item() == pytest.approx(math.log(50) / 4, abs=0.1)


def test_a_few_pairs_are_learnt():
    module = VLMoPretraining(fresh(init="xavier"), MASK, drawn())
    optimizer, batch, totals = make_optimizer(module, 5e-3, 0.01), batch_of(4), []
    for _ in range(40):
        optimizer.zero_grad()
        losses = module.losses(batch)
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(losses["contrastive"].item() + losses["matching"].item())
    assert totals[-1] < 0.5 * totals[0]


@pytest.mark.parametrize("kind", [VLMoLanguagePretraining, VLMoPretraining])
def test_a_mask_beyond_the_vocabulary_is_named(kind):
    with pytest.raises(ValueError, match="mask_id must be from 0 to below vocab_size=50, got 103"):
        kind(fresh())
    with pytest.raises(ValueError, match="this VLMo has no 'words' head"):
        kind(fresh(heads=("contrast", "match")), MASK)


# From stage to stage


def test_a_model_goes_through_all_stages():
    vision = build(**VISION, context_length=12)
    language = continue_vlmo(vision, heads=("words",), num_codes=0)
    perturbed = build(seed=5, **LANGUAGE, context_length=12).state_dict()
    language.load_state_dict(perturbed)
    model = continue_vlmo(language, heads=TINY.heads, fusion_depth=1, context_length=10)
    assert model.config == TINY
    own, theirs = model.state_dict(), language.state_dict()
    places = "text_embeddings.position_embedding.weight"
    assert torch.equal(own[places], theirs[places][:10])
    kept = own.keys() & theirs.keys() - {places}
    assert all(torch.equal(own[key], theirs[key]) for key in kept)
    new = {key for key in own.keys() - theirs.keys()}
    assert all("experts.fusion" in key or key.startswith("heads.") for key in new)
    ids, valid, images = pairs()
    model.eval(), language.eval()
    for name in ("image", "text"):
        close(passes(model, ids, valid, images)[name], _alone(language, name, ids, valid, images))


def _alone(model, name, ids, valid, images):
    path = model.image_paths(images) if name == "image" else model.text_paths(ids, valid)
    return path.tokens


def test_a_model_for_two_images_tells_them_apart_later():
    model = continue_vlmo(build(), heads=("answer",), num_classes=2, num_images=2).eval()
    rows = model.modality_embedding.weight
    assert len(rows) == 3 and torch.equal(rows[1], rows[2])
    ids, valid, images = pairs()
    first, second = (model(ids, images, valid, n).pooled for n in (1, 2))
    close(first, second)
    rows.data[2] += torch.randn(TINY.dim)
    assert (model(ids, images, valid, 2).pooled - first).abs().max() > 1e-3
    back = continue_vlmo(model, heads=(), num_classes=0, num_images=1)
    assert torch.equal(back.modality_embedding.weight, rows[:2])


def test_positions_follow_the_resolution_and_longer_texts_get_fresh_rows():
    model = build()
    table = model.position_bias.table.clone()
    larger = continue_vlmo(model, image_size=24, context_length=12, heads=())
    assert torch.equal(model.position_bias.table, table) and model.config == TINY
    model.resize_positions(24)
    close(larger.position_bias.table, model.position_bias.table)
    places = larger.text_embeddings.position_embedding.weight
    assert torch.equal(places[:10], model.text_embeddings.position_embedding.weight)


def test_another_trunk_is_refused():
    with pytest.raises(ValueError, match="the two VLMos must have the same trunk; they differ in"):
        continue_vlmo(build(), depth=4)


# Tasks


def test_retrieval_compares_features_of_the_single_modalities():
    network, batch = build(heads=("contrast",)), batch_of()
    images = network.encode_image(batch["images"])
    texts = network.encode_text(batch["input_ids"], batch["attention_mask"])
    close(images.norm(dim=-1), torch.ones(4))
    losses = VLMoRetrieval(network).losses(batch)
    close(losses["contrastive"], contrastive_loss(images, texts, network.scale()))


def test_questions_are_answered_by_a_sum_of_binary_losses():
    network = build(heads=("answer",), num_classes=7)
    batch = batch_of(scores=torch.rand(4, 7, generator=drawn()))
    features = network(batch["input_ids"], batch["images"], batch["attention_mask"])
    logits = network.answer_logits(features)
    expected = F.binary_cross_entropy_with_logits(logits, batch["scores"], reduction="sum") / 4
    close(VLMoQuestionAnswering(network).losses(batch)["answers"], expected)


def test_statements_are_judged_by_two_passes():
    network = build(heads=("answer",), num_classes=2, num_images=2)
    batch = batch_of(labels=torch.tensor([0, 1, 1, 0]))
    ids, valid, images = batch["input_ids"], batch["attention_mask"], batch["images"]
    batch["images"] = torch.stack([images, images.flip(0)], 1)
    both = network(ids, images, valid, 1), network(ids, images.flip(0), valid, 2)
    expected = F.cross_entropy(network.answer_logits(*both), batch["labels"])
    close(VLMoReasoning(network).losses(batch)["answers"], expected)
