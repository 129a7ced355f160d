"""The OSCAR tables: no loss in either direction, the keys of the sheet, two classes or three."""

from dataclasses import replace

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, list_models, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.hub.tables import LAYOUTS
from mmlab.models import oscar
from mmlab.models.oscar import Oscar, OscarConfig
from mmlab.models.oscar_tasks import oscar_with
from tests.hub.states import assert_equal, random_state, round_trip

# All different, so that no two dimensions can be mixed up unseen.
SMALL = dict(
    vocab_size=17,
    context_length=9,
    max_positions=11,
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    feature_dim=8,
)
NLVR2 = {"heads": ("answer",), "num_classes": 5, "num_images": 2, "classifier_dim": 14}
HEADS = {
    "none": {"heads": ()},
    "words": {"heads": ("words",)},
    "pretraining": {},
    "three classes": {"num_contrast_classes": 3, "image_norm": True},
    "answers": {"heads": ("answer",), "num_classes": 7},
    "hidden answers": {"heads": ("answer",), "num_classes": 7, "classifier_dim": 14},
    "two images": NLVR2,
}
FITTING = [
    *(("oscar", name) for name in HEADS),
    ("oscar-plus-nlvr2", "two images and a norm"),
    ("oscar-untied", "own matrix"),
]
HEADS |= {
    "two images and a norm": NLVR2 | {"image_norm": True},
    "own matrix": {"heads": ("words",), "tied_words": False},
}


def small_state(**changes):
    return random_state(Oscar(OscarConfig(**SMALL | changes)))


@pytest.mark.parametrize(("layout", "heads"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, heads):
    ours = small_state(**HEADS[heads])
    theirs = round_trip(layout, ours)
    shares = {name: table.share_of_known(theirs) for name, table in LAYOUTS.items()}
    own = [shares.pop(name) for name in ("oscar", "oscar-plus-nlvr2", "oscar-untied")]
    assert max(own) == 1 and max(shares.values()) < 1
    # A file does not show that its last matrix is another one than the word table.
    assert detect_layout(theirs) == ("oscar" if layout == "oscar-untied" else layout)


BACKBONE = {
    "bert.embeddings.word_embeddings.weight": (30522, 768),
    "bert.embeddings.position_embeddings.weight": (512, 768),
    "bert.embeddings.token_type_embeddings.weight": (2, 768),
    "bert.embeddings.LayerNorm.weight": (768,),
    "bert.img_embedding.weight": (768, 2054),
    "bert.img_embedding.bias": (768,),
    "bert.encoder.layer.11.attention.self.query.weight": (768, 768),
    "bert.encoder.layer.0.attention.output.LayerNorm.bias": (768,),
    "bert.encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "bert.encoder.layer.0.output.dense.weight": (768, 3072),
    "bert.pooler.dense.weight": (768, 768),
}
PRETRAINING = {
    "cls.predictions.bias": (30522,),
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.predictions.transform.LayerNorm.weight": (768,),
    "cls.predictions.decoder.weight": (30522, 768),
}
TABLE = 30522 * 768
EXPECTED = [
    ("oscar", "OSCAR_B", 111_684_668 + TABLE, {"cls.seq_relationship.weight": (2, 768)}),
    (
        "oscar",
        "OSCAR_PLUS_B",
        111_686_204 + 769 + TABLE,
        {"bert.LayerNorm.weight": (768,), "cls.seq_relationship.weight": (3, 768)},
    ),
]


@pytest.mark.parametrize(("layout", "name", "total", "expected"), EXPECTED)
def test_keys_and_shapes_of_the_published_size(layout, name, total, expected):
    with torch.device("meta"):
        theirs = from_mmlab(layout, Oscar(getattr(oscar, name)).state_dict())
    expected = BACKBONE | PRETRAINING | expected
    assert {key: tuple(theirs[key].shape) for key in expected} == expected
    assert sum(tensor.numel() for tensor in theirs.values()) == total
    assert ("bert.LayerNorm.weight" in theirs) == ("PLUS" in name)


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("oscar", "OSCAR_B_VQA", {"classifier.weight": (3129, 768)}),
        ("oscar", "OSCAR_B_RETRIEVAL", {"classifier.bias": (2,)}),
        (
            "oscar",
            "OSCAR_B_NLVR2",
            {"classifier.0.weight": (2304, 1536), "classifier.2.weight": (2, 2304)},
        ),
        (
            "oscar-plus-nlvr2",
            "OSCAR_PLUS_B_NLVR2",
            {
                "classifier.0.weight": (2304, 1536),
                "classifier.2.weight": (2304,),
                "classifier.3.weight": (2, 2304),
            },
        ),
        ("oscar", "OSCAR_PLUS_B_CAPTIONING", PRETRAINING),
    ],
)
def test_keys_of_fine_tuned_models(layout, name, expected):
    with torch.device("meta"):
        theirs = from_mmlab(layout, Oscar(getattr(oscar, name)).state_dict())
    heads = {k: tuple(t.shape) for k, t in theirs.items() if not k.startswith("bert.")}
    assert expected.items() <= heads.items()


