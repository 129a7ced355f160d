"""The ViLT tables: no loss in either direction, the sheet's keys, several heads of one name."""

from dataclasses import replace

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.hub.tables import LAYOUTS
from mmlab.models import vilt
from mmlab.models.vilt import ViLT, ViLTConfig
from mmlab.nn import interpolate_positions
from tests.hub.states import assert_equal, random_state, round_trip

SMALL = dict(
    image_size=12,
    patch_size=4,
    num_channels=2,
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    vocab_size=17,
    context_length=9,
)
NLVR2 = {"heads": ("answer",), "num_classes": 2, "num_images": 2}
HEADS = {
    "none": {"heads": ()},
    "words": {"heads": ("words",)},
    "tied words": {"heads": ("words",), "tied_words": True},
    "pretraining": {"heads": ("words", "match")},
    "masked patches": {"heads": ("words", "match", "patches")},
    "vqa": {"heads": ("answer",), "num_classes": 7},
    "nlvr2": NLVR2,
    "rank": {"heads": ("rank",)},
    "rank and match": {"heads": ("match", "rank")},
}
FITTING = [
    *(("vilt", name) for name in HEADS if name not in ("nlvr2", "tied words")),
    ("vilt-nlvr2", "nlvr2"),
    *(("vilt-hf", name) for name in ("words", "tied words", "vqa", "nlvr2", "rank")),
    ("vilt-hf-base", "none"),
]


def small_state(**changes):
    return random_state(ViLT(ViLTConfig(**SMALL | changes)))


