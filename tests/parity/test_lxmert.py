"""LXMERT against transformers: features, heads, losses, gradients, attention, files.

All parameters are random, biases and norms included: transformers starts the first rows of all
three tables at zero, the official code does not.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    LxmertConfig,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
)

from mmlab.analysis import record_attention
from mmlab.hub import create_model, from_mmlab, save, to_mmlab
from mmlab.models.lxmert import LXMERT, LXMERT_B, LXMERTConfig, LXMERTPretraining
from mmlab.models.lxmert_tasks import LXMERTQuestionAnswering
from tests.parity.test_vit import randomise

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
TINY = LXMERTConfig(
    vocab_size=50,
    context_length=12,
    max_positions=12,
    dim=48,
    text_depth=2,
    region_depth=2,
    cross_depth=2,
    num_heads=4,
    mlp_dim=96,
    feature_dim=32,
    num_region_classes=7,
    num_attributes=5,
    num_classes=11,
)
NAMES = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "dim": "hidden_size",
    "text_depth": "l_layers",
    "region_depth": "r_layers",
    "cross_depth": "x_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "feature_dim": "visual_feat_dim",
    "num_region_classes": "num_object_labels",
    "num_attributes": "num_attr_labels",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# transformers' class, our heads, their layout, the published model with these heads
CLASSES = {
    "base": (LxmertModel, {"heads": (), "num_classes": 0}, "lxmert-hf-base", "lxmert-b"),
    "pretraining": (LxmertForPreTraining, {}, "lxmert-hf", "lxmert-b"),
    "answer": (LxmertForQuestionAnswering, {"heads": ("answer",)}, "lxmert-hf", "lxmert-b-vqa"),
}
KINDS = pytest.mark.parametrize("kind", CLASSES)


def hf_config(config, **changes):
    options = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    return LxmertConfig(**options | {"num_qa_labels": config.num_classes or 11} | changes)


def both(kind="pretraining", dtype=torch.float32, **changes):
    """The class of transformers and ours, with one set of random weights."""
    kind, heads, layout, _ = CLASSES[kind]
    config = replace(TINY, **heads | changes)
    theirs = randomise(kind(hf_config(config))).to(dtype)
    ours = LXMERT(config).to(dtype).eval()
    ours.load_state_dict(to_mmlab(layout, theirs.state_dict()))
    return theirs, ours


def pairs(dtype=torch.float32, text_padding=True, region_padding=True):
    """Three texts of 7, 4 and 3 tokens, and 6, 2 and 5 regions."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (3, 7), generator=generator)
    text_valid = torch.arange(7) < torch.tensor([7, 4, 3])[:, None]
    region_valid = torch.arange(6) < torch.tensor([6, 2, 5])[:, None]
    features = torch.randn(3, 6, 32, generator=generator, dtype=torch.float64)
    locations = torch.rand(3, 6, 4, generator=generator, dtype=torch.float64)
    return {
        "input_ids": ids.where(text_valid, 0) if text_padding else ids,
        "features": features.to(dtype),
        "locations": locations.to(dtype),
        "text_valid": text_valid if text_padding else None,
        "region_valid": region_valid if region_padding else None,
    }


def their_inputs(inputs):
    masks = ("text_valid", "region_valid")
    given = {name: None if inputs[name] is None else inputs[name].long() for name in masks}
    return {
        "input_ids": inputs["input_ids"],
        "visual_feats": inputs["features"],
        "visual_pos": inputs["locations"],
        "attention_mask": given["text_valid"],
        "visual_attention_mask": given["region_valid"],
    }


def assert_close(ours, theirs, **options):
    tolerance = TOLERANCES[theirs.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, **options)


PADDINGS = pytest.mark.parametrize("padding", [(True, True), (True, False), (False, False)])


@DTYPES
@PADDINGS
@torch.no_grad()
def test_features_agree(dtype, padding):
    theirs, ours = both("base", dtype)
    inputs = pairs(dtype, *padding)
    expected, features = theirs(**their_inputs(inputs)), ours(**inputs)
    text, regions = inputs["text_valid"], inputs["region_valid"]
    text, regions = (slice(None) if valid is None else valid for valid in (text, regions))
    assert expected.pooled_output.std() > 0.1
    assert_close(features.text[text], expected.language_output[text])
    assert_close(features.regions[regions], expected.vision_output[regions])
    assert_close(features.pooled, expected.pooled_output)


@DTYPES
@torch.no_grad()
def test_heads_agree(dtype):
    theirs, ours = both("pretraining", dtype)
    inputs = pairs(dtype)
    expected, features = theirs(**their_inputs(inputs)), ours(**inputs)
    valid = inputs["text_valid"]
    assert_close(ours.word_logits(features)[valid], expected.prediction_logits[valid])
    assert_close(ours.matching_logits(features), expected.cross_relationship_score)
    assert_close(ours.answer_logits(features), expected.question_answering_score)
    theirs, ours = both("answer", dtype)
    expected = theirs(**their_inputs(inputs)).question_answering_score
    assert_close(ours.answer_logits(ours(**inputs)), expected)


