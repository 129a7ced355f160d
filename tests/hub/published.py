"""Small files in the layouts of published image encoders and BERTs, key by key."""

import torch
from safetensors.torch import save_file


def _linear(name, out, inside):
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def _norm(name, dim, old=False):
    weight, bias = ("gamma", "beta") if old else ("weight", "bias")
    return {f"{name}.{weight}": (dim,), f"{name}.{bias}": (dim,)}


def bert_shapes(vocab=30, dim=32, depth=2, mlp=64, positions=40, old=False, head=True):
    """The keys of ``BertForPreTraining``, with the old names of norms if wanted."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (vocab, dim),
        "bert.embeddings.position_embeddings.weight": (positions, dim),
        "bert.embeddings.token_type_embeddings.weight": (2, dim),
        **_norm("bert.embeddings.LayerNorm", dim, old),
        **_linear("bert.pooler.dense", dim, dim),
    }
    for i in range(depth):
        layer = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{name}", dim, dim)
        shapes |= _linear(f"{layer}.attention.output.dense", dim, dim)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", dim, old)
        shapes |= _linear(f"{layer}.intermediate.dense", mlp, dim)
        shapes |= _linear(f"{layer}.output.dense", dim, mlp)
        shapes |= _norm(f"{layer}.output.LayerNorm", dim, old)
    if head:
        shapes |= {"cls.predictions.bias": (vocab,)}
        shapes |= _linear("cls.predictions.transform.dense", dim, dim)
        shapes |= _norm("cls.predictions.transform.LayerNorm", dim, old)
        shapes |= _linear("cls.seq_relationship", 2, dim)
    return shapes


def deit_shapes(size=32, patch=16, dim=32, depth=1, mlp=64, classes=5):
    """The keys of ``deit_base_patch16_224`` (facebookresearch/deit)."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, (size // patch) ** 2 + 1, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        **_norm("norm", dim),
        **_linear("head", classes, dim),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= _norm(f"{block}.norm1", dim) | _norm(f"{block}.norm2", dim)
        shapes |= _linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= _linear(f"{block}.attn.proj", dim, dim)
        shapes |= _linear(f"{block}.mlp.fc1", mlp, dim) | _linear(f"{block}.mlp.fc2", dim, mlp)
    return shapes


def eva_shapes(size=32, patch=16, dim=32, depth=2, mlp=64):
    """The keys of EVA-CLIP's image encoder as LAVIS reads it, with a last norm and a head."""
    shapes = deit_shapes(size, patch, dim, depth, mlp)
    for i in range(depth):
        del shapes[f"blocks.{i}.attn.qkv.bias"]
        shapes |= {f"blocks.{i}.attn.{name}_bias": (dim,) for name in "qv"}
    return shapes


def beit_shapes(size=32, patch=16, dim=32, depth=2, heads=2, mlp=64, codes=0):
    """The keys of BEiT in pretraining (microsoft/unilm), with one table for all blocks."""
    side = size // patch
    shapes = eva_shapes(size, patch, dim, depth, mlp)
    for key in ("pos_embed", "head.weight", "head.bias"):
        del shapes[key]
    shapes |= {"mask_token": (1, 1, dim), **_linear("lm_head", codes or 7, dim)}
    shapes["rel_pos_bias.relative_position_bias_table"] = ((2 * side - 1) ** 2 + 3, heads)
    for i in range(depth):
        shapes |= {f"blocks.{i}.gamma_{n}": (dim,) for n in (1, 2)}
    return shapes


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def write(path, shapes, seed=0):
    """A file of random weights; the weights."""
    state = random_state(shapes, seed)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path)
    return state
