"""OSCAR against figures recorded from the official code, and without regions against BERT."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig as HFBertConfig
from transformers import BertForPreTraining

from mmlab import record_attention
from mmlab.hub import from_mmlab, to_mmlab
from mmlab.models.oscar import Oscar, OscarConfig, OscarPretraining, caption_mask
from mmlab.models.oscar_tasks import OscarCaptioning, oscar_with
from mmlab.objectives.masked_language import IGNORED

FILE = load_file(Path(__file__).parents[1] / "golden" / "oscar.safetensors")

# The recorded model: oscar/modeling/modeling_bert.py of microsoft/Oscar with these sizes.
RECORDED = OscarConfig(
    vocab_size=100,
    context_length=14,
    max_positions=40,
    dim=48,
    depth=3,
    num_heads=4,
    mlp_dim=96,
    feature_dim=32,
)
TOKENS = 14


def part(start):
    return {k.removeprefix(start): t for k, t in FILE.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


STATE, INPUTS, OUTPUTS = part("state_dict."), part("inputs."), part("outputs.")
VALID = INPUTS["attention_mask"].bool()


def recorded_model(**changes):
    model = Oscar(replace(RECORDED, **changes)).eval()
    state = to_mmlab("oscar", STATE)
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    return model


def regions():
    features, locations = INPUTS["img_feats"].split([32, 6], dim=-1)
    return {"features": features, "locations": locations, "region_valid": VALID[:, TOKENS:]}


def recorded_batch():
    """The recorded batch as ``oscar_lesson`` would give it."""
    labels = INPUTS["masked_lm_labels"]
    assert (labels[:, TOKENS:] == -1).all()
    return {
        "input_ids": INPUTS["input_ids"],
        "attention_mask": VALID[:, :TOKENS],
        "token_types": INPUTS["token_type_ids"],
        "labels": labels[:, :TOKENS].where(labels[:, :TOKENS] >= 0, IGNORED),
        "pollution": INPUTS["next_sentence_label"],
        **regions(),
    }


def forward(model, mask=None):
    text = recorded_batch()
    valid, types = text["attention_mask"], text["token_types"]
    images = text["features"], text["locations"]
    if mask is not None:
        return model(text["input_ids"], *images, token_types=types, mask=mask)
    return model(text["input_ids"], *images, valid, text["region_valid"], types)


def whole(features):
    return torch.cat([features.text, features.regions], dim=1)


@torch.no_grad()
def our_outputs():
    """Everything that is recorded of pretraining, by the names of the recording."""
    model, batch = recorded_model(), recorded_batch()
    layers = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda block, inputs, output: layers.append((inputs, output)))
    with record_attention(model) as maps:
        features = forward(model)
    losses = OscarPretraining(model).losses(batch)
    return {
        "text_embeddings": model.embeddings(batch["input_ids"], batch["token_types"]),
        "joint_embeddings": layers[0][0][0],
        **{f"layer.{i}": layers[i][1] for i in range(3)},
        **{f"attn.{i}": maps[f"trunk.blocks.{i}.attention"] for i in range(3)},
        "sequence_output": whole(features),
        "pooled_output": features.pooled,
        "prediction_scores": torch.cat(
            [model.word_logits(features), model.region_word_logits(features)], dim=1
        ),
        "seq_relationship_score": model.matching_logits(features),
        "loss.masked_lm": losses["masked_words"],
        "loss.contrastive": losses["matching"],
        "loss.total": losses["masked_words"] + losses["matching"],
    }


def test_all_of_pretraining_equals_the_official_figures():
    ours = our_outputs()
    recorded = {k for k in OUTPUTS if not k.startswith(("text_only", "caption"))}
    assert recorded == ours.keys()
    for name, tensor in ours.items():
        close(tensor, OUTPUTS[name], name)


@torch.no_grad()
def test_without_regions_the_text_alone_equals_the_official_figures():
    model, batch = recorded_model(), recorded_batch()
    nothing = batch["features"][:, :0], batch["locations"][:, :0]
    valid, types = batch["attention_mask"], batch["token_types"]
    features = model(batch["input_ids"], *nothing, valid, None, types)
    assert features.regions.shape == (3, 0, 48)
    close(features.text, OUTPUTS["text_only.sequence_output"])
    close(features.pooled, OUTPUTS["text_only.pooled_output"])


def caption_batch():
    batch, masked = recorded_batch(), INPUTS["caption.masked_pos"].bool()
    labels = torch.full_like(batch["input_ids"], IGNORED)
    ids = INPUTS["caption.masked_ids"]
    labels[masked] = ids[ids != 0]
    return batch | {"labels": labels}


def test_the_caption_mask_equals_the_official_one():
    batch = caption_batch()
    types, valid = batch["token_types"], batch["attention_mask"]
    mask = caption_mask(valid & (types == 0), valid & (types == 1), batch["region_valid"])
    assert torch.equal(mask[:, 0], INPUTS["caption.attention_mask"].bool())


@torch.no_grad()
def test_captioning_equals_the_official_figures():
    model, batch = recorded_model(), caption_batch()
    lesson = OscarCaptioning(model)
    # Padding may look at nothing there or everywhere: the official scores of it are arbitrary.
    valid = batch["attention_mask"]
    logits = lesson.logits(batch)
    close(logits[valid], OUTPUTS["caption.logits"][valid])
    masked = INPUTS["caption.masked_pos"].bool()
    close(logits[masked], OUTPUTS["caption.masked_logits"])
    close(lesson.losses(batch)["masked_words"], OUTPUTS["caption.loss"])


@torch.no_grad()
def test_a_mask_of_a_file_is_taken_as_it_is():
    model = recorded_model()
    mask = INPUTS["caption.attention_mask"][:, None].bool()
    logits = model.word_logits(forward(model, mask))
    close(logits[VALID[:, :TOKENS]], OUTPUTS["caption.logits"][VALID[:, :TOKENS]])


def test_the_state_comes_back():
    back = from_mmlab("oscar", recorded_model().state_dict())
    assert back.keys() == STATE.keys()
    assert all(torch.equal(back[key], STATE[key]) for key in back)


# Without regions it is a BERT


def bert(seed=0):
    config = HFBertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
    )
    torch.manual_seed(seed)
    model = BertForPreTraining(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def our_bert(theirs):
    config = OscarConfig(
        vocab_size=50,
        context_length=20,
        max_positions=20,
        dim=24,
        depth=2,
        num_heads=3,
        mlp_dim=40,
        feature_dim=4,
    )
    model = Oscar(config).eval()
    region = {"bert.img_embedding.weight": torch.zeros(24, 10)}
    region["bert.img_embedding.bias"] = torch.zeros(24)
    tied = {"cls.predictions.decoder.bias"}
    state = {key: t for key, t in theirs.state_dict().items() if key not in tied}
    model.load_state_dict(to_mmlab("oscar", state | region))
    return model


def text(seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    valid = torch.arange(9) < torch.tensor([9, 5, 7])[:, None]
    types = (torch.arange(9) > torch.tensor([4, 2, 5])[:, None]).long() * valid
    return ids * valid, valid, types


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_with_regions_it_is_berts_encoder_over_both(normed):
    """VinVL's norm and its third contrast class as well: its own recording is not among ours."""
    theirs, region, norm = bert(), nn.Linear(10, 24), nn.LayerNorm(24, eps=1e-5)
    third = nn.Linear(24, 3)
    for parameter in norm.parameters():
        parameter.data += torch.randn(24)
    ours = our_bert(theirs)
    ours = oscar_with(ours, num_contrast_classes=3)
    ours.heads["match"], ours.region_embedding = third, region
    ours.image_norm = norm if normed else None
    ids, valid, types = text()
    images, shown = torch.randn(3, 4, 10), torch.arange(4) < torch.tensor([4, 1, 3])[:, None]
    embedded = norm(region(images)) if normed else region(images)
    words = theirs.bert.embeddings(ids, types)
    visible = torch.cat([valid, shown], dim=1)
    mask = (1 - visible.float())[:, None, None] * -10000
    both = theirs.bert.encoder(torch.cat([words, embedded], dim=1), mask)[0]
    features = ours(ids, *images.split([4, 6], dim=-1), valid, shown, types)
    close(whole(features)[visible], both[visible])
    pooled = theirs.bert.pooler(both)
    close(ours.matching_logits(features), third(pooled))
    close(ours.word_logits(features)[valid], theirs.cls.predictions(both[:, :9])[valid])


