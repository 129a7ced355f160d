"""The LXMERT tables: no loss in either direction, the sheet's keys, one tensor under two names."""

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.hub.tables import LAYOUTS
from mmlab.models import lxmert
from mmlab.models.lxmert import LXMERT, LXMERTConfig
from tests.hub.states import assert_equal, round_trip, with_random_weights

# All different, so that no two dimensions can be mixed up unseen.
SMALL = dict(
    vocab_size=17,
    context_length=8,
    max_positions=9,
    dim=12,
    text_depth=3,
    region_depth=2,
    cross_depth=1,
    num_heads=3,
    mlp_dim=20,
    feature_dim=10,
    num_region_classes=7,
    num_attributes=5,
)
HEADS = {
    "none": {"heads": (), "num_classes": 0},
    "words": {"heads": ("words", "match"), "num_classes": 0},
    "pretraining": {"heads": lxmert.HEADS, "num_classes": 11},
    "answer": {"heads": ("answer",), "num_classes": 11},
    "nlvr2": {"heads": ("answer",), "num_classes": 2, "num_images": 2},
}
FINETUNED = ("lxmert-finetuned", "lxmert-finetuned-parallel")
FITTING = [
    *(("lxmert", name) for name in ("words", "pretraining")),
    *((layout, name) for layout in FINETUNED for name in ("answer", "nlvr2")),
    *(("lxmert-hf", name) for name in ("pretraining", "answer")),
    ("lxmert-hf-base", "none"),
]


def random_state(**changes):
    torch.manual_seed(0)
    return with_random_weights(LXMERT(LXMERTConfig(**SMALL | changes))).state_dict()


