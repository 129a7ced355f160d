"""UNITER against figures recorded from the official code, and against transformers' BERT."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from mmlab.hub import from_mmlab, to_mmlab
from mmlab.models.uniter import (
    UNITER,
    UNITERConfig,
    UNITERPretraining,
    pair_features,
    uniter_lesson,
)
from mmlab.objectives.masked_language import IGNORED
from mmlab.objectives.transport import cosine_cost, ipot, transport_distance

FILE = load_file(Path(__file__).parents[1] / "golden" / "uniter.safetensors")
# The recorded model: ChenRocks/UNITER, model/pretrain.py, with these sizes.
RECORDED = UNITERConfig(
    vocab_size=100,
    context_length=40,
    max_positions=40,
    dim=48,
    depth=2,
    num_heads=4,
    mlp_dim=96,
    feature_dim=32,
    num_region_classes=21,
)
NUM_REGIONS = torch.tensor([4, 8, 6])


def part(start):
    return {k.removeprefix(start): t for k, t in FILE.items() if k.startswith(start)}


THEIRS = part("outputs.")


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def recorded_model():
    model = UNITER(RECORDED).eval()
    model.load_state_dict(to_mmlab("uniter", part("state_dict.")))
    return model


def in_places(targets, chosen):
    """Targets of the chosen regions, recorded one after the other, in their places."""
    placed = torch.zeros(*chosen.shape, *targets.shape[1:])
    placed[chosen] = targets
    return placed


def recorded_batch(task):
    """A batch of the official collate functions, padded apart as ours are."""
    given = part(f"inputs.{task}.")
    batch = {
        "input_ids": given["input_ids"],
        "attention_mask": given["input_ids"] != 0,
        "features": given["img_feat"],
        "locations": given["img_pos_feat"],
        "region_valid": torch.arange(8) < NUM_REGIONS[:, None],
    }
    if task == "mlm":
        batch["labels"] = given["txt_labels"].masked_fill(given["txt_labels"] == -1, IGNORED)
    if task == "itm":
        batch["matched"] = given["targets"] == 1
    if "img_masks" in given:
        batch["masked_regions"] = given["img_masks"].bool()
    return batch | {
        ours: in_places(given[theirs], batch["masked_regions"])
        for ours, theirs in (
            ("feature_targets", "feat_targets"),
            ("distribution_targets", "label_targets"),
        )
        if theirs in given
    }


def compact(features):
    """Valid words, then valid regions of each pair: the sequence that UNITER gathers."""
    batch = recorded_batch("itm")
    words, regions = batch["attention_mask"], batch["region_valid"]
    return torch.cat(
        [
            part
            for row in range(3)
            for part in (features.text[row][words[row]], features.regions[row][regions[row]])
        ]
    )


def test_embeddings_equal_the_official_ones():
    model = recorded_model()
    text, regions = (recorded_batch("itm")[name] for name in ("attention_mask", "region_valid"))
    given = recorded_batch("itm")
    close(model.text_embeddings(given["input_ids"])[text], THEIRS["txt_embeddings"][text])
    ours = model.embed_regions(given["features"], given["locations"])
    close(ours[regions], THEIRS["img_embeddings"][regions])
    given = recorded_batch("mrfr")
    ours = model.embed_regions(given["features"], given["locations"], given["masked_regions"])
    close(ours[regions], THEIRS["img_embeddings_masked"][regions])
    assert (ours - THEIRS["img_embeddings"])[given["masked_regions"]].abs().max() > 0.1


def test_every_layer_equals_the_official_one_without_gathering():
    model, layers = recorded_model(), []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda *args: layers.append(args[2]))
    features = pair_features(model, recorded_batch("itm"))
    valid = part("inputs.itm.")["attn_masks"].bool()
    for ours, name in zip(layers, ("layer.0", "layer.1"), strict=True):
        split = ours.tensor_split([features.text.shape[1]], dim=1)
        sides = features._replace(text=split[0], regions=split[1])
        close(compact(sides), THEIRS[name][valid])
    close(compact(features), THEIRS["sequence_output"][valid])
    close(features.pooled, THEIRS["pooled_output"])


def test_their_gathered_order_only_moves_valid_positions():
    given = part("inputs.itm.")
    lengths = recorded_batch("itm")["attention_mask"].sum(1)
    for row, (words, regions) in enumerate(zip(lengths, NUM_REGIONS, strict=True)):
        taken = given["gather_index"][row][given["attn_masks"][row].bool()]
        first = given["input_ids"].shape[1]
        assert taken.tolist() == [*range(words), *range(first, first + regions)]


def test_masked_words_equal_the_official_ones():
    model, batch = recorded_model(), recorded_batch("mlm")
    features = pair_features(model, batch)
    close(model.word_logits(features)[batch["labels"] != IGNORED], THEIRS["mlm_scores"])
    loss = UNITERPretraining(model).losses(batch)["masked_words"]
    close(loss, THEIRS["mlm_loss"].mean())


def test_regressed_features_equal_the_official_ones():
    model, batch = recorded_model(), recorded_batch("mrfr")
    features = pair_features(model, batch)
    predicted = model.region_features(features.regions)
    close(predicted[batch["masked_regions"]], THEIRS["mrfr_prediction"])
    losses = UNITERPretraining(model).losses(batch)
    assert losses.keys() == {"masked_region_features"}
    close(losses["masked_region_features"], THEIRS["mrfr_loss"].mean())


def test_region_classes_equal_the_official_ones():
    model, batch = recorded_model(), recorded_batch("mrc")
    features, chosen = pair_features(model, batch), batch["masked_regions"]
    close(model.region_logits(features.regions)[chosen], THEIRS["mrc_scores"])
    soft = UNITERPretraining(model).losses(batch)
    close(soft["masked_region_distributions"], THEIRS["mrckl_loss"].mean())
    raw = {
        **{name: batch[name] for name in ("input_ids", "attention_mask", "features")},
        "boxes": torch.zeros(3, 8, 4),
        "image_sizes": torch.ones(3, 2),
        "region_valid": batch["region_valid"],
        "class_distributions": batch.pop("distribution_targets"),
    }
    hard = uniter_lesson(raw, 3, 100, (0,), torch.Generator(), {"mrc": 1})["class_targets"]
    loss = UNITERPretraining(model).losses(batch | {"class_targets": hard})
    close(loss["masked_region_classes"], THEIRS["mrc_loss"].mean())


def test_matching_and_alignment_equal_the_official_ones():
    model, batch = recorded_model(), recorded_batch("itm")
    features = pair_features(model, batch)
    logits = model.matching_logits(features)
    close(logits, THEIRS["itm_scores"])
    each = F.cross_entropy(logits, batch["matched"].long(), reduction="none")
    close(each, THEIRS["itm_loss"])
    losses = UNITERPretraining(model).losses(batch)
    close(losses["matching"], THEIRS["itm_loss"].mean())
    close(losses["alignment"], 0.1 * THEIRS["ot_loss"])
    close(losses["matching"] + losses["alignment"], THEIRS["itm_ot_total"])
    assert THEIRS["ot_loss"].abs() > 1e-3


def test_the_plan_equals_the_official_one():
    model, batch = recorded_model(), recorded_batch("itm")
    features = pair_features(model, batch)
    masks = batch["attention_mask"], batch["region_valid"]
    for ours, name in zip(features[:2], ("ot_text_states", "ot_region_states"), strict=True):
        mask = masks[name != "ot_text_states"]
        close(ours[mask], THEIRS[name][mask])
    cost = cosine_cost(features.text, features.regions, *masks)
    plan = ipot(cost, *masks)
    close(cost, THEIRS["ot_cost"])
    close(plan, THEIRS["ot_plan"].mT)
    distance = transport_distance(plan, cost)
    close(distance, THEIRS["ot_distance"])
    close(distance[batch["matched"]], THEIRS["ot_pos_dist"])
    close(distance[~batch["matched"]], THEIRS["ot_neg_dist"])


def test_the_recorded_file_comes_back_bit_for_bit():
    theirs = part("state_dict.")
    back = from_mmlab("uniter", recorded_model().state_dict())
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("typed", [False, True])
def test_without_regions_it_is_transformers_bert(typed):
    model = recorded_model()
    config = BertConfig(
        vocab_size=100,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
    )
    bert = BertModel(config).eval()
    state = {
        key.removeprefix("uniter."): tensor
        for key, tensor in part("state_dict.").items()
        if key.startswith("uniter.") and "img_embeddings" not in key
    }
    missing, left_over = bert.load_state_dict(state, strict=False)
    assert not left_over and all(key.endswith("_ids") for key in missing)
    ids = recorded_batch("itm")["input_ids"]
    valid = ids != 0
    types = (torch.arange(9) > 4).long().expand(3, -1) if typed else torch.zeros_like(ids)
    ours = model(
        ids, torch.zeros(3, 0, 32), torch.zeros(3, 0, 7), valid, text_types=types if typed else None
    )
    theirs = bert(ids, attention_mask=valid.long(), token_type_ids=types)
    close(ours.text[valid], theirs.last_hidden_state[valid])
    close(ours.pooled, theirs.pooler_output)
    assert ours.regions.shape == (3, 0, 48)


def test_heads_for_nlvr2_equal_multihead_attention_of_torch():
    """The official heads copy an old ``nn.MultiheadAttention``; here is the one of today."""
    torch.manual_seed(0)
    model = UNITER(replace(RECORDED, heads=("pair",), num_types=3)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    state = from_mmlab("uniter", model.state_dict())
    left, right = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    left_valid = torch.arange(5) < torch.tensor([[5], [3]])
    right_valid = torch.arange(7) < torch.tensor([[4], [7]])
    seen = []
    for name, own, other, valid in (
        ("attn1", left, right, right_valid),
        ("attn2", right, left, left_valid),
    ):
        attention = torch.nn.MultiheadAttention(48, 4, batch_first=True)
        begins = f"{name}."
        attention.load_state_dict(
            {k.removeprefix(begins): t for k, t in state.items() if k.startswith(begins)}
        )
        seen.append(attention(own, other, other, key_padding_mask=~valid)[0])
    pooled = []
    for attended, own, valid in zip(seen, (left, right), (left_valid, right_valid), strict=True):
        x = torch.cat([attended, own], dim=-1)
        x = F.relu(F.linear(x, state["fc.0.weight"], state["fc.0.bias"]))
        scores = F.linear(x, state["attn_pool.fc.0.weight"], state["attn_pool.fc.0.bias"])
        weights = (F.relu(scores[..., 0]) - 1e4 * ~valid).softmax(1)
        pooled.append((weights[..., None] * x).sum(1))
    expected = F.linear(
        torch.cat(pooled, dim=-1), state["nlvr2_output.weight"], state["nlvr2_output.bias"]
    )
    close(model.heads["pair"](left, right, left_valid, right_valid), expected)
