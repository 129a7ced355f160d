"""The CLIP tables: no loss in either direction, the sheet's keys, OpenAI's files as they are."""

from dataclasses import replace

import pytest
import torch

from mmlab.hub import (
    CheckpointError,
    create_model,
    detect_layout,
    from_mmlab,
    model_config,
    read_checkpoint,
    save,
    to_mmlab,
)
from mmlab.models.clip import CLIP, CLIPConfig
from tests.hub.states import assert_equal

TINY = dict(
    image_size=64,
    patch_size=16,
    dim=12,
    depth=2,
    num_heads=3,
    mlp_dim=20,
    vocab_size=11,
    context_length=9,
    text_dim=8,
    text_depth=3,
    text_num_heads=2,
    text_mlp_dim=14,
    embed_dim=5,
)
RESNET = TINY | dict(stages=(1, 2, 1, 1), dim=2)
LAYOUTS = {"clip-openai": TINY, "clip-hf": TINY, "clip-openai-resnet": RESNET}


def random_state(model, dtype=torch.float32):
    """Every number random, the counters of the batch norms too."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(t.shape, generator=generator).to(dtype)
        if t.is_floating_point()
        else torch.randint(100, t.shape, generator=generator)
        for key, t in model.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, dtype):
    ours = random_state(CLIP(CLIPConfig(**LAYOUTS[layout])), dtype)
    theirs = from_mmlab(layout, ours)
    assert detect_layout(theirs) == layout
    assert_equal(to_mmlab(layout, theirs), ours)
    assert_equal(from_mmlab(layout, to_mmlab(layout, theirs)), theirs)


# Keys and shapes as the sheet gives them: B/32, and the ResNet-50.
EXPECTED = {
    ("clip-openai", "clip-vit-b-32"): {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.ln_pre.weight": (768,),
        "visual.ln_post.bias": (768,),
        "visual.transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "visual.transformer.resblocks.11.attn.in_proj_bias": (2304,),
        "visual.transformer.resblocks.0.attn.out_proj.weight": (768, 768),
        "visual.transformer.resblocks.0.ln_1.weight": (768,),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (3072, 768),
        "visual.transformer.resblocks.0.mlp.c_proj.weight": (768, 3072),
        "visual.proj": (768, 512),
        "transformer.resblocks.11.attn.in_proj_weight": (1536, 512),
        "token_embedding.weight": (49408, 512),
        "positional_embedding": (77, 512),
        "ln_final.weight": (512,),
        "text_projection": (512, 512),
        "logit_scale": (),
    },
    ("clip-hf", "clip-vit-l-14-336"): {
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.position_embedding.weight": (577, 1024),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.pre_layrnorm.weight": (1024,),
        "vision_model.post_layernorm.bias": (1024,),
        "vision_model.encoder.layers.23.self_attn.k_proj.weight": (1024, 1024),
        "visual_projection.weight": (768, 1024),
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.final_layer_norm.weight": (768,),
        "text_projection.weight": (768, 768),
        "logit_scale": (),
    },
    ("clip-openai-resnet", "clip-rn50"): {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.bn3.running_var": (64,),
        "visual.layer1.0.conv1.weight": (64, 64, 1, 1),
        "visual.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "visual.layer1.0.downsample.1.weight": (256,),
        "visual.layer3.5.conv2.weight": (256, 256, 3, 3),
        "visual.layer4.2.bn3.num_batches_tracked": (),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.q_proj.weight": (2048, 2048),
        "visual.attnpool.c_proj.bias": (1024,),
        "text_projection": (512, 1024),
    },
}


@pytest.mark.parametrize(("layout", "name"), EXPECTED)
def test_keys_and_shapes_of_published_sizes(layout, name):
    with torch.device("meta"):
        ours = create_model(name).state_dict()
    theirs = from_mmlab(layout, ours)
    for key, shape in EXPECTED[layout, name].items():
        assert tuple(theirs[key].shape) == shape, key
    back = to_mmlab(layout, theirs)
    assert {k: t.shape for k, t in back.items()} == {k: t.shape for k, t in ours.items()}


def test_openai_fuses_queries_keys_values_in_this_order():
    ours = random_state(CLIP(CLIPConfig(**TINY)))
    theirs = from_mmlab("clip-openai", ours)
    parts = [ours[f"text_encoder.blocks.1.attention.{n}_proj.bias"] for n in "qkv"]
    assert torch.equal(theirs["transformer.resblocks.1.attn.in_proj_bias"], torch.cat(parts))
    assert torch.equal(theirs["visual.proj"], ours["image_projection.weight"].T)


def test_the_numbers_beside_openais_weights_are_left_out():
    ours = random_state(CLIP(CLIPConfig(**TINY)))
    theirs = from_mmlab("clip-openai", ours)
    numbers = ("input_resolution", "context_length", "vocab_size")
    assert_equal(to_mmlab("clip-openai", theirs | {n: torch.tensor(7) for n in numbers}), ours)


def test_position_ids_of_old_files_are_left_out():
    ours = random_state(CLIP(CLIPConfig(**TINY)))
    theirs = from_mmlab("clip-hf", ours)
    old = {f"{t}_model.embeddings.position_ids": torch.arange(9)[None] for t in ("text", "vision")}
    assert_equal(to_mmlab("clip-hf", theirs | old), ours)


def test_a_resnet_without_counters_is_read(tmp_path):
    ours = random_state(CLIP(CLIPConfig(**RESNET)))
    theirs = from_mmlab("clip-openai-resnet", ours)
    bare = {key: t for key, t in theirs.items() if "num_batches_tracked" not in key}
    assert len(bare) < len(theirs)
    torch.save(bare, tmp_path / "a.pt")
    state = create_model("clip-rn50", pretrained=tmp_path / "a.pt", **RESNET).state_dict()
    assert_equal(state, {k: t if t.is_floating_point() else 0 * t for k, t in ours.items()})


class Archive(torch.nn.Module):
    """Something that has OpenAI's names and attributes; its forward does not matter."""

    def __init__(self, tensors):
        super().__init__()
        self.input_resolution = 64
        self.vocab_size = 11
        for key, tensor in tensors.items():
            module, (*path, name) = self, key.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", ["clip-openai", "clip-openai-resnet"])
