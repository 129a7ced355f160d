"""The UNITER table: no loss in either direction, the sheet's keys, tied tensors, weight decay."""

from dataclasses import replace

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, list_models, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.models import uniter
from mmlab.models.uniter import UNITER, UNITERConfig, uniter_decays
from tests.hub.states import assert_equal, random_state, round_trip

SMALL = dict(
    vocab_size=17,
    context_length=9,
    max_positions=11,
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    feature_dim=7,
    num_region_classes=5,
)
HEADS = {
    "none": {"heads": ()},
    "pretraining": {},
    "words": {"heads": ("words",)},
    "features": {"heads": ("features",)},
    "match": {"heads": ("match",)},
    "vqa": {"heads": ("answer",), "num_classes": 6},
    "retrieval": {"heads": ("match", "rank")},
    "nlvr2": {"heads": ("pair",), "num_types": 3},
    "vcr": {"heads": ("choice",), "num_types": 4},
    "refcoco": {"heads": ("refer",)},
    "refcoco with two layers": {"heads": ("refer",), "refer_layers": 2},
}


def small_state(**changes):
    return random_state(UNITER(UNITERConfig(**SMALL | changes)))


@pytest.mark.parametrize("heads", HEADS)
def test_round_trip_is_exact_and_the_layout_is_recognised(heads):
    ours = small_state(**HEADS[heads])
    theirs = round_trip("uniter", ours)
    assert detect_layout(theirs) == "uniter"


PRETRAINING = {
    "uniter.embeddings.word_embeddings.weight": (28996, 768),
    "uniter.embeddings.position_embeddings.weight": (512, 768),
    "uniter.embeddings.token_type_embeddings.weight": (2, 768),
    "uniter.embeddings.LayerNorm.weight": (768,),
    "uniter.img_embeddings.img_linear.weight": (768, 2048),
    "uniter.img_embeddings.img_layer_norm.weight": (768,),
    "uniter.img_embeddings.pos_linear.weight": (768, 7),
    "uniter.img_embeddings.pos_layer_norm.bias": (768,),
    "uniter.img_embeddings.mask_embedding.weight": (2, 2048),
    "uniter.img_embeddings.LayerNorm.bias": (768,),
    "uniter.encoder.layer.11.attention.self.query.weight": (768, 768),
    "uniter.encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "uniter.pooler.dense.weight": (768, 768),
    "cls.predictions.bias": (28996,),
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.predictions.transform.LayerNorm.weight": (768,),
    "cls.predictions.decoder.weight": (28996, 768),
    "feat_regress.weight": (768, 2048),
    "feat_regress.bias": (2048,),
    "feat_regress.net.0.weight": (768, 768),
    "feat_regress.net.2.weight": (768,),
    "region_classifier.net.0.weight": (768, 768),
    "region_classifier.net.2.bias": (768,),
    "region_classifier.net.3.weight": (1601, 768),
    "itm_output.weight": (2, 768),
}
TASKS = {
    "uniter-b": PRETRAINING,
    "uniter-b-vqa": {
        "vqa_output.0.weight": (1536, 768),
        "vqa_output.2.bias": (1536,),
        "vqa_output.3.weight": (3129, 1536),
    },
    "uniter-b-ve": {"vqa_output.3.weight": (3, 1536)},
    "uniter-b-retrieval": {"rank_output.weight": (1, 768), "itm_output.bias": (2,)},
    "uniter-b-nlvr2": {
        "uniter.embeddings.token_type_embeddings.weight": (3, 768),
        "attn1.in_proj_weight": (2304, 768),
        "attn2.in_proj_bias": (2304,),
        "attn2.out_proj.weight": (768, 768),
        "fc.0.weight": (768, 1536),
        "attn_pool.fc.0.weight": (1, 768),
        "nlvr2_output.weight": (2, 1536),
    },
    "uniter-l-vcr": {
        "uniter.embeddings.token_type_embeddings.weight": (4, 1024),
        "uniter.embeddings.word_embeddings.weight": (29077, 1024),
        "vcr_output.0.weight": (2048, 1024),
        "vcr_output.3.bias": (2,),
    },
    "uniter-l-refcoco": {"re_output.weight": (1, 1024)},
}


@pytest.mark.parametrize("name", TASKS)
def test_keys_and_shapes_of_the_published_sizes(name):
    with torch.device("meta"):
        theirs = from_mmlab("uniter", create_model(name).state_dict())
    assert {key: tuple(theirs[key].shape) for key in TASKS[name]} == TASKS[name]


def test_a_pretrained_file_has_both_copies_of_both_matrices():
    with torch.device("meta"):
        theirs = from_mmlab("uniter", UNITER(uniter.UNITER_B).state_dict())
    copies = 28996 * 768 + 768 * 2048
    assert sum(tensor.numel() for tensor in theirs.values()) == 112_938_887 + copies


@pytest.mark.parametrize(
    ("copy", "original"),
    [
        ("cls.predictions.decoder.weight", "uniter.embeddings.word_embeddings.weight"),
        ("feat_regress.weight", "uniter.img_embeddings.img_linear.weight"),
    ],
)
def test_tied_tensors_must_agree_and_one_of_them_is_enough(copy, original):
    ours = small_state()
    theirs = from_mmlab("uniter", ours)
    assert torch.equal(theirs[copy], theirs[original])
    alone = {key: tensor for key, tensor in theirs.items() if key != copy}
    assert_equal(to_mmlab("uniter", alone), ours)
    theirs[copy] = theirs[copy] + 1
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        to_mmlab("uniter", theirs)