def test_without_regions_it_is_bert_for_pretraining():
    theirs = bert()
    ours = our_bert(theirs)
    ids, valid, types = text()
    features = ours(ids, torch.zeros(3, 0, 4), torch.zeros(3, 0, 6), valid, None, types)
    expected = theirs(ids, attention_mask=valid.long(), token_type_ids=types)
    close(ours.word_logits(features)[valid], expected.prediction_logits[valid])
    close(ours.matching_logits(features), expected.seq_relationship_logits)


@pytest.mark.parametrize("key", ["embeddings.word_embedding.weight", "trunk.pooler.dense.weight"])
def test_gradients_equal_those_of_bert(key):
    theirs = bert()
    ours = our_bert(theirs)
    ids, valid, types = text()
    labels, nsp = ids.where(valid & (ids % 2 == 0), IGNORED), torch.tensor([0, 1, 1])
    expected = theirs(ids, valid.long(), types, labels=labels, next_sentence_label=nsp)
    expected.loss.backward()
    entries = {"input_ids": ids, "attention_mask": valid, "token_types": types, "labels": labels}
    entries |= {"features": torch.zeros(3, 0, 4), "locations": torch.zeros(3, 0, 6)}
    entries |= {"region_valid": torch.zeros(3, 0, dtype=torch.bool), "pollution": nsp}
    losses = OscarPretraining(ours).losses(entries)
    sum(losses.values()).backward()
    names = {
        "embeddings.word_embedding.weight": theirs.bert.embeddings.word_embeddings.weight,
        "trunk.pooler.dense.weight": theirs.bert.pooler.dense.weight,
    }
    own = dict(ours.named_parameters())[key].grad
    assert own.abs().max() > 1e-3
    close(own, names[key].grad)
