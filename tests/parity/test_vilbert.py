"""ViLBERT against figures recorded from the official code; its stream of words against a BERT."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import BertConfig as HFBertConfig
from transformers import BertModel

from mmlab import record_attention
from mmlab.hub import create_model, from_mmlab, to_mmlab
from mmlab.models.vilbert import HEADS, ViLBERT, ViLBERTConfig, ViLBERTPretraining
from mmlab.objectives.masked_language import IGNORED

FILE = load_file(Path(__file__).parents[1] / "golden" / "vilbert.safetensors")

# The recorded model: facebookresearch/vilbert-multi-task, BertForMultiModalPreTraining.
RECORDED = ViLBERTConfig(
    vocab_size=100,
    max_positions=40,
    dim=48,
    depth=4,
    num_heads=4,
    mlp_dim=96,
    feature_dim=32,
    num_region_classes=21,
    region_dim=64,
    region_depth=2,
    region_num_heads=4,
    region_mlp_dim=64,
    fusion_dim=64,
    fusion_num_heads=4,
    text_connections=(2, 3),
    region_connections=(0, 1),
)


def part(start):
    return {k.removeprefix(start): t for k, t in FILE.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def recorded_model(**changes):
    model = ViLBERT(replace(RECORDED, **changes)).eval()
    model.load_state_dict(to_mmlab("vilbert", part("state_dict.")))
    return model


def recorded_batch():
    """The first region of the recording is the whole image, which is ours to add."""
    given = part("inputs.")
    labels = given["masked_lm_labels"]
    return {
        "input_ids": given["input_ids"],
        "types": given["token_type_ids"],
        "attention_mask": given["attention_mask"].bool(),
        "features": given["image_feat"][:, 1:],
        "locations": given["image_loc"][:, 1:],
        "region_valid": given["image_attention_mask"][:, 1:].bool(),
        "labels": labels.masked_fill(labels == -1, IGNORED),
        "masked_regions": given["image_label"] == 1,
        "class_distributions": given["image_target"],
        "matched": given["next_sentence_label"] == 0,
    }


def run(model, batch, **changes):
    names = ("input_ids", "features", "locations", "attention_mask", "region_valid", "types")
    given = {name: batch[name] for name in names} | changes
    given["text_valid"] = given.pop("attention_mask")
    return model(**given)


def our_outputs(model, batch):
    """Everything under the names of the recording."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output})

    hooks = [
        connection.register_forward_hook(keep(f"c_layer.{i}"))
        for i, connection in enumerate(model.connections)
    ]
    hooks.append(model.embeddings.dropout.register_forward_hook(keep("embeddings")))
    hooks.append(model.region_embeddings.register_forward_hook(keep("v_embeddings")))
    with record_attention(model) as maps:
        features = run(model, batch)
    for hook in hooks:
        hook.remove()
    for i in range(len(model.connections)):
        seen[f"c_layer.{i}.text"], seen[f"c_layer.{i}.visual"] = seen.pop(f"c_layer.{i}")
        attended = f"connections.{i}"
        seen[f"attn.c_layer.{i}.text_to_visual"] = maps[f"{attended}.text.attention"]
        seen[f"attn.c_layer.{i}.visual_to_text"] = maps[f"{attended}.regions.attention"]
    losses = ViLBERTPretraining(model).losses(batch)
    return seen | {
        "sequence_output_t": features.text,
        "sequence_output_v": features.regions,
        "pooled_output_t": features.text_pooled,
        "pooled_output_v": features.region_pooled,
        "prediction_scores_t": model.word_logits(features),
        "prediction_scores_v": model.region_logits(features),
        "seq_relationship_score": model.matching_logits(features),
        "loss.masked_lm": losses["masked_words"],
        "loss.masked_img": losses["masked_regions"],
        "loss.next_sentence": losses["matching"],
    }


@torch.no_grad()
def test_every_recorded_tensor_agrees():
    ours, theirs = our_outputs(recorded_model(), recorded_batch()), part("outputs.")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        close(tensor, theirs[name], name)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"text_connections": (1, 3)},
        {"region_connections": (0, 0)},
        {"fusion": "sum"},
        {"coattention": False},
    ],
)
def test_another_pattern_is_another_result(changes):
    """Parity would mean little if the order of the blocks did not show."""
    ours = our_outputs_of_the_whole(recorded_model(**changes))
    assert (ours - part("outputs.")["seq_relationship_score"]).abs().max() > 1e-3


def our_outputs_of_the_whole(model):
    return model.matching_logits(run(model, recorded_batch()))