@pytest.mark.parametrize(("layout", "heads"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, heads):
    ours = small_state(**HEADS[heads])
    theirs = round_trip(layout, ours)
    shares = {name: table.share_of_known(theirs) for name, table in LAYOUTS.items()}
    assert shares.pop(layout) == 1
    # Without a head of its own the official file of NLVR2 would be any other.
    assert max(s for name, s in shares.items() if name != "vilt-nlvr2") < 1
    assert detect_layout(theirs) == layout


TRUNK = {
    "text_embeddings.word_embeddings.weight": (30522, 768),
    "text_embeddings.position_embeddings.weight": (40, 768),
    "text_embeddings.token_type_embeddings.weight": (2, 768),
    "text_embeddings.LayerNorm.bias": (768,),
    "transformer.cls_token": (1, 1, 768),
    "transformer.pos_embed": (1, 145, 768),
    "transformer.patch_embed.proj.weight": (768, 3, 32, 32),
    "transformer.blocks.11.attn.qkv.weight": (2304, 768),
    "transformer.blocks.0.attn.proj.bias": (768,),
    "transformer.blocks.0.mlp.fc1.weight": (3072, 768),
    "transformer.blocks.0.norm2.weight": (768,),
    "transformer.norm.weight": (768,),
    "pooler.dense.weight": (768, 768),
}
HF_TRUNK = {
    "embeddings.text_embeddings.word_embeddings.weight": (30522, 768),
    "embeddings.text_embeddings.token_type_embeddings.weight": (2, 768),
    "embeddings.cls_token": (1, 1, 768),
    "embeddings.position_embeddings": (1, 145, 768),
    "embeddings.patch_embeddings.projection.bias": (768,),
    "embeddings.token_type_embeddings.weight": (2, 768),
    "encoder.layer.11.attention.attention.query.weight": (768, 768),
    "encoder.layer.0.attention.output.dense.bias": (768,),
    "encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "encoder.layer.0.layernorm_after.bias": (768,),
    "layernorm.weight": (768,),
    "pooler.dense.bias": (768,),
}
HF_WORDS = {
    "mlm_score.transform.dense.weight": (768, 768),
    "mlm_score.transform.LayerNorm.weight": (768,),
    "mlm_score.decoder.weight": (30522, 768),
    "mlm_score.decoder.bias": (30522,),
}
EXPECTED = [
    (
        "vilt",
        {},
        135_660_092,
        TRUNK
        | {
            "token_type_embeddings.weight": (2, 768),
            "mlm_score.transform.dense.weight": (768, 768),
            "mlm_score.transform.LayerNorm.bias": (768,),
            "mlm_score.decoder.weight": (30522, 768),
            "mlm_score.bias": (30522,),
            "itm_score.fc.weight": (2, 768),
        },
    ),
    (
        "vilt",
        {"heads": ("answer",), "num_classes": 3129},
        117_588_537,
        {
            "vqa_classifier.0.weight": (1536, 768),
            "vqa_classifier.1.bias": (1536,),
            "vqa_classifier.3.weight": (3129, 1536),
        },
    ),
    (
        "vilt-nlvr2",
        NLVR2,
        113_962_754,
        TRUNK
        | {
            "token_type_embeddings.weight": (3, 768),
            "nlvr2_classifier.0.weight": (1536, 1536),
            "nlvr2_classifier.3.bias": (2,),
        },
    ),
    ("vilt", {"heads": ("rank",)}, 111_595_777, {"rank_output.weight": (1, 768)}),
    (
        "vilt-hf",
        {"heads": ("words",)},
        112_217_658 + 30522 * 768,
        {f"vilt.{key}": shape for key, shape in HF_TRUNK.items()} | HF_WORDS,
    ),
    ("vilt-hf", NLVR2, 113_962_754, {"classifier.0.weight": (1536, 1536)}),
    ("vilt-hf-base", {"heads": ()}, 111_595_008, HF_TRUNK),
]


@pytest.mark.parametrize(("layout", "heads", "total", "expected"), EXPECTED)
def test_keys_and_shapes_of_the_published_size(layout, heads, total, expected):
    with torch.device("meta"):
        theirs = from_mmlab(layout, ViLT(replace(vilt.VILT_B_32, **heads)).state_dict())
    assert {key: tuple(theirs[key].shape) for key in expected} == expected
    assert sum(tensor.numel() for tensor in theirs.values()) == total


def test_the_official_file_fuses_queries_keys_and_values():
    ours = small_state()
    fused = from_mmlab("vilt", ours)["transformer.blocks.1.attn.qkv.weight"]
    parts = [ours[f"blocks.1.attention.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(fused, torch.cat(parts))


def test_the_two_tables_of_types_are_not_mixed_up():
    ours = small_state()
    official, hf = from_mmlab("vilt", ours), from_mmlab("vilt-hf", small_state(heads=("words",)))
    assert torch.equal(official["token_type_embeddings.weight"], ours["modality_embedding.weight"])
    segment = ours["text_embeddings.type_embedding.weight"]
    assert torch.equal(official["text_embeddings.token_type_embeddings.weight"], segment)
    assert {"vilt.embeddings.token_type_embeddings.weight"} <= hf.keys()


def test_hugging_face_has_no_matching_head():
    with pytest.raises(CheckpointError, match=r"2 left over: 'heads.match.weight'"):
        from_mmlab("vilt-hf", small_state())


def test_buffers_and_old_names_are_passed_over():
    official = from_mmlab("vilt", small_state())
    official["text_embeddings.position_ids"] = torch.arange(9)[None]
    assert_equal(to_mmlab("vilt", official), small_state())
    theirs = from_mmlab("vilt-hf", small_state(heads=("words",)))
    theirs["mlm_score.bias"] = theirs["mlm_score.decoder.bias"]
    theirs["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(9)[None]
    assert_equal(to_mmlab("vilt-hf", theirs), small_state(heads=("words",)))


def test_missing_keys_of_a_head_are_named():
    theirs = from_mmlab("vilt", small_state())
    del theirs["mlm_score.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'mlm_score.bias'"):
        to_mmlab("vilt", theirs)


# Loading by name


def write_official(path, **changes):
    """As Lightning writes a checkpoint; returns the weights in our names."""
    ours = small_state(**changes)
    layout = "vilt-nlvr2" if "num_images" in changes else "vilt"
    torch.save({"epoch": 3, "state_dict": from_mmlab(layout, ours)}, path)
    return ours


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vilt-b-32", {"heads": ("words", "match")}),
        ("vilt-b-32-vqa", {"num_classes": 7, "heads": ("answer",)}),
        ("vilt-b-32-nlvr2", NLVR2),
        ("vilt-b-32-retrieval", {"heads": ("match", "rank")}),
    ],
)
def test_official_files_are_loaded_by_name(name, heads, tmp_path):
    ours = write_official(tmp_path / "a.ckpt", **heads)
    model = create_model(name, pretrained=tmp_path / "a.ckpt", **SMALL | heads)
    assert_equal(model.state_dict(), ours)
    assert model.config.norm_eps == 1e-6 and model.config.text_norm_eps == 1e-12


def test_positions_of_another_image_size_are_interpolated_as_the_model_does(tmp_path):
    ours = write_official(tmp_path / "a.ckpt")
    model = create_model("vilt-b-32", pretrained=tmp_path / "a.ckpt", **SMALL | {"image_size": 20})
    table = ours["position_embedding"]
    expected = interpolate_positions(table, (3, 3), (5, 5), "bilinear_aligned")
    torch.testing.assert_close(model.position_embedding.data, expected)


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    torch.manual_seed(0)
    options = SMALL | HEADS["masked patches"]
    model = create_model("vilt-mini", **options, norm_eps=1e-3)
    save(model, tmp_path / "a.safetensors")
    loaded = create_model("vilt-mini", pretrained=tmp_path / "a.safetensors", **options)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_with_other_heads_is_refused(tmp_path):
    write_official(tmp_path / "a.ckpt")
    options = SMALL | {"num_classes": 7}
    with pytest.raises(CheckpointError, match=r"'vilt-b-32-vqa'.*lacks 'heads.answer.fc1.weight'"):
        create_model("vilt-b-32-vqa", pretrained=tmp_path / "a.ckpt", **options)
