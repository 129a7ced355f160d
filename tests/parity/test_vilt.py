"""ViLT against transformers, all five classes, images of one size and of several.

All parameters are random, tables and norms included. Padding is compared nowhere: there
``transformers`` has random patches that nobody sees.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltModel,
)

from mmlab.hub import create_model, from_mmlab, save, to_mmlab
from mmlab.models.vilt import ViLT, ViLTConfig, choose_patches, pad_images
from tests.parity.test_vit import randomise

TOLERANCE = dict(rtol=0, atol=1e-5)
SIZE = dict(
    image_size=48,
    patch_size=8,
    dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    vocab_size=50,
    context_length=12,
)
NAMES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
}
# transformers' class, our heads, the published model with them
CLASSES = {
    "base": (ViltModel, {"heads": ()}, "vilt-b-32"),
    "words": (ViltForMaskedLM, {"heads": ("words",)}, "vilt-b-32"),
    "rank": (ViltForImageAndTextRetrieval, {"heads": ("rank",)}, "vilt-b-32-retrieval"),
    "vqa": (ViltForQuestionAnswering, {"heads": ("answer",), "num_classes": 9}, "vilt-b-32-vqa"),
    "nlvr2": (
        ViltForImagesAndTextClassification,
        {"heads": ("answer",), "num_classes": 2, "num_images": 2},
        "vilt-b-32-nlvr2",
    ),
}
KINDS = pytest.mark.parametrize("kind", CLASSES)
IMAGES = {
    "same": [(48, 48)] * 3,
    "other": [(32, 64)] * 3,
    "several": [(48, 32), (16, 72), (40, 40)],
}


def our_config(kind, eps=1e-6):
    heads = CLASSES[kind][1]
    return ViLTConfig(**SIZE, **heads, norm_eps=eps, text_norm_eps=eps, dropout=0.0)


def fresh_hf_model(kind, config):
    options = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    options["modality_type_vocab_size"] = 1 + config.num_images
    options["num_images"] = config.num_images if config.num_images > 1 else -1
    options["num_labels"] = config.num_classes or 2
    return CLASSES[kind][0](ViltConfig(**options))


def hf_model(kind, config):
    return randomise(fresh_hf_model(kind, config))


def layout(kind):
    return "vilt-hf-base" if kind == "base" else "vilt-hf"


def our_model(kind, config, theirs):
    model = ViLT(config).eval()
    model.load_state_dict(to_mmlab(layout(kind), theirs.state_dict()))
    return model


def pairs(images="several", seed=0):
    """Three texts of 7, 4 and 3 tokens and three images."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (3, 7), generator=generator)
    text_valid = torch.arange(7) < torch.tensor([7, 4, 3])[:, None]
    drawn = [torch.randn(3, *size, generator=generator) for size in IMAGES[images]]
    pixels, sizes = pad_images(drawn)
    return ids.where(text_valid, 0), text_valid, pixels, sizes


def pixel_mask(pixels, sizes):
    rows, columns = (torch.arange(n) for n in pixels.shape[-2:])
    heights, widths = sizes[:, :, None].unbind(1)
    return ((rows < heights)[:, :, None] & (columns < widths)[:, None]).long()


def their_inputs(ids, text_valid, pixels, sizes):
    return {
        "input_ids": ids,
        "attention_mask": text_valid.long(),
        "pixel_values": pixels,
        "pixel_mask": pixel_mask(pixels, sizes),
    }


def our_outputs(model, kind, ids, text_valid, pixels, sizes):
    features = model(ids, pixels, text_valid, sizes)
    if kind == "words":
        return model.word_logits(features)[text_valid]
    if kind == "rank":
        return model.rank_scores(features)[:, None]
    if kind == "vqa":
        return model.answer_logits(features)
    second = model(ids, pixels.flip(0), text_valid, sizes.flip(0), image_number=2)
    return model.answer_logits(features, second)


@torch.no_grad()
def their_outputs(model, kind, ids, text_valid, pixels, sizes):
    inputs = their_inputs(ids, text_valid, pixels, sizes)
    if kind == "nlvr2":
        for name in ("pixel_values", "pixel_mask"):
            inputs[name] = torch.stack([inputs[name], inputs[name].flip(0)], dim=1)
    logits = model(**inputs).logits
    return logits[text_valid] if kind == "words" else logits


@pytest.fixture
def patches_in_order(monkeypatch):
    """transformers puts the patches in a random order; this makes it that of the image."""

    def first(weights, count, replacement=False):
        return torch.arange(count) % len(weights)

    monkeypatch.setattr(torch, "multinomial", first)


@pytest.mark.parametrize("images", IMAGES)
def test_tokens_and_pooled_vectors_agree(images, patches_in_order):
    config = our_config("base")
    theirs = hf_model("base", config)
    ours = our_model("base", config, theirs)
    ids, text_valid, pixels, sizes = pairs(images)
    with torch.no_grad():
        expected = theirs(**their_inputs(ids, text_valid, pixels, sizes))
        features = ours(ids, pixels, text_valid, sizes)
    tokens, count = expected.last_hidden_state, features.patches.shape[1]
    assert tokens.shape[1] == 7 + 1 + count
    torch.testing.assert_close(features.text[text_valid], tokens[:, :7][text_valid], **TOLERANCE)
    torch.testing.assert_close(features.class_token, tokens[:, 7], **TOLERANCE)
    valid = features.patch_valid
    torch.testing.assert_close(features.patches[valid], tokens[:, 8:][valid], **TOLERANCE)
    torch.testing.assert_close(features.pooled, expected.pooler_output, **TOLERANCE)