@torch.no_grad()
def test_other_depths_and_activations_agree():
    changes = {"text_depth": 3, "region_depth": 1, "cross_depth": 1, "activation": "relu"}
    theirs, ours = both("pretraining", **changes)
    expected = theirs(**their_inputs(pairs()))
    assert_close(ours.answer_logits(ours(**pairs())), expected.question_answering_score)


@torch.no_grad()
def test_attention_agrees_and_both_directions_of_the_cross_attention_are_seen():
    """transformers gives one direction; the other is its own module called again."""
    theirs, ours = both("base")
    theirs.set_attn_implementation("eager")
    seen = []
    first = theirs.encoder.x_layers[0].visual_attention.att
    call = first.forward

    def forward(*args, **options):
        output = call(*args, **options | {"output_attentions": True})
        seen.append(output[1])
        return output

    first.forward = forward
    expected = theirs(**their_inputs(pairs()), output_attentions=True)
    with record_attention(ours) as maps:
        ours(**pairs())
    words, regions = seen
    assert_close(maps["cross_blocks.0.text_to_regions.attention"], words)
    assert_close(maps["cross_blocks.0.regions_to_text.attention"], regions)
    for index in range(2):
        cross, alone = f"cross_blocks.{index}.text_to_regions", f"text_blocks.{index}"
        assert_close(maps[f"{cross}.attention"], expected.cross_encoder_attentions[index])
        assert_close(maps[f"{alone}.attention"], expected.language_attentions[index])
        alone = maps[f"region_blocks.{index}.attention"]
        assert_close(alone, expected.vision_attentions[index])


# Losses


def lesson(dtype=torch.float32, region_padding=False):
    """A batch with every kind of label, in our names."""
    generator = torch.Generator().manual_seed(1)
    inputs = pairs(dtype, region_padding=region_padding)
    valid = inputs["region_valid"]
    valid = torch.ones(3, 6, dtype=torch.bool) if valid is None else valid
    masked = torch.rand(3, 7, generator=generator) < 0.4
    labels = torch.randint(1, 50, (3, 7), generator=generator)
    confidences = torch.rand(2, 3, 6, generator=generator, dtype=torch.float64).to(dtype) * valid
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["text_valid"],
        "labels": labels.where(masked & inputs["text_valid"], -100),
        "features": inputs["features"],
        "locations": inputs["locations"],
        "region_valid": valid,
        "matched": torch.tensor([True, False, True]),
        "answers": torch.tensor([4, -100, 9]),
        "chosen": (torch.rand(3, 6, generator=generator) < 0.4) & valid,
        "true_features": 2 * torch.randn(3, 6, 32, generator=generator).to(dtype),
        "classes": torch.randint(7, (3, 6), generator=generator),
        "confidences": confidences[0],
        "attributes": torch.randint(5, (3, 6, 1), generator=generator),
        "attribute_confidences": confidences[1][..., None],
    }


def their_lesson(batch):
    return {
        "input_ids": batch["input_ids"],
        "visual_feats": batch["features"],
        "visual_pos": batch["locations"],
        "attention_mask": batch["attention_mask"].long(),
        "visual_attention_mask": batch["region_valid"].long(),
        "labels": batch["labels"],
        "matched_label": batch["matched"].long(),
        "ans": batch["answers"],
        "obj_labels": {
            "obj": (batch["classes"], batch["confidences"]),
            "attr": (batch["attributes"][..., 0], batch["attribute_confidences"][..., 0]),
            "feat": (batch["true_features"], batch["chosen"].to(batch["features"].dtype)),
        },
    }