@pytest.mark.parametrize(("layout", "heads"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, heads):
    ours = random_state(**HEADS[heads])
    theirs = round_trip(layout, ours)
    shares = {name: table.share_of_known(theirs) for name, table in LAYOUTS.items()}
    assert shares.pop(layout) == 1
    assert max(shares.values()) < 1
    assert detect_layout(theirs) == layout


@pytest.mark.parametrize("layout", ["lxmert", *FINETUNED])
def test_files_of_several_gpus_are_recognised(layout):
    ours = random_state(**HEADS["pretraining" if layout == "lxmert" else "answer"])
    theirs = {f"module.{key}": t for key, t in from_mmlab(layout, ours).items()}
    assert detect_layout(theirs) == layout
    assert_equal(to_mmlab(layout, theirs), ours)


BACKBONE = {
    "embeddings.word_embeddings.weight": (30522, 768),
    "embeddings.position_embeddings.weight": (512, 768),
    "embeddings.token_type_embeddings.weight": (2, 768),
    "embeddings.LayerNorm.bias": (768,),
    "encoder.visn_fc.visn_fc.weight": (768, 2048),
    "encoder.visn_fc.visn_layer_norm.weight": (768,),
    "encoder.visn_fc.box_fc.weight": (768, 4),
    "encoder.visn_fc.box_layer_norm.bias": (768,),
    "encoder.layer.8.attention.self.query.weight": (768, 768),
    "encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "encoder.r_layers.4.attention.output.LayerNorm.weight": (768,),
    "encoder.r_layers.0.output.dense.weight": (768, 3072),
    "encoder.x_layers.4.visual_attention.att.value.weight": (768, 768),
    "encoder.x_layers.0.visual_attention.output.dense.bias": (768,),
    "encoder.x_layers.0.visual_attention.output.LayerNorm.weight": (768,),
    "encoder.x_layers.0.lang_self_att.self.key.weight": (768, 768),
    "encoder.x_layers.0.visn_self_att.output.LayerNorm.bias": (768,),
    "encoder.x_layers.0.lang_inter.dense.weight": (3072, 768),
    "encoder.x_layers.0.lang_output.LayerNorm.weight": (768,),
    "encoder.x_layers.0.visn_inter.dense.bias": (3072,),
    "encoder.x_layers.0.visn_output.dense.weight": (768, 3072),
    "pooler.dense.weight": (768, 768),
}
PRETRAINING = {
    "cls.predictions.bias": (30522,),
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.predictions.transform.LayerNorm.weight": (768,),
    "cls.predictions.decoder.weight": (30522, 768),
    "cls.seq_relationship.weight": (2, 768),
    "obj_predict_head.transform.LayerNorm.bias": (768,),
    "obj_predict_head.decoder_dict.obj.weight": (1600, 768),
    "obj_predict_head.decoder_dict.attr.weight": (400, 768),
    "obj_predict_head.decoder_dict.feat.weight": (2048, 768),
    "answer_head.logit_fc.0.weight": (1536, 768),
    "answer_head.logit_fc.2.weight": (1536,),
    "answer_head.logit_fc.3.weight": (9500, 1536),
}
TIED = 30522 * 768
EXPECTED = [
    ("lxmert", lxmert.LXMERT_B, "bert.", PRETRAINING, 228_051_752 + TIED, 473),
    ("lxmert-hf", lxmert.LXMERT_B, "lxmert.", PRETRAINING, 228_051_752 + TIED, 473),
    (
        "lxmert-finetuned",
        lxmert.LXMERT_B_VQA,
        "lxrt_encoder.model.bert.",
        {"logit_fc.0.weight": (1536, 768), "logit_fc.3.weight": (3129, 1536)},
        207_936_768 + 1_184_256 + 3129 * 1537,
        None,
    ),
    (
        "lxmert-finetuned",
        lxmert.LXMERT_B_NLVR2,
        "lxrt_encoder.model.bert.",
        {"logit_fc.0.weight": (1536, 1536), "logit_fc.2.bias": (1536,), "logit_fc.3.bias": (2,)},
        207_936_768 + 1536 * 1537 + 3_072 + 2 * 1537,
        None,
    ),
]


@pytest.mark.parametrize(("layout", "config", "prefix", "heads", "total", "entries"), EXPECTED)
def test_keys_and_shapes_of_the_published_size(layout, config, prefix, heads, total, entries):
    with torch.device("meta"):
        theirs = from_mmlab(layout, LXMERT(config).state_dict())
    expected = {prefix + key: shape for key, shape in BACKBONE.items()} | heads
    assert {key: tuple(theirs[key].shape) for key in expected} == expected
    assert sum(tensor.numel() for tensor in theirs.values()) == total
    assert entries is None or len(theirs) == entries


def test_words_and_regions_are_not_mixed_up_in_a_cross_block():
    ours = random_state(**HEADS["none"])
    theirs, layer = from_mmlab("lxmert-hf-base", ours), "encoder.x_layers.0"
    for place, name in (
        ("text_block.attention.q_proj", "lang_self_att.self.query"),
        ("region_block.attention.out_proj", "visn_self_att.output.dense"),
        ("text_block.mlp.fc2", "lang_output.dense"),
        ("region_block.mlp.fc1", "visn_inter.dense"),
        ("regions_to_text.attention.k_proj", "visual_attention.att.key"),
        ("text_to_regions.attention.k_proj", "visual_attention.att.key"),
    ):
        own, other = ours[f"cross_blocks.0.{place}.weight"], theirs[f"{layer}.{name}.weight"]
        assert torch.equal(own, other), place


def test_directions_with_weights_of_their_own_have_no_place_in_the_layouts():
    ours = random_state(**HEADS["none"], shared_cross_attention=False)
    message = r"'encoder.x_layers.0.visual_attention.att.query.weight' has one value .* differs"
    with pytest.raises(CheckpointError, match=message):
        from_mmlab("lxmert-hf-base", ours)


def test_the_matrix_of_the_words_head_must_be_the_word_table():
    theirs = from_mmlab("lxmert", random_state(**HEADS["pretraining"]))
    table = theirs.pop("cls.predictions.decoder.weight")
    assert_equal(to_mmlab("lxmert", theirs), random_state(**HEADS["pretraining"]))
    theirs["cls.predictions.decoder.weight"] = table + 1
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        to_mmlab("lxmert", theirs)


def test_missing_keys_and_wrong_shapes_are_named():
    theirs = from_mmlab("lxmert", random_state(**HEADS["pretraining"]))
    broken = {k: t for k, t in theirs.items() if k != "obj_predict_head.decoder_dict.attr.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: 'obj_predict_head.decoder_dict.attr"):
        to_mmlab("lxmert", broken)
    broken = theirs | {"bert.encoder.x_layers.0.lang_inter.dense.weight": torch.zeros(12, 20)}
    with pytest.raises(CheckpointError, match=r"'bert.encoder.x_layers.0.lang_inter.dense.weight'"):
        to_mmlab("lxmert", broken)


# Loading by name


@pytest.mark.parametrize(
    ("name", "heads", "layout"),
    [
        ("lxmert-b", "pretraining", "lxmert"),
        ("lxmert-b-vqa", "answer", "lxmert-finetuned"),
        ("lxmert-b-gqa", "answer", "lxmert-finetuned-parallel"),
        ("lxmert-b-nlvr2", "nlvr2", "lxmert-finetuned"),
    ],
)
def test_official_files_are_loaded_by_name(name, heads, layout, tmp_path):
    ours = random_state(**HEADS[heads])
    torch.save(from_mmlab(layout, ours), tmp_path / "Epoch20_LXRT.pth")
    options = SMALL | HEADS[heads]
    model = create_model(name, pretrained=tmp_path / "Epoch20_LXRT.pth", **options)
    assert_equal(model.state_dict(), ours)
    assert model.config.norm_eps == 1e-12
    assert model.cross_blocks[0].text_to_regions.norm is model.cross_blocks[0].regions_to_text.norm


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    torch.manual_seed(0)
    options = SMALL | HEADS["pretraining"]
    model = create_model("lxmert-mini", **options, norm_eps=1e-3)
    save(with_random_weights(model), tmp_path / "a.safetensors")
    loaded = create_model("lxmert-mini", pretrained=tmp_path / "a.safetensors", **options)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_with_other_heads_is_refused(tmp_path):
    ours = random_state(**HEADS["words"])
    torch.save(from_mmlab("lxmert", ours), tmp_path / "a.pth")
    options = SMALL | {"num_classes": 11}
    with pytest.raises(CheckpointError, match=r"'lxmert-b'.*lacks 'heads.regions.transform"):
        create_model("lxmert-b", pretrained=tmp_path / "a.pth", **options)