@pytest.mark.parametrize("images", IMAGES)
def test_a_limited_number_of_patches_agrees(images, patches_in_order):
    config = our_config("base")
    theirs = hf_model("base", config)
    ours = our_model("base", config, theirs)
    theirs.config.max_image_length = 19
    ids, text_valid, pixels, sizes = pairs(images)
    with torch.no_grad():
        expected = theirs(**their_inputs(ids, text_valid, pixels, sizes))
        kept = choose_patches(ours.valid_patches(pixels, sizes), 19)
        features = ours(ids, pixels, text_valid, sizes, kept)
    assert features.patches.shape[1] == expected.last_hidden_state.shape[1] - 8 == 19
    torch.testing.assert_close(features.pooled, expected.pooler_output, **TOLERANCE)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind != "base"])
def test_heads_agree(kind, images):
    config = our_config(kind)
    theirs = hf_model(kind, config)
    ours = our_model(kind, config, theirs)
    with torch.no_grad():
        outputs = our_outputs(ours, kind, *pairs(images))
    expected = their_outputs(theirs, kind, *pairs(images))
    assert expected.std() > 1e-2
    torch.testing.assert_close(outputs, expected, **TOLERANCE)


def test_gradients_agree():
    config = our_config("words")
    theirs = hf_model("words", config)
    theirs.mlm_score.decoder.weight = torch.nn.Parameter(torch.randn(50, 32))
    ours = our_model("words", config, theirs)
    ids, text_valid, pixels, sizes = pairs()
    labels = torch.where(text_valid, ids.flip(1), -100)
    loss = theirs(**their_inputs(ids, text_valid, pixels, sizes), labels=labels).loss
    loss.backward()
    logits = ours.word_logits(ours(ids, pixels, text_valid, sizes))
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    their_gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters()
    }
    expected = to_mmlab("vilt-hf", their_gradients)
    for name, parameter in ours.named_parameters():
        if not name.startswith("pooler."):
            torch.testing.assert_close(parameter.grad, expected[name], **TOLERANCE, msg=name)


@KINDS
def test_files_that_transformers_saves_are_read(kind, tmp_path):
    config = our_config(kind, eps=1e-5)
    theirs = hf_model(kind, config)
    theirs.save_pretrained(tmp_path)
    # A fresh model of transformers is tied, so its file has one matrix fewer.
    changes = SIZE | CLASSES[kind][1] | {"dropout": 0.0, "tied_words": kind == "words"}
    ours = create_model(CLASSES[kind][2], pretrained=tmp_path, **changes).eval()
    assert ours.config.norm_eps == ours.config.text_norm_eps == 1e-5
    if kind == "base":
        features = ours(*pairs()[:1], pairs()[2], *pairs()[1::2])
        with torch.no_grad():
            expected = theirs(**their_inputs(*pairs())).pooler_output
        torch.testing.assert_close(features.pooled, expected, **TOLERANCE)
    else:
        outputs, expected = (
            our_outputs(ours, kind, *pairs()),
            their_outputs(theirs, kind, *pairs()),
        )
        torch.testing.assert_close(outputs, expected, **TOLERANCE)


@KINDS
def test_names_on_disk_are_those_in_memory(kind, tmp_path):
    theirs = hf_model(kind, our_config(kind))
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors").keys()
    tied = {"mlm_score.decoder.weight"} if kind == "words" else set()
    assert saved == theirs.state_dict().keys() - tied


@KINDS
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_what_we_write(kind, tied, tmp_path):
    config = replace(our_config(kind), tied_words=tied)
    ours = randomise(ViLT(config), seed=6)
    hf_model(kind, config).config.save_pretrained(tmp_path)
    save(ours, tmp_path / "model.safetensors", layout=layout(kind))
    theirs, report = CLASSES[kind][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    if kind == "base":
        with torch.no_grad():
            expected = theirs.eval()(**their_inputs(*pairs())).pooler_output
        ids, text_valid, pixels, sizes = pairs()
        outputs = ours(ids, pixels, text_valid, sizes).pooled
    else:
        expected = their_outputs(theirs.eval(), kind, *pairs())
        outputs = our_outputs(ours, kind, *pairs())
    torch.testing.assert_close(outputs, expected, **TOLERANCE)


COUNTS = {
    "base": 111_595_008,
    "words": 112_217_658,
    "vqa": 117_588_537,
    "nlvr2": 113_962_754,
    "rank": 111_595_777,
}


@KINDS
def test_published_sizes_fit_transformers_strictly(kind):
    heads = CLASSES[kind][1] | ({"num_classes": 3129} if kind == "vqa" else {})
    config = ViLTConfig(**heads)
    with torch.device("meta"):
        theirs = fresh_hf_model(kind, config)
        state = from_mmlab(layout(kind), ViLT(config).state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    theirs.tie_weights()
    # Tied parameters are counted once.
    assert sum(p.numel() for p in theirs.parameters()) == COUNTS[kind]
