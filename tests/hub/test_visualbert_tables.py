"""The VisualBERT tables: no loss in either direction, the sheet's keys, wrappers and detectors."""

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.models import visualbert
from mmlab.models.visualbert import VisualBERT, VisualBERTConfig
from tests.hub.states import assert_equal, random_state, round_trip

SMALL = dict(
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    vocab_size=17,
    context_length=7,
    max_positions=9,
    feature_dim=5,
)
HEADS = {
    "none": {"heads": ()},
    "words": {"heads": ("words",)},
    "pretraining": {"heads": ("words", "match")},
    "answers": {"heads": ("answer",), "num_classes": 7},
    "grounding": {"heads": ("words", "match", "grounding")},
    "late fusion": {"heads": ("words", "match"), "late_fusion": True},
}
FITTING = [
    *(("visualbert", name) for name in HEADS),
    *(("visualbert-objective", name) for name in HEADS),
    *(("visualbert-hf", name) for name in HEADS if name != "none"),
    ("visualbert-hf-base", "none"),
]


def small_state(**changes):
    return random_state(VisualBERT(VisualBERTConfig(**SMALL | changes)))


@pytest.mark.parametrize(("layout", "heads"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, heads):
    ours = small_state(**HEADS[heads])
    theirs = round_trip(layout, ours)
    assert detect_layout(theirs) == layout


EMBEDDINGS = {
    "word_embeddings.weight": (30522, 768),
    "position_embeddings.weight": (512, 768),
    "token_type_embeddings.weight": (2, 768),
    "LayerNorm.bias": (768,),
}
OFFICIAL = EMBEDDINGS | {
    "token_type_embeddings_visual.weight": (2, 768),
    "position_embeddings_visual.weight": (512, 768),
    "projection.weight": (768, 2048),
    "projection.bias": (768,),
}
HF = EMBEDDINGS | {
    "visual_token_type_embeddings.weight": (2, 768),
    "visual_position_embeddings.weight": (512, 768),
    "visual_projection.weight": (768, 2048),
    "visual_projection.bias": (768,),
}
ENCODER = {
    "encoder.layer.11.attention.self.query.weight": (768, 768),
    "encoder.layer.0.attention.output.LayerNorm.weight": (768,),
    "encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "encoder.layer.0.output.dense.bias": (768,),
    "pooler.dense.weight": (768, 768),
}
WORDS = {
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.predictions.transform.LayerNorm.bias": (768,),
    "cls.predictions.bias": (30522,),
    "cls.predictions.decoder.weight": (30522, 768),
    "cls.seq_relationship.weight": (2, 768),
}


def prefixed(prefix, shapes):
    return {f"{prefix}{key}": shape for key, shape in shapes.items()}


def embedded(embeddings):
    return prefixed("embeddings.", embeddings) | ENCODER


GROUNDING = {"query.weight": (64, 768), "key.bias": (64,), "value.weight": (64, 768)}
EXPECTED = [
    (
        "visualbert",
        visualbert.VISUALBERT_B_VQA_COCO,
        prefixed("bert.bert.", embedded(OFFICIAL)) | prefixed("bert.", WORDS),
    ),
    (
        "visualbert-objective",
        visualbert.VISUALBERT_B_VQA_COCO,
        prefixed("bert.", embedded(OFFICIAL)) | WORDS,
    ),
    ("visualbert", visualbert.VISUALBERT_B_VQA, {"bert.classifier.weight": (3129, 768)}),
    ("visualbert", visualbert.VISUALBERT_B_NLVR2, {"bert.classifier.weight": (2, 768)}),
    ("visualbert", visualbert.VISUALBERT_B_VCR, {"bert.classifier.weight": (1, 768)}),
    (
        "visualbert",
        visualbert.VISUALBERT_B_FLICKR,
        prefixed("bert.flickr_attention.", GROUNDING)
        | {"bert.bert.embeddings.projection.weight": (768, 2054)},
    ),
    (
        "visualbert-hf",
        visualbert.VISUALBERT_B_VQA_COCO,
        prefixed("visual_bert.", embedded(HF)) | WORDS | {"cls.predictions.decoder.bias": (30522,)},
    ),
    (
        "visualbert-hf",
        visualbert.VISUALBERT_B_VQA,
        {"cls.weight": (3129, 768), "cls.bias": (3129,)},
    ),
    ("visualbert-hf", visualbert.VISUALBERT_B_FLICKR, prefixed("attention.", GROUNDING)),
]


@pytest.mark.parametrize(("layout", "config", "expected"), EXPECTED)
def test_keys_and_shapes_of_the_published_size(layout, config, expected):
    with torch.device("meta"):
        theirs = from_mmlab(layout, VisualBERT(config).state_dict())
    assert {key: tuple(theirs[key].shape) for key in expected} == expected


def test_tables_of_text_and_of_regions_are_not_mixed_up():
    ours = small_state()
    names = {
        "visualbert": ("bert.bert", "token_type_embeddings_visual", "position_embeddings_visual"),
        "visualbert-hf": (
            "visual_bert",
            "visual_token_type_embeddings",
            "visual_position_embeddings",
        ),
    }
    for layout, (prefix, types, positions) in names.items():
        theirs, embeddings = from_mmlab(layout, ours), f"{prefix}.embeddings"
        for table, name in (("type_embedding", types), ("position_embedding", positions)):
            mine = ours[f"region_embeddings.{table}.weight"]
            assert torch.equal(theirs[f"{embeddings}.{name}.weight"], mine)
        text = theirs[f"{embeddings}.token_type_embeddings.weight"]
        assert torch.equal(text, ours["embeddings.type_embedding.weight"])


def test_the_last_matrix_of_words_is_the_table():
    ours = small_state()
    for layout, prefix in (("visualbert", "bert."), ("visualbert-hf", "")):
        theirs = from_mmlab(layout, ours)
        key = f"{prefix}cls.predictions.decoder.weight"
        assert torch.equal(theirs[key], ours["embeddings.word_embedding.weight"])
        del theirs[key]
        assert_equal(to_mmlab(layout, theirs), ours)
        with pytest.raises(CheckpointError, match="must be the same tensor"):
            to_mmlab(layout, theirs | {key: torch.zeros(17, 12)})


def test_detectors_and_buffers_are_passed_over():
    ours = small_state()
    theirs = from_mmlab("visualbert", ours)
    theirs["detector.backbone.0.weight"] = torch.zeros(3)
    theirs["bert.bert.embeddings.position_ids"] = torch.arange(9)[None]
    assert_equal(to_mmlab("visualbert", theirs), ours)
    theirs = from_mmlab("visualbert-hf", ours)
    theirs["visual_bert.embeddings.position_ids"] = torch.arange(9)[None]
    assert_equal(to_mmlab("visualbert-hf", theirs), ours)


def test_missing_and_left_over_keys_are_named():
    theirs = from_mmlab("visualbert", small_state())
    del theirs["bert.bert.embeddings.projection.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'bert.bert.embeddings.projection.bias'"):
        to_mmlab("visualbert", theirs)
    theirs = from_mmlab("visualbert-hf", small_state(**HEADS["late fusion"]))
    theirs["visual_bert.additional_layer.more"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 left over: '.*additional_layer.more'"):
        to_mmlab("visualbert-hf", theirs)
    del theirs["visual_bert.additional_layer.more"]
    del theirs["visual_bert.additional_layer.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: '.*additional_layer.output.dense.bias'"):
        to_mmlab("visualbert-hf", theirs)


def test_wrong_shapes_are_named():
    theirs = from_mmlab("visualbert", small_state())
    theirs["bert.bert.embeddings.projection.weight"] = torch.zeros(11, 5)
    with pytest.raises(CheckpointError, match=r"'bert.bert.embeddings.projection.weight' is"):
        to_mmlab("visualbert", theirs)


@pytest.mark.parametrize("layout", ["visualbert-objective", "visualbert-hf-base"])
def test_a_plain_bert_is_told_as_one(layout):
    """It has all keys but a few; without the regions' it is no VisualBERT."""
    theirs = from_mmlab(layout, small_state(heads=()))
    bert = {key: t for key, t in theirs.items() if "visual" not in key and "projection" not in key}
    assert len(theirs) - len(bert) == 4
    with pytest.raises(CheckpointError, match="these look like a BERT"):
        detect_layout(bert)


# Loading by name


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("visualbert-b-vqa-coco", HEADS["pretraining"]),
        ("visualbert-b-vqa", HEADS["answers"]),
        ("visualbert-b-nlvr2", {"heads": ("answer",), "num_classes": 2, "answer_from": "pooled"}),
        ("visualbert-b-vcr", {"heads": ("answer",), "num_classes": 1, "answer_from": "pooled"}),
        ("visualbert-b-flickr", HEADS["grounding"]),
    ],
)
@pytest.mark.parametrize("layout", ["visualbert", "visualbert-objective", "visualbert-hf"])
def test_files_are_loaded_by_name(layout, name, heads, tmp_path):
    ours = small_state(**heads)
    torch.save(from_mmlab(layout, ours), tmp_path / "a.th")
    model = create_model(name, pretrained=tmp_path / "a.th", **SMALL | heads)
    assert_equal(model.state_dict(), ours)
    assert model.config.norm_eps == 1e-12
    assert model.config.answer_from == heads.get("answer_from", "last_word")


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    options = SMALL | HEADS["answers"]
    model = create_model("visualbert-mini", **options, norm_eps=1e-3, answer_from="pooled")
    save(model, tmp_path / "a.safetensors")
    loaded = create_model("visualbert-mini", pretrained=tmp_path / "a.safetensors", **options)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_of_another_detector_is_refused(tmp_path):
    torch.save(from_mmlab("visualbert", small_state(feature_dim=6)), tmp_path / "a.th")
    with pytest.raises(
        CheckpointError, match=r"'region_embeddings.projection.weight' as \(12, 6\)"
    ):
        create_model("visualbert-b-vqa-coco", pretrained=tmp_path / "a.th", **SMALL)
