"""VisualBERT against transformers, all six classes.

All parameters are random, tables and norms included. The types of regions are always given there:
by default transformers takes type 1 where the official code and ours take 0.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    VisualBertConfig,
    VisualBertForMultipleChoice,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
    VisualBertModel,
)

from mmlab.hub import create_model, from_mmlab, save, to_mmlab
from mmlab.models import visualbert
from mmlab.models.visualbert import VisualBERT, VisualBERTConfig, VisualBERTPretraining
from mmlab.models.visualbert_tasks import (
    VisualBERTChoices,
    VisualBERTGrounding,
    VisualBERTQuestionAnswering,
    VisualBERTReasoning,
    choice_scores,
)
from tests.parity.test_vit import randomise

TOLERANCE = dict(rtol=0, atol=1e-5)
SIZE = dict(
    dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    vocab_size=50,
    context_length=12,
    max_positions=16,
    feature_dim=10,
)
NAMES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "feature_dim": "visual_embedding_dim",
    "late_fusion": "bypass_transformer",
    "norm_eps": "layer_norm_eps",
}
BERT = set(NAMES) - {"feature_dim", "late_fusion"}
POOLED = {"heads": ("answer",), "answer_from": "pooled"}
# transformers' class, our settings, the published model with them
CLASSES = {
    "base": (VisualBertModel, {"heads": ()}, "visualbert-b-vqa-coco"),
    "pretraining": (VisualBertForPreTraining, {}, "visualbert-b-vqa-coco"),
    "questions": (
        VisualBertForQuestionAnswering,
        {"heads": ("answer",), "num_classes": 9},
        "visualbert-b-vqa",
    ),
    "reasoning": (
        VisualBertForVisualReasoning,
        POOLED | {"num_classes": 2},
        "visualbert-b-nlvr2",
    ),
    "choices": (VisualBertForMultipleChoice, POOLED | {"num_classes": 1}, "visualbert-b-vcr"),
    "grounding": (
        VisualBertForRegionToPhraseAlignment,
        {"heads": ("words", "match", "grounding")},
        "visualbert-b-flickr",
    ),
}
KINDS = pytest.mark.parametrize("kind", CLASSES)
INPUTS = pytest.mark.parametrize("aligned", [False, True], ids=["plain", "aligned"])


def our_config(kind, **changes):
    settings = SIZE | CLASSES[kind][1] | {"dropout": 0.0, "attention_dropout": 0.0} | changes
    return VisualBERTConfig(**settings)


def fresh_hf_model(kind, config):
    options = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    options |= {"hidden_dropout_prob": config.dropout, "num_labels": config.num_classes or 2}
    options["attention_probs_dropout_prob"] = config.attention_dropout
    return CLASSES[kind][0](VisualBertConfig(**options))


def hf_model(kind, config):
    return randomise(fresh_hf_model(kind, config))


def layout(kind):
    return "visualbert-hf-base" if kind == "base" else "visualbert-hf"


def our_model(kind, config, theirs):
    model = VisualBERT(config).eval()
    model.load_state_dict(to_mmlab(layout(kind), theirs.state_dict()))
    return model


def pairs(aligned=False, seed=0):
    """Three texts of 7, 4 and 3 tokens and three images of 5, 2 and 4 regions."""
    generator = torch.Generator().manual_seed(seed)
    text_valid = torch.arange(7) < torch.tensor([7, 4, 3])[:, None]
    region_valid = torch.arange(5) < torch.tensor([5, 2, 4])[:, None]
    ids = torch.randint(2, 50, (3, 7), generator=generator)
    batch = {
        "input_ids": ids.where(text_valid, 0),
        "attention_mask": text_valid,
        "types": torch.randint(2, (3, 7), generator=generator),
        "features": torch.randn(3, 5, 10, generator=generator),
        "region_valid": region_valid,
        "region_types": torch.randint(2, (3, 5), generator=generator),
    }
    if aligned:
        # Some regions have one word, some two, some none.
        batch["alignment"] = torch.randint(-1, 7, (3, 5, 2), generator=generator)
        batch["alignment"][1, 0] = -1
    return batch


THEIRS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "types": "token_type_ids",
    "features": "visual_embeds",
    "region_valid": "visual_attention_mask",
    "region_types": "visual_token_type_ids",
    "alignment": "image_text_alignment",
}


def their_inputs(batch):
    named = {theirs: batch[ours] for ours, theirs in THEIRS.items() if ours in batch}
    masks = ("attention_mask", "visual_attention_mask")
    # Theirs multiplies the alignment in place.
    return {name: t.long() if name in masks else t.clone() for name, t in named.items()}


def both(kind, **changes):
    config = our_config(kind, **changes)
    theirs = hf_model(kind, config)
    return theirs, our_model(kind, config, theirs)


def features_of(model, batch):
    return visualbert.features_of(model, batch)


def late_states(theirs, batch):
    """States and pooled vectors of ``bypass_transformer`` from their parts.

    Their own forward pass asks its mask of one query for another one, and fails.
    """
    inputs = their_inputs(batch)
    text_valid, region_valid = inputs.pop("attention_mask"), inputs.pop("visual_attention_mask")
    length = text_valid.shape[1]
    hidden = (1.0 - torch.cat([text_valid, region_valid], dim=1))[:, None, None] * -1e9
    embedded = theirs.embeddings(**inputs)
    text = theirs.encoder(embedded[:, :length], hidden[..., :length]).last_hidden_state
    both = torch.cat([text, embedded[:, length:]], dim=1)
    states = theirs.additional_layer(both, hidden)[0]
    return states, theirs.pooler(states)


def states_of(theirs, batch):
    if theirs.config.bypass_transformer:
        return late_states(theirs, batch)
    expected = theirs(**their_inputs(batch))
    return expected.last_hidden_state, expected.pooler_output


@pytest.mark.parametrize("late_fusion", [False, True])
@INPUTS
def test_states_and_pooled_vectors_agree(aligned, late_fusion):
    theirs, ours = both("base", late_fusion=late_fusion)
    batch = pairs(aligned)
    with torch.no_grad():
        (states, pooled), features = states_of(theirs, batch), features_of(ours, batch)
    text_valid, region_valid = batch["attention_mask"], batch["region_valid"]
    torch.testing.assert_close(features.text[text_valid], states[:, :7][text_valid], **TOLERANCE)
    found = features.regions[region_valid]
    torch.testing.assert_close(found, states[:, 7:][region_valid], **TOLERANCE)
    torch.testing.assert_close(features.pooled, pooled, **TOLERANCE)
    assert features.pooled.std() > 1e-2


def test_texts_without_regions_agree():
    for late_fusion in (False, True):
        theirs, ours = both("base", late_fusion=late_fusion)
        batch = pairs()
        text = {name: batch[name] for name in ("input_ids", "attention_mask", "types")}
        with torch.no_grad():
            expected, features = theirs(**their_inputs(text)), features_of(ours, text)
        torch.testing.assert_close(features.pooled, expected.pooler_output, **TOLERANCE)


@pytest.mark.parametrize("late_fusion", [False, True])
def test_without_regions_it_is_their_bert(late_fusion):
    config = our_config("pretraining", late_fusion=late_fusion)
    same = {theirs: getattr(config, ours) for ours, theirs in NAMES.items() if ours in BERT}
    bert = randomise(BertForPreTraining(BertConfig(**same)))
    ours = VisualBERT(config).eval()
    state = from_mmlab("visualbert-hf", ours.state_dict())
    renamed = {k.replace("bert.", "visual_bert.", 1): t for k, t in bert.state_dict().items()}
    assert renamed.keys() < state.keys()
    ours.load_state_dict(to_mmlab("visualbert-hf", state | renamed))
    batch = {name: pairs()[name] for name in ("input_ids", "attention_mask", "types")}
    with torch.no_grad():
        expected, features = bert(**their_inputs(batch)), features_of(ours, batch)
        words, match = ours.word_logits(features), ours.matching_logits(features)
    valid = batch["attention_mask"]
    torch.testing.assert_close(words[valid], expected.prediction_logits[valid], **TOLERANCE)
    torch.testing.assert_close(match, expected.seq_relationship_logits, **TOLERANCE)


def test_their_default_type_is_another_one():
    theirs, ours = both("base")
    batch = pairs()
    del batch["region_types"]
    with torch.no_grad():
        by_default = theirs(**their_inputs(batch)).pooler_output
        told = theirs(
            **their_inputs(batch), visual_token_type_ids=torch.zeros(3, 5, dtype=torch.long)
        ).pooler_output
        pooled = features_of(ours, batch).pooled
    torch.testing.assert_close(pooled, told, **TOLERANCE)
    assert (pooled - by_default).abs().max() > 1e-2


def with_labels(batch):
    asked = batch["attention_mask"] & (torch.arange(7) % 3 == 1)
    labels = torch.where(asked, batch["input_ids"], -100)
    return batch | {"labels": labels, "matched": torch.tensor([True, False, True])}


@INPUTS
def test_pretraining_agrees(aligned):
    theirs, ours = both("pretraining")
    batch = with_labels(pairs(aligned))
    valid = batch["attention_mask"]
    nothing = torch.full((3, 5), -100)
    expected = theirs(
        **their_inputs(batch),
        labels=torch.cat([batch["labels"], nothing], dim=1),
        sentence_image_labels=batch["matched"].long(),
    )
    features = features_of(ours, batch)
    words = ours.word_logits(features)
    logits = expected.prediction_logits[:, :7]
    torch.testing.assert_close(words[valid], logits[valid], **TOLERANCE)
    logits = expected.seq_relationship_logits
    torch.testing.assert_close(ours.matching_logits(features), logits, **TOLERANCE)
    losses = VisualBERTPretraining(ours).losses(batch)
    assert list(losses) == ["masked_words", "matching"]
    torch.testing.assert_close(sum(losses.values()), expected.loss, **TOLERANCE)
    sum(losses.values()).backward()
    expected.loss.backward()
    compare_gradients("pretraining", theirs, ours)


def test_pretraining_without_early_fusion_agrees():
    theirs, ours = both("pretraining", late_fusion=True)
    batch = with_labels(pairs(aligned=True))
    words, match = theirs.cls(*late_states(theirs.visual_bert, batch))
    expected = (
        F.cross_entropy(words[:, :7].flatten(0, 1), batch["labels"].flatten()),
        F.cross_entropy(match, batch["matched"].long()),
    )
    losses = VisualBERTPretraining(ours).losses(batch)
    torch.testing.assert_close(tuple(losses.values()), expected, **TOLERANCE)
    sum(losses.values()).backward()
    sum(expected).backward()
    compare_gradients("pretraining", theirs, ours)


def compare_gradients(kind, theirs, ours):
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters()
    }
    expected = to_mmlab(layout(kind), gradients)
    for name, parameter in ours.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(own, expected[name], **TOLERANCE, msg=name)


def test_the_row_of_their_padding_is_a_word_here():
    """Their padding token is 1: seen or not, they do not train its row."""
    gradients = []
    for padded in (1, 0):
        config = our_config("base")
        theirs = hf_model("base", config)
        ours = our_model("base", config, theirs)
        batch = pairs()
        batch["input_ids"][0, 2] = padded
        torch.testing.assert_close(
            features_of(ours, batch).pooled,
            theirs(**their_inputs(batch)).pooler_output,
            **TOLERANCE,
        )
        features_of(ours, batch).pooled.square().sum().backward()
        theirs(**their_inputs(batch)).pooler_output.square().sum().backward()
        tables = (ours.embeddings.word_embedding, theirs.embeddings.word_embeddings)
        gradients.append([table.weight.grad[padded].abs().max() > 0 for table in tables])
    assert gradients == [[True, False], [False, True]]


@INPUTS
def test_answers_agree(aligned):
    theirs, ours = both("questions")
    batch = pairs(aligned)
    batch["scores"] = torch.rand(3, 9, generator=torch.Generator().manual_seed(1))
    batch["scores"][0, 3] = 0
    expected = theirs(**their_inputs(batch), labels=batch["scores"])
    logits = ours.answer_logits(features_of(ours, batch))
    # With labels theirs gives log-probabilities for logits.
    torch.testing.assert_close(logits.log_softmax(-1), expected.logits, **TOLERANCE)
    loss = VisualBERTQuestionAnswering(ours).losses(batch)["answers"]
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)
    loss.backward()
    expected.loss.backward()
    compare_gradients("questions", theirs, ours)


def test_pairs_of_images_agree():
    theirs, ours = both("reasoning")
    batch = pairs()
    del batch["region_types"]
    for name in ("features", "region_valid"):
        batch[name] = torch.stack([batch[name], batch[name].flip(0)], dim=1)
    batch["labels"] = torch.tensor([0, 1, 1])
    expected = theirs(
        **their_inputs(batch)
        | {
            "visual_embeds": batch["features"].flatten(1, 2),
            "visual_attention_mask": batch["region_valid"].flatten(1, 2).long(),
            "visual_token_type_ids": torch.tensor([0] * 5 + [1] * 5).expand(3, -1),
            "labels": batch["labels"],
        }
    )
    loss = VisualBERTReasoning(ours).losses(batch)["answers"]
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)


def test_choices_agree():
    theirs, ours = both("choices")
    batch = pairs()
    for name in ("input_ids", "attention_mask", "types"):
        batch[name] = torch.stack([batch[name], batch[name].flip(0)], dim=1)
    batch["labels"] = torch.tensor([0, 1, 1])
    inputs = their_inputs({name: t for name, t in batch.items() if name != "labels"})
    for name in ("visual_embeds", "visual_attention_mask", "visual_token_type_ids"):
        inputs[name] = torch.stack([inputs[name]] * 2, dim=1)
    expected = theirs(**inputs, labels=batch["labels"])
    labels = batch.pop("labels")
    torch.testing.assert_close(choice_scores(ours, batch), expected.logits, **TOLERANCE)
    loss = VisualBERTChoices(ours).losses(batch | {"labels": labels})["choices"]
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)


@INPUTS
def test_grounding_agrees(aligned):
    theirs, ours = both("grounding")
    batch = pairs(aligned)
    places = torch.tensor([[1, 4, 5], [2, -1, -1], [1, 1, -1]])
    targets = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(1))
    targets = targets * batch["region_valid"][:, None] * (places >= 0)[..., None]
    targets = targets / targets.sum(-1, keepdim=True).clamp_min(1e-9)
    expected = theirs(**their_inputs(batch), region_to_phrase_position=places, labels=targets)
    scores = ours.grounding_logits(features_of(ours, batch), places, batch["region_valid"])
    hidden = ~batch["region_valid"][:, None].expand_as(scores)
    assert (scores[hidden] < -1e38).all() and (expected.logits[hidden] < -1e38).all()
    torch.testing.assert_close(scores[~hidden], expected.logits[~hidden], **TOLERANCE)
    losses = VisualBERTGrounding(ours).losses(batch | {"places": places, "targets": targets})
    torch.testing.assert_close(losses["grounding"], expected.loss, **TOLERANCE)
    losses["grounding"].backward()
    expected.loss.backward()
    compare_gradients("grounding", theirs, ours)


@KINDS
def test_files_that_transformers_saves_are_read(kind, tmp_path):
    config = our_config(kind, norm_eps=1e-5)
    theirs = hf_model(kind, config)
    theirs.save_pretrained(tmp_path)
    options = SIZE | CLASSES[kind][1] | {"dropout": 0.0}
    ours = create_model(CLASSES[kind][2], pretrained=tmp_path, **options).eval()
    assert ours.config.norm_eps == 1e-5
    ids = pairs()["input_ids"]
    backbone = theirs if kind == "base" else theirs.visual_bert
    with torch.no_grad():
        expected = backbone(ids, pairs()["attention_mask"].long()).pooler_output
        pooled = ours(ids, text_valid=pairs()["attention_mask"]).pooled
    torch.testing.assert_close(pooled, expected, **TOLERANCE)


def test_a_file_without_early_fusion_is_not_taken_for_one_with(tmp_path):
    hf_model("base", our_config("base", late_fusion=True)).save_pretrained(tmp_path)
    name, options = CLASSES["base"][2], SIZE | CLASSES["base"][1]
    with pytest.raises(ValueError, match=r"late_fusion=True \(not False\)"):
        create_model(name, pretrained=tmp_path, **options)
    assert create_model(name, pretrained=tmp_path, **options, late_fusion=True).late_block


@KINDS
def test_names_on_disk_are_those_in_memory(kind, tmp_path):
    theirs = hf_model(kind, our_config(kind))
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors").keys()
    tied = {key for key in theirs.state_dict() if key.startswith("cls.predictions.decoder")}
    assert saved == theirs.state_dict().keys() - tied


@KINDS
@pytest.mark.parametrize("late_fusion", [False, True])
def test_transformers_reads_what_we_write(kind, late_fusion, tmp_path):
    config = our_config(kind, late_fusion=late_fusion)
    ours = randomise(VisualBERT(config), seed=6)
    fresh_hf_model(kind, config).config.save_pretrained(tmp_path)
    save(ours, tmp_path / "model.safetensors", layout=layout(kind))
    theirs, report = CLASSES[kind][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    state = from_mmlab(layout(kind), ours.state_dict())
    loaded = theirs.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


PUBLISHED = {
    "vqa": (visualbert.VISUALBERT_B_VQA_COCO, 111_450_624, 112_074_812),
    "nlvr2": (visualbert.VISUALBERT_B_NLVR2_COCO, 110_664_192, 111_288_380),
    "vcr": (visualbert.VISUALBERT_B_VCR_COCO, 110_270_976, 110_895_164),
    "flickr": (visualbert.VISUALBERT_B_FLICKR_COCO, 111_455_232, 112_079_420),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_sizes_fit_transformers_strictly(task):
    config, *counts = PUBLISHED[task]
    for kind, count in zip(("base", "pretraining"), counts, strict=True):
        sized = replace(config, **CLASSES[kind][1])
        with torch.device("meta"):
            theirs = fresh_hf_model(kind, sized)
            state = from_mmlab(layout(kind), VisualBERT(sized).state_dict())
        theirs.load_state_dict(state, strict=True, assign=True)
        theirs.tie_weights()
        assert sum(p.numel() for p in theirs.parameters()) == count
