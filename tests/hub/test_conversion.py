"""The ViT tables: no loss in either direction, and errors that help."""

import numpy as np
import pytest
import torch

from mmlab.hub import (
    CheckpointError,
    create_model,
    detect_layout,
    from_mmlab,
    layouts,
    to_mmlab,
)
from mmlab.hub.mapping import Layout, Row, Tie
from mmlab.hub.tables import LAYOUTS
from tests.hub.states import assert_equal

SIZES = dict(dim=12, depth=3, num_heads=3, mlp_dim=20, num_classes=5, image_size=8, patch_size=4)
VIT_LAYOUTS = layouts("vit-*")
FLAX = ("vit-npz", "vit-linen", "vit-big-vision")
HF = ("vit-hf", "vit-hf-memory")
DEIT = ("vit-timm", "deit-hf", "deit-hf-memory")


def vit_state(dtype=torch.float32, **overrides) -> dict[str, torch.Tensor]:
    """A state dict in our names, every value random."""
    model = create_model("vit-b-16", **SIZES | overrides)
    generator = torch.Generator().manual_seed(0)
    random = {k: torch.randn(t.shape, generator=generator) for k, t in model.state_dict().items()}
    return {key: tensor.to(dtype) for key, tensor in random.items()}


def cases():
    for layout in VIT_LAYOUTS:
        if "base" in layout:
            yield layout, dict(num_classes=0)
            yield layout, dict(num_classes=0, pre_logits=True)
            yield layout, dict(num_classes=0, distilled=True)
        else:
            yield layout, {}
            yield layout, dict(num_classes=0)
    for layout in (*FLAX, "vit-timm"):
        yield layout, dict(pre_logits=True)
        yield layout, dict(pool="average")
    for layout in DEIT:
        yield layout, dict(distilled=True)
        yield layout, dict(distilled=True, num_classes=0)
    for dtype in (torch.float16, torch.bfloat16):
        yield "vit-timm", dict(dtype=dtype)
        yield "vit-npz", dict(dtype=dtype)


@pytest.mark.parametrize(("layout", "options"), tuple(cases()))
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, options):
    ours = vit_state(**options)
    theirs = from_mmlab(layout, ours, num_heads=3)
    assert_equal(to_mmlab(layout, theirs), ours)
    assert_equal(from_mmlab(layout, to_mmlab(layout, theirs), num_heads=3), theirs)
    assert detect_layout(theirs) == layout
    assert all(tensor.is_contiguous() for tensor in theirs.values())


def test_own_names_are_recognised():
    assert detect_layout(vit_state()) == "mmlab"


# Keys and shapes as the sheet gives them for the official files (B/16: D = 768, h = 12).
EXPECTED = {
    "vit-npz": {
        "embedding/kernel": (16, 16, 3, 768),
        "cls": (1, 1, 768),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        "Transformer/encoderblock_11/LayerNorm_0/scale": (768,),
        "Transformer/encoderblock_11/LayerNorm_2/bias": (768,),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": (768, 12, 64),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/value/bias": (12, 64),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel": (12, 64, 768),
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": (768, 3072),
        "Transformer/encoderblock_0/MlpBlock_3/Dense_1/kernel": (3072, 768),
        "Transformer/encoder_norm/scale": (768,),
        "head/kernel": (768, 1000),
    },
    "vit-linen": {
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel": (768, 12, 64),
        "Transformer/encoderblock_0/LayerNorm_1/scale": (768,),
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias": (3072,),
    },
    "vit-big-vision": {"pos_embedding": (1, 197, 768)},
    "vit-timm": {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.11.attn.qkv.bias": (2304,),
        "blocks.11.attn.proj.weight": (768, 768),
        "blocks.0.mlp.fc2.weight": (768, 3072),
        "head.weight": (1000, 768),
    },
    "vit-hf": {
        "vit.embeddings.patch_embeddings.projection.weight": (768, 3, 16, 16),
        "vit.encoder.layer.11.attention.attention.query.weight": (768, 768),
        "vit.encoder.layer.11.attention.output.dense.bias": (768,),
        "vit.encoder.layer.0.intermediate.dense.weight": (3072, 768),
        "vit.encoder.layer.0.output.dense.weight": (768, 3072),
        "vit.encoder.layer.0.layernorm_after.weight": (768,),
        "vit.layernorm.bias": (768,),
        "classifier.weight": (1000, 768),
    },
}


@pytest.mark.parametrize("layout", EXPECTED)
def test_keys_and_shapes_of_a_real_b_16(layout):
    with torch.device("meta"):
        ours = create_model("vit-b-16").state_dict()
    theirs = from_mmlab(layout, ours, num_heads=12)
    for key, shape in EXPECTED[layout].items():
        assert tuple(theirs[key].shape) == shape, key
    # B/16 with 1000 classes, from the official models_test.py.
    assert sum(tensor.numel() for tensor in theirs.values()) == 86_567_656
    back = to_mmlab(layout, theirs)
    assert {k: t.shape for k, t in back.items()} == {k: t.shape for k, t in ours.items()}