def test_the_norm_of_regions_is_not_that_of_words():
    ours = small_state(image_norm=True)
    theirs = from_mmlab("oscar", ours)
    assert torch.equal(theirs["bert.LayerNorm.weight"], ours["image_norm.weight"])
    assert torch.equal(theirs["bert.embeddings.LayerNorm.weight"], ours["embeddings.norm.weight"])


def test_the_last_matrix_is_the_word_table_or_an_error():
    theirs = from_mmlab("oscar", small_state())
    table = theirs["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(theirs["cls.predictions.decoder.weight"], table)
    theirs["cls.predictions.decoder.weight"] = table + 1
    with pytest.raises(CheckpointError, match="must be the same tensor in layout 'oscar'"):
        to_mmlab("oscar", theirs)
    del theirs["cls.predictions.decoder.weight"]
    assert_equal(to_mmlab("oscar", theirs), small_state())


def test_missing_and_left_over_keys_are_named():
    theirs = from_mmlab("oscar", small_state())
    del theirs["cls.predictions.transform.dense.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'cls\.predictions\.transform\.dense\."):
        to_mmlab("oscar", theirs)
    theirs = from_mmlab("oscar", small_state())
    theirs["bert.code_embeddings.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"1 left over: 'bert\.code_embeddings\.weight'"):
        to_mmlab("oscar", theirs)


# Loading by name


def write_official(path, layout="oscar", **changes):
    """As the official code writes ``pytorch_model.bin``; returns the weights in our names."""
    ours = small_state(**changes)
    torch.save(from_mmlab(layout, ours), path)
    return ours


@pytest.mark.parametrize(
    ("name", "layout", "heads"),
    [
        ("oscar-b", "oscar", {}),
        ("oscar-plus-b", "oscar", HEADS["three classes"]),
        ("oscar-l-vqa", "oscar", {"num_classes": 7, "heads": ("answer",)}),
        ("oscar-b-nlvr2", "oscar", NLVR2),
        ("oscar-plus-b-nlvr2", "oscar-plus-nlvr2", NLVR2 | {"image_norm": True}),
        ("oscar-b-captioning", "oscar", HEADS["words"]),
    ],
)
def test_official_files_are_loaded_by_name(name, layout, heads, tmp_path):
    ours = write_official(tmp_path / "pytorch_model.bin", layout, **heads)
    model = create_model(name, pretrained=tmp_path / "pytorch_model.bin", **SMALL | heads)
    assert_equal(model.state_dict(), ours)
    assert model.config.norm_eps == model.config.image_norm_eps == 1e-12


def test_an_old_file_with_two_contrast_classes_starts_a_model_with_three(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    ours = write_official(file, image_norm=True)
    with pytest.raises(CheckpointError, match=r"'heads\.match\.weight' as \(2, 12\) instead of"):
        create_model("oscar-plus-b", pretrained=file, **SMALL)
    old = create_model("oscar-plus-b", pretrained=file, **SMALL, num_contrast_classes=2)
    new = oscar_with(old, num_contrast_classes=3)
    state = new.state_dict()
    assert state.pop("heads.match.weight").shape == (3, 12)
    assert state.pop("heads.match.bias").shape == (3,)
    assert_equal(state, {key: ours[key] for key in state})


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    torch.manual_seed(0)
    options = SMALL | {"image_norm": True, "image_norm_eps": 1e-3}
    model = create_model("oscar-mini", **options)
    save(model, tmp_path / "a.safetensors")
    del options["image_norm_eps"]
    loaded = create_model("oscar-mini", pretrained=tmp_path / "a.safetensors", **options)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_of_another_size_is_told_by_name(tmp_path):
    write_official(tmp_path / "a.bin", heads=("answer",), num_classes=7)
    with pytest.raises(CheckpointError, match=r"is no 'oscar-b'.*lacks 'heads\.words"):
        create_model("oscar-b", pretrained=tmp_path / "a.bin", **SMALL)


def test_all_published_models_have_names():
    sizes = {f"oscar{plus}-{size}" for plus in ("", "-plus") for size in "bl"}
    tasks = ("", "-vqa", "-nlvr2", "-retrieval", "-captioning")
    named = {size + task for size in sizes for task in tasks} | {"oscar-mini"}
    assert set(list_models("oscar*")) == named
    mini = oscar.OSCAR_MINI
    assert (mini.vocab_size, mini.context_length, mini.feature_dim) == (1000, 64, 64)
    assert replace(mini, depth=2).depth == 2