def test_a_file_without_a_head_has_none_of_its_copies():
    theirs = from_mmlab("uniter", small_state(heads=("match",)))
    assert not any(key.startswith(("cls.", "feat_regress")) for key in theirs)


def test_missing_and_left_over_keys_are_named():
    theirs = from_mmlab("uniter", small_state())
    del theirs["feat_regress.net.0.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'feat_regress\.net\.0\.bias'"):
        to_mmlab("uniter", theirs)
    theirs = from_mmlab("uniter", small_state()) | {"wrong": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="1 left over: 'wrong'"):
        to_mmlab("uniter", theirs)


def test_wrong_shapes_are_named():
    theirs = from_mmlab("uniter", small_state())
    theirs["uniter.img_embeddings.pos_linear.weight"] = torch.zeros(13, 7)
    with pytest.raises(CheckpointError, match=r"'uniter.img_embeddings.pos_linear.weight' is"):
        to_mmlab("uniter", theirs)


def test_fused_projections_of_nlvr2_are_queries_keys_and_values():
    ours = small_state(**HEADS["nlvr2"])
    theirs = from_mmlab("uniter", ours)
    for side, name in (("left", "attn1"), ("right", "attn2")):
        parts = [ours[f"heads.pair.{side}_attention.{p}_proj.weight"] for p in "qkv"]
        assert torch.equal(theirs[f"{name}.in_proj_weight"], torch.cat(parts))


# Loading by name


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("uniter-b", "pretraining"),
        ("uniter-b-vqa", "vqa"),
        ("uniter-b-retrieval", "retrieval"),
        ("uniter-b-nlvr2", "nlvr2"),
        ("uniter-b-vcr", "vcr"),
        ("uniter-b-refcoco", "refcoco"),
    ],
)
def test_official_files_are_loaded_by_name(name, heads, tmp_path):
    """A bare state dict; behind ``module.`` where it was written by several processes."""
    ours = small_state(**HEADS[heads])
    for prefix in ("", "module."):
        theirs = from_mmlab("uniter", ours)
        torch.save({prefix + key: t for key, t in theirs.items()}, tmp_path / "a.pt")
        model = create_model(name, pretrained=tmp_path / "a.pt", **SMALL | HEADS[heads])
        assert_equal(model.state_dict(), ours)
        assert model.config.norm_eps == 1e-12


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    torch.manual_seed(0)
    for name in ("uniter-mini", "unicoder-vl-mini"):
        model = create_model(name, **SMALL, norm_eps=1e-3)
        save(model, tmp_path / "a.safetensors")
        loaded = create_model(name, pretrained=tmp_path / "a.safetensors", **SMALL)
        assert loaded.config == model.config
        assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_with_other_heads_is_refused(tmp_path):
    torch.save(from_mmlab("uniter", small_state()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"'uniter-b-vqa'.*lacks 'heads\.answer"):
        create_model("uniter-b-vqa", pretrained=tmp_path / "a.pt", **SMALL)
    with pytest.raises(CheckpointError, match="'unicoder-vl-b'"):
        create_model("unicoder-vl-b", pretrained=tmp_path / "a.pt", **SMALL)


def test_names():
    assert len(list_models("uniter-*")) == 15
    assert "unicoder-vl-b" in list_models("unicoder*")


# Weight decay


def their_names():
    """Our key → theirs, of the network with all heads; told apart by what they hold."""
    heads = ("words", "features", "classes", "match", "answer", "rank", "pair", "choice", "refer")
    changes = {"heads": heads, "num_classes": 6, "refer_layers": 2}
    ours = UNITER(UNITERConfig(**SMALL | changes)).state_dict()
    marked = {key: torch.full_like(t, number) for number, (key, t) in enumerate(ours.items())}
    theirs, keys = from_mmlab("uniter", marked), list(marked)
    names = {}
    for name, tensor in theirs.items():
        for number in tensor.unique().int().tolist():
            names.setdefault(keys[number], name)
    assert names.keys() == ours.keys()
    return names


def test_weight_decay_falls_where_the_official_rule_lets_it():
    """``optim/misc.py`` spares names that contain these; LayerNorms inside ``net`` have none."""
    spared = ("bias", "LayerNorm.bias", "LayerNorm.weight")
    changes = {"heads": uniter.HEADS, "num_classes": 6, "refer_layers": 2}
    model = UNITER(replace(UNITERConfig(**SMALL), **changes))
    names = their_names()
    decayed = set()
    for name, parameter in model.named_parameters():
        official = not any(part in names[name] for part in spared)
        assert uniter_decays(name, parameter) == official, name
        assert uniter_decays(f"network.{name}", parameter) == official, name
        decayed |= {name} if official and parameter.ndim == 1 else set()
    assert decayed == {
        "region_embedding.feature_norm.weight",
        "region_embedding.location_norm.weight",
        *(
            f"heads.{head}.transform.norm.weight"
            for head in ("features", "classes", "answer", "choice", "refer")
        ),
    }