def test_openais_half_precision_archive_becomes_a_model_in_single(tmp_path, layout):
    options = LAYOUTS[layout]
    ours = random_state(CLIP(CLIPConfig(**options)), torch.float16)
    program = torch.jit.trace(Archive(from_mmlab(layout, ours)), torch.zeros(1))
    program.save(str(tmp_path / "clip.pt"))
    name = "clip-rn50" if "stages" in options else "clip-vit-b-32"
    model = create_model(name, pretrained=tmp_path / "clip.pt", **options)
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    expected = {k: t.float() if t.is_floating_point() else t for k, t in ours.items()}
    assert_equal(model.state_dict(), expected)
    half = create_model(name, pretrained=tmp_path / "clip.pt", dtype=torch.float16, **options)
    assert_equal(half.state_dict(), ours)


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_model_loads_to_the_same_outputs(tmp_path, layout, ending):
    options = LAYOUTS[layout]
    name = "clip-rn50" if "stages" in options else "clip-vit-b-32"
    model = create_model(name, **options)
    save(model, tmp_path / f"a{ending}", layout=layout)
    loaded = create_model(name, pretrained=tmp_path / f"a{ending}", **options)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_resnet_is_no_transformer(tmp_path):
    save(
        create_model("clip-rn50", **RESNET), tmp_path / "a.safetensors", layout="clip-openai-resnet"
    )
    with pytest.raises(CheckpointError, match="is no 'clip-vit-b-32': it"):
        create_model("clip-vit-b-32", pretrained=tmp_path / "a.safetensors", **TINY)


def test_metadata_restore_the_configuration(tmp_path):
    model = create_model("clip-vit-mini", vocab_size=50, depth=1, text_depth=1, activation="gelu")
    save(model, tmp_path / "a.safetensors")
    assert "mmlab.config" in read_checkpoint(tmp_path / "a.safetensors").metadata
    options = dict(vocab_size=50, depth=1, text_depth=1)
    loaded = create_model("clip-vit-mini", pretrained=tmp_path / "a.safetensors", **options)
    assert loaded.config == replace(model_config("clip-vit-mini"), activation="gelu", **options)