def their_loss(theirs, batch):
    """transformers adds up its losses in the default type, whatever that of the model."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(batch["features"].dtype)
    try:
        return theirs(**their_lesson(batch)).loss
    finally:
        torch.set_default_dtype(usual)


@DTYPES
def test_losses_agree_with_their_rounded_weight(dtype):
    theirs, ours = both("pretraining", dtype)
    batch = lesson(dtype)
    losses = LXMERTPretraining(ours, region_weight=6.67).losses(batch)
    assert_close(sum(losses.values()), their_loss(theirs, batch))
    assert min(losses.values()) > 0.1


@DTYPES
def test_losses_are_those_of_the_official_code(dtype):
    """Labels of -1 and a weight of 1 / 0.15, written out from the definitions."""
    theirs, ours = both("pretraining", dtype)
    batch = lesson(dtype)
    losses = LXMERTPretraining(ours).losses(batch)
    out = theirs(**{k: v for k, v in their_lesson(batch).items() if k != "obj_labels"})
    official = {
        name: batch[name].masked_fill(batch[name] == -100, -1) for name in ("labels", "answers")
    }
    hidden = theirs.lxmert(**{k: v for k, v in their_lesson(batch).items() if k in _INPUTS})
    regions = theirs.obj_predict_head(hidden.vision_output)
    errors = F.smooth_l1_loss(regions["feat"], batch["true_features"], reduction="none").mean(-1)
    classes = F.cross_entropy(regions["obj"].mT, batch["classes"], reduction="none")
    attributes = F.cross_entropy(regions["attr"].mT, batch["attributes"][..., 0], reduction="none")
    expected = {
        "masked_words": F.cross_entropy(
            out.prediction_logits.mT, official["labels"], ignore_index=-1
        ),
        "matching": F.cross_entropy(out.cross_relationship_score, batch["matched"].long()),
        "masked_region_features": (errors * batch["chosen"]).mean() / 0.15,
        "masked_region_classes": (classes * batch["confidences"]).mean() / 0.15,
        "masked_region_attributes": (
            (attributes * batch["attribute_confidences"][..., 0]).mean() / 0.15
        ),
        "answers": F.cross_entropy(
            out.question_answering_score, official["answers"], ignore_index=-1
        ),
    }
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert_close(losses[name], loss, msg=name)


_INPUTS = ("input_ids", "visual_feats", "visual_pos", "attention_mask", "visual_attention_mask")


def test_padded_regions_do_not_thin_out_the_losses():
    """The official code knows no padding of regions, and transformers takes the mean over it."""
    theirs, ours = both("pretraining", torch.float64)
    batch = lesson(torch.float64, region_padding=True)
    module = LXMERTPretraining(ours, region_weight=6.67)
    losses = module.losses(batch)
    share = batch["region_valid"].double().mean()
    ours_of_theirs = {k: v * (share if "region" in k else 1) for k, v in losses.items()}
    assert share < 0.8
    assert_close(sum(ours_of_theirs.values()), their_loss(theirs, batch))


def test_question_answering_with_one_right_answer_is_theirs():
    theirs, ours = both("answer")
    batch = lesson()
    labels = torch.tensor([3, 0, 10])
    expected = theirs(
        **{k: v for k, v in their_lesson(batch).items() if k in _INPUTS}, labels=labels
    )
    scores = F.one_hot(labels, 11).float()
    losses = LXMERTQuestionAnswering(ours, one_right=True).losses(batch | {"scores": scores})
    assert_close(losses["answers"], 11 * expected.loss)


@DTYPES
def test_gradients_agree(dtype):
    theirs, ours = both("pretraining", dtype)
    batch = lesson(dtype)
    their_loss(theirs, batch).backward()
    sum(LXMERTPretraining(ours, region_weight=6.67).losses(batch).values()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters()
    }
    expected = to_mmlab("lxmert-hf", gradients)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[name], msg=name)
    for table in ("position", "type"):
        grad = ours.text_embeddings.get_submodule(f"{table}_embedding").weight.grad
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))


# Files


SIZE = {name: getattr(TINY, name) for name in NAMES if name not in ("activation",)}
SIZE |= {"context_length": 12, "dropout": 0.0}


@KINDS
@torch.no_grad()
def test_files_that_transformers_saves_are_read(kind, tmp_path):
    theirs, expected = both(kind)
    theirs.save_pretrained(tmp_path)
    heads = CLASSES[kind][1] | ({} if kind == "base" else {"num_classes": 11})
    ours = create_model(CLASSES[kind][3], pretrained=tmp_path, **SIZE | heads).eval()
    assert ours.config.norm_eps == 1e-12
    assert_close(ours(**pairs()).pooled, expected(**pairs()).pooled)


@KINDS
@torch.no_grad()
def test_transformers_reads_what_we_write(kind, tmp_path):
    name, _, layout, _ = CLASSES[kind]
    theirs, ours = both(kind)
    theirs.config.save_pretrained(tmp_path)
    save(randomise(ours, seed=6), tmp_path / "model.safetensors", layout=layout)
    theirs, report = name.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    expected = theirs.eval()(**their_inputs(pairs()))
    features = ours(**pairs())
    if kind == "base":
        assert_close(features.pooled, expected.pooled_output)
    else:
        assert_close(ours.answer_logits(features), expected.question_answering_score)


@KINDS
def test_published_sizes_fit_transformers_strictly(kind):
    name, heads, layout, _ = CLASSES[kind]
    config = replace(LXMERT_B, **heads)
    with torch.device("meta"):
        theirs = name(hf_config(config, num_qa_labels=9500))
        ours = LXMERT(config)
        state = from_mmlab(layout, ours.state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    theirs.tie_weights()
    counts = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    assert counts[0] == counts[1]
