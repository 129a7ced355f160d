"""VLMo against figures recorded from the official code."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmlab.hub import from_mmlab, to_mmlab
from mmlab.models.vlmo import VLMo, VLMoConfig
from mmlab.models.vlmo_pretraining import VLMoLanguagePretraining, VLMoPretraining

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = load_file(GOLDEN / "vlmo_pairs.safetensors")
LANGUAGE = load_file(GOLDEN / "vlmo_language.safetensors")

# The recorded models: microsoft/unilm, vlmo/modules/vlmo_module.py, with these sizes.
RECORDED = VLMoConfig(
    image_size=32,
    dim=64,
    depth=4,
    num_heads=4,
    mlp_dim=256,
    vocab_size=100,
    context_length=8,
    longest_text=12,
)
# In the stage of texts alone the official code makes no fusion expert.
WITHOUT_IMAGES = replace(RECORDED, depth=3, fusion_depth=0, context_length=12, heads=("words",))


def part(file, start):
    return {k.removeprefix(start): t for k, t in file.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def assert_all_recorded(ours, theirs):
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        close(tensor.detach(), theirs[name], name)


def recorded(config, file):
    model = VLMo(config)
    model.load_state_dict(to_mmlab("vlmo", part(file, "state.")))
    return model.eval()


def offsets(model, config):
    bias, length = model.position_bias, config.context_length
    return {
        "relative_position_index": bias.offsets[length:, length:],
        "text_relative_position_index": bias.offsets[:length, :length],
        "text_imag_relative_position_index": bias.offsets,
    }


def fused(model, given):
    features = model(given["text_ids"], given["image"], given["text_masks"])
    return {
        "vl.text_feats": features.text,
        "vl.image_feats": features.image,
        "vl.cls_feats": features.pooled,
        "vl.raw_cls_feats": features.text[:, 0],
    }


def alone(model, step):
    """Both paths of both modalities."""
    images, texts = step.images, step.texts
    return {
        "image.feats": images.tokens,
        "image.cls_feats": model.image_features(images.tokens),
        "image.cls_vlffn_feats": model.image_features(images.fused, "fusion_contrast"),
        "image.raw_cls": images.first,
        "text.feats": texts.tokens,
        "text.cls_feats": model.text_features(texts.tokens),
        "text.cls_vlffn_feats": model.text_features(texts.fused, "fusion_contrast"),
        "text.raw_cls": texts.first,
    }


def test_a_step_of_learning_from_pairs_equals_the_official_one():
    model, given, theirs = recorded(RECORDED, PAIRS), part(PAIRS, "in."), part(PAIRS, "out.")
    batch = {
        "images": given["image"],
        "input_ids": given["text_ids"],
        "attention_mask": given["text_masks"],
        "masked_ids": given["text_ids_mlm"],
        "labels": given["text_labels_mlm"],
        "negative_images": theirs["neg_image_idx"],
        "negative_texts": theirs["neg_text_idx"],
    }
    step = VLMoPretraining(model, mask_id=3).step(batch)
    losses = step.losses()
    wrong_images, wrong_texts = step.matching.negative_images, step.matching.negative_texts
    assert_all_recorded(
        {
            **offsets(model, RECORDED),
            **fused(model, given),
            **alone(model, step),
            "itc_i2t_logits": step.contrast.image_to_text,
            "itc_t2i_logits": step.contrast.text_to_image,
            "itc_logit_scale": model.scale(),
            "itc_loss": losses["contrastive"],
            "neg_image_idx": wrong_images,
            "neg_text_idx": wrong_texts,
            "itm_logits": step.matching.logits,
            "itm_labels": (torch.arange(12) < 4).float(),
            "itm_loss": losses["matching"],
            "mlm_logits": step.words.logits,
            "mlm_loss_times_quarter": losses["masked_words"],
        },
        theirs,
    )


def test_a_step_of_learning_from_texts_equals_the_official_one():
    model, given = recorded(WITHOUT_IMAGES, LANGUAGE), part(LANGUAGE, "in.")
    batch = {
        "input_ids": given["text_ids"],
        "attention_mask": given["text_masks"],
        "masked_ids": given["text_ids_mlm"],
        "labels": given["text_labels_mlm"],
    }
    module = VLMoLanguagePretraining(model, mask_id=3)
    tokens = model.text_paths(given["text_ids_mlm"], given["text_masks"]).tokens
    assert_all_recorded(
        {
            **offsets(model, WITHOUT_IMAGES),
            **fused(model, given),
            "textmlm_logits": model.word_logits(tokens),
            "textmlm_loss": module.losses(batch)["masked_words"],
        },
        part(LANGUAGE, "out."),
    )


@pytest.mark.parametrize(("config", "file"), [(RECORDED, PAIRS), (WITHOUT_IMAGES, LANGUAGE)])
def test_the_whole_state_comes_back(config, file):
    state = part(file, "state.")
    back = from_mmlab("vlmo", recorded(config, file).state_dict())
    assert state.keys() - back.keys() == {"text_embeddings.position_ids"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())


def test_a_shorter_text_gives_what_the_official_code_gives_for_a_padded_one():
    model, given, theirs = recorded(RECORDED, PAIRS), part(PAIRS, "in."), part(PAIRS, "out.")
    ids, valid, row = given["text_ids"], given["text_masks"].bool(), 2
    shorter = ids[row, valid[row]][None]
    assert shorter.shape[1] == 6 < RECORDED.context_length
    features = model(shorter, given["image"][[row]])
    close(features.text, theirs["vl.text_feats"][[row], :6])
    close(features.image, theirs["vl.image_feats"][[row]])
    close(features.pooled, theirs["vl.cls_feats"][[row]])
    close(model.encode_text(shorter), theirs["text.cls_feats"][[row]])