def test_the_official_file_comes_back_and_is_loaded_by_name(tmp_path):
    state = part("state_dict.")
    ours = to_mmlab("vilbert", state)
    back = from_mmlab("vilbert", ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    # As a process of several writes it, inside a file that also holds an optimiser.
    wrapped = {"model_state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(wrapped | {"global_step": 3}, tmp_path / "a.bin")
    sizes = {name: getattr(RECORDED, name) for name in vars(RECORDED)}
    model = create_model("vilbert-b-6", pretrained=tmp_path / "a.bin", **sizes)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in model.state_dict().items())


def their_bert(model):
    """``BertModel`` with the weights of our stream of words."""
    config = HFBertConfig(
        vocab_size=RECORDED.vocab_size,
        hidden_size=RECORDED.dim,
        num_hidden_layers=RECORDED.depth,
        num_attention_heads=RECORDED.num_heads,
        intermediate_size=RECORDED.mlp_dim,
        max_position_embeddings=RECORDED.max_positions,
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    names = [name for name in theirs.state_dict() if "position_ids" not in name]
    official = from_mmlab("vilbert", model.state_dict())
    report = theirs.load_state_dict(
        {name: official[f"bert.{name}"] for name in names}, strict=False
    )
    assert not report.unexpected_keys and all("position_ids" in key for key in report.missing_keys)
    return theirs


@pytest.mark.parametrize("changes", [{"coattention": False}, {}])
def test_without_coattention_the_words_are_those_of_a_bert(changes):
    model, batch = recorded_model(**changes), recorded_batch()
    features, theirs = run(model, batch), their_bert(model)
    words = theirs(
        input_ids=batch["input_ids"],
        token_type_ids=batch["types"],
        attention_mask=batch["attention_mask"].long(),
    ).last_hidden_state
    if changes:
        close(features.text, words)
        ours = torch.autograd.grad(features.text.square().sum(), _first_query(model))[0]
        expected = torch.autograd.grad(
            words.square().sum(), theirs.encoder.layer[0].attention.self.query.weight
        )[0]
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    else:
        assert (features.text - words).abs().max() > 1e-2


def _first_query(model):
    return model.text_blocks[0].attention.q_proj.weight


# Patterns, tasks and heads that no recording of ours has, against the sheet written out in plain
# functions of the official weights.


class Official:
    """Reads an official file by its own names; 1 stands for regions and 2 for text."""

    def __init__(self, state, heads, co_heads):
        self.state, self.heads, self.co_heads = state, heads, co_heads

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-12)

    def attend(self, q, k, v, valid, heads):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + (1 - valid.float())[:, None, None] * -10000
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def block(self, name, x, valid, heads):
        own = [self.linear(f"{name}.attention.self.{n}", x) for n in ("query", "key", "value")]
        attended = self.attend(*own, valid, heads)
        attended = self.linear(f"{name}.attention.output.dense", attended)
        x = self.norm(f"{name}.attention.output.LayerNorm", x + attended)
        return self.feed_forward(f"{name}.intermediate", f"{name}.output", x)

    def feed_forward(self, first, second, x):
        hidden = F.gelu(self.linear(f"{first}.dense", x))
        return self.norm(f"{second}.LayerNorm", x + self.linear(f"{second}.dense", hidden))

    def connect(self, name, text, regions, text_valid, region_valid):
        asked = f"{name}.biattention"
        states = {1: regions, 2: text}
        q, k, v = (
            {i: self.linear(f"{asked}.{part}{i}", states[i]) for i in (1, 2)}
            for part in ("query", "key", "value")
        )
        found = {
            1: self.attend(q[1], k[2], v[2], text_valid, self.co_heads),
            2: self.attend(q[2], k[1], v[1], region_valid, self.co_heads),
        }
        for i, letter in ((1, "v"), (2, "t")):
            x = states[i] + self.linear(f"{name}.biOutput.dense{i}", found[i])
            x = self.norm(f"{name}.biOutput.LayerNorm{i}", x)
            parts = f"{name}.{letter}_intermediate", f"{name}.{letter}_output"
            states[i] = self.feed_forward(*parts, x)
        return states[2], states[1]

    def embed_text(self, batch, task_ids):
        table = "bert.embeddings.{}_embeddings.weight".format
        ids = batch["input_ids"]
        x = self.state[table("word")][ids] + self.state[table("position")][: ids.shape[1]]
        x = x + self.state[table("token_type")][batch["types"]]
        if task_ids is not None:
            task = self.state[table("task")][task_ids][:, None]
            x = torch.cat([x[:, :1], task, x[:, 1:]], dim=1)
        return self.norm("bert.embeddings.LayerNorm", x)

    def embed_regions(self, features, locations):
        name = "bert.v_embeddings.image"
        x = self.linear(f"{name}_embeddings", features)
        x = x + self.linear(f"{name}_location_embeddings", locations)
        return self.norm("bert.v_embeddings.LayerNorm", x)

    def run(self, batch, config, task_ids):
        """Both sequences and both pooled vectors; the whole image is in the batch here."""
        text = self.embed_text(batch, task_ids)
        text_valid = batch["attention_mask"]
        if task_ids is not None:
            text_valid = F.pad(text_valid, (1, 0), value=True)
        regions, region_valid = self.embed_regions(*batch["image"]), batch["image_valid"]
        encoder, heads = "bert.encoder.{}.{}".format, self.heads
        t_start = v_start = 0
        ends = [*zip(config.region_connections, config.text_connections, strict=True)]
        for k, (v_end, t_end) in enumerate([*ends, (config.region_depth, config.depth)]):
            for i in range(t_start, t_end):
                text = self.block(encoder("layer", i), text, text_valid, heads[1])
            for i in range(v_start, v_end):
                regions = self.block(encoder("v_layer", i), regions, region_valid, heads[0])
            if k < len(ends) and config.coattention:
                valid = text_valid, region_valid
                text, regions = self.connect(encoder("c_layer", k), text, regions, *valid)
            t_start, v_start = t_end, v_end
        pooled = [
            F.relu(self.linear(f"bert.{letter}_pooler.dense", x[:, 0]))
            for letter, x in (("t", text), ("v", regions))
        ]
        return text, regions, *pooled

    def classify(self, name, x):
        hidden = self.norm(f"{name}.logit_fc.2", F.gelu(self.linear(f"{name}.logit_fc.0", x)))
        return self.linear(f"{name}.logit_fc.3", hidden)

    def outputs(self, batch, config, task_ids=None):
        text, regions, text_pooled, region_pooled = self.run(batch, config, task_ids)
        fused = text_pooled * region_pooled
        if config.fusion == "sum":
            fused = text_pooled + region_pooled
        padding = -10000.0 * (1 - batch["image_valid"].float())
        return {
            "text": text,
            "regions": regions,
            "matching_logits": self.linear("cls.bi_seq_relationship", fused),
            "answer_logits": self.classify("vil_prediction", fused),
            "gqa_logits": self.classify("vil_prediction_gqa", fused),
            "pair_logits": self.classify("vil_binary_prediction", fused.view(-1, 128)),
            "rank_scores": self.linear("vil_logit", fused)[:, 0],
            "entailment_logits": self.linear("vil_tri_prediction", fused),
            "grounding_logits": self.linear("vision_logit", regions)[..., 0] + padding,
            "word_scores": self.linear("linguisic_logit", text)[..., 0],
        }


PATTERNS = [
    {},
    {"text_connections": (0, 3), "region_connections": (0, 2)},
    {"text_connections": (1, 1, 2), "region_connections": (0, 2, 2), "fusion": "sum"},
    {"text_connections": (3,), "region_connections": (1,), "num_tasks": 20},
    {"coattention": False, "fusion": "sum", "num_tasks": 20},
]


@torch.no_grad()
@pytest.mark.parametrize("changes", PATTERNS)
def test_other_patterns_tasks_and_heads_are_those_of_the_sheet(changes):
    config = replace(RECORDED, heads=HEADS, num_classes=7, num_gqa_classes=9, region_depth=3)
    config = replace(config, **changes)
    torch.manual_seed(0)
    model = ViLBERT(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    batch = {name: torch.cat([t, t[:1]]) for name, t in recorded_batch().items()}
    image = [torch.cat([FILE[f"inputs.image_{n}"]] * 2)[:4] for n in ("feat", "loc")]
    whole = {"image": image, "image_valid": F.pad(batch["region_valid"], (1, 0), value=True)}
    batch["features"] = image[0][:, 1:]
    batch["locations"] = image[1][:, 1:]
    task_ids = torch.tensor([1, 12, 7, 3]) if config.num_tasks else None
    official = Official(from_mmlab("vilbert", model.state_dict()), (4, 4), 4)
    expected = official.outputs(batch | whole, config, task_ids)
    features = run(model, batch, task_ids=task_ids)
    close(features.text, expected.pop("text"), "text")
    close(features.regions, expected.pop("regions"), "regions")
    for name, tensor in expected.items():
        assert tensor.std() > 1e-2
        torch.testing.assert_close(
            getattr(model, name)(features), tensor, rtol=1e-5, atol=1e-5, msg=name
        )