def test_timm_fuses_queries_keys_values_in_this_order():
    ours = vit_state()
    fused = from_mmlab("vit-timm", ours)["blocks.1.attn.qkv.weight"]
    parts = [ours[f"blocks.1.attention.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(fused, torch.cat(parts))


def test_numpy_arrays_and_a_params_prefix_are_taken():
    ours = vit_state()
    theirs = from_mmlab("vit-big-vision", ours, num_heads=3)
    arrays = {f"params/{key}": tensor.numpy() for key, tensor in theirs.items()}
    before = {key: array.copy() for key, array in arrays.items()}
    assert detect_layout(arrays) == "vit-big-vision"
    assert_equal(to_mmlab("vit-big-vision", arrays), ours)
    assert all(np.array_equal(arrays[key], before[key]) for key in arrays)


def test_inputs_are_not_modified():
    ours = vit_state()
    for layout in (*FLAX, "vit-timm", *HF):
        before = {key: tensor.clone() for key, tensor in ours.items()}
        theirs = from_mmlab(layout, ours, num_heads=3)
        snapshot = {key: tensor.clone() for key, tensor in theirs.items()}
        to_mmlab(layout, theirs)
        assert_equal(ours, before)
        assert_equal(theirs, snapshot)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("visual.transformer.resblocks.0.ln_1.weight", "clip-openai"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "clip-hf"),
        ("decoder_blocks.0.norm1.weight", "mae"),
    ],
)
def test_the_layout_of_another_system_is_named(key, layout):
    with pytest.raises(CheckpointError, match=f"these look like '{layout}' keys"):
        to_mmlab("vit-timm", {key: torch.zeros(1), "something": torch.zeros(1)})


@pytest.mark.parametrize("asked", ["vit-npz", "vit-timm", "vit-hf", "vit-hf-memory", "deit-hf"])
@pytest.mark.parametrize("given", ["vit-npz", "vit-timm", "vit-hf", "vit-hf-memory"])
def test_keys_of_another_layout_are_told_apart(asked, given):
    theirs = from_mmlab(given, vit_state(), num_heads=3)
    if asked == given:
        to_mmlab(asked, theirs)
        return
    with pytest.raises(CheckpointError, match=f"these look like '{given}' keys"):
        to_mmlab(asked, theirs)


def test_converting_twice_or_the_wrong_way_says_so():
    ours = vit_state()
    with pytest.raises(CheckpointError, match="these look like 'mmlab' keys"):
        to_mmlab("vit-hf", ours)
    with pytest.raises(CheckpointError, match="these look like 'vit-timm' keys"):
        from_mmlab("vit-hf", from_mmlab("vit-timm", ours))


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "a BERT"),
        ("layer1.0.conv1.weight", "a ResNet"),
        ("model.layers.0.self_attn.q_proj.weight", "a language model"),
    ],
)
def test_another_model_is_named(key, model):
    state = {key: torch.zeros(1), "something": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"these look like {model}"):
        detect_layout(state)
    with pytest.raises(CheckpointError, match=f"these look like {model}"):
        to_mmlab("vit-timm", state)


def test_one_missing_and_one_left_over_key_are_named():
    theirs = from_mmlab("vit-hf", vit_state())
    theirs["vit.encoder.layer.2.output.dense.scale"] = theirs.pop(
        "vit.encoder.layer.2.output.dense.weight"
    )
    with pytest.raises(CheckpointError) as error:
        to_mmlab("vit-hf", theirs)
    assert "1 missing: 'vit.encoder.layer.2.output.dense.weight'" in str(error.value)
    assert "1 left over: 'vit.encoder.layer.2.output.dense.scale'" in str(error.value)
    assert "look like" not in str(error.value)


def test_keys_that_a_layout_has_no_place_for_are_left_over():
    distilled = vit_state(distilled=True)
    with pytest.raises(CheckpointError, match="3 left over: 'distillation_token'"):
        from_mmlab("vit-npz", distilled, num_heads=3)
    # The classifier of transformers reads the token itself, without a hidden layer between.
    with pytest.raises(CheckpointError, match=r"2 left over: 'pre_logits.weight'"):
        from_mmlab("vit-hf", vit_state(pre_logits=True))


def test_flax_export_needs_the_number_of_heads():
    with pytest.raises(CheckpointError, match="pass num_heads="):
        from_mmlab("vit-npz", vit_state())
    with pytest.raises(CheckpointError, match="num_heads=5"):
        from_mmlab("vit-npz", vit_state(), num_heads=5)


def test_an_unknown_layout_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'vit-timm'"):
        to_mmlab("vit-tim", {})


def test_layouts_can_be_filtered():
    assert set(layouts("deit-*")) == {"deit-hf", "deit-hf-memory"}
    assert set(layouts("vit-*")) == {name for name in layouts() if name.startswith("vit-")}


def test_tied_tensors_pass_through_the_whole_conversion(monkeypatch):
    rows = (Row("words", "words.weight", "vocab dim"), Row("bias", "head.bias", "vocab"))
    ties = (Tie("head.weight", "words.weight"), Tie("head.decoder.bias", "head.bias"))
    layout = Layout("toy", rows, "test", tied=ties, strip=("module.",))
    monkeypatch.setitem(LAYOUTS, "toy", layout)
    ours = {"words": torch.randn(5, 3), "bias": torch.randn(5)}
    theirs = from_mmlab("toy", ours)
    assert theirs.keys() == {"words.weight", "head.bias", "head.weight", "head.decoder.bias"}
    assert_equal(to_mmlab("toy", theirs), ours)
    wrapped = {f"module.{key}": tensor for key, tensor in theirs.items()}
    assert_equal(to_mmlab("toy", wrapped), ours)
    assert detect_layout(wrapped) == "toy"
    theirs["head.weight"] = theirs["head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"'head.weight' and 'words.weight' must be the same"):
        to_mmlab("toy", theirs)


def test_of_equally_good_layouts_a_preferred_one_is_taken():
    encoder = from_mmlab("vit-timm", vit_state(num_classes=0))
    assert detect_layout(encoder) == "vit-timm"
    assert detect_layout(encoder, prefer=("mae", "mae-hf")) == "mae"
    assert detect_layout(from_mmlab("vit-timm", vit_state()), prefer=("mae",)) == "vit-timm"
