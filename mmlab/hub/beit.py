"""Start a VLMo from a BEiT, as its authors do in place of the stage of images alone."""

from __future__ import annotations

import math
import re

import torch

from mmlab.hub.load import first_problems, key_problems
from mmlab.hub.mapping import CheckpointError, Row, StateDict, as_tensors, convert, linear, norm
from mmlab.models.vlmo import VLMo
from mmlab.nn.relative_positions import FIRST_TOKEN_ROWS, num_patch_offsets

_BLOCK = "blocks.{i}"
_ATTENTION = f"{_BLOCK}.attention"
_QKV = tuple(f"{_ATTENTION}.{name}_proj.weight" for name in "qkv")
_TABLE = "relative_position_bias_table"
_SHARED = "position_bias"

# Read in microsoft/unilm, beit/modeling_pretrain.py and beit/modeling_finetune.py.
_ROWS = (
    Row("class_token", "cls_token", "1 1 dim"),
    Row("mask_token", "mask_token", "1 1 dim", "mask token"),
    *linear("patch_embedding.projection", "patch_embed.proj", "dim c h w"),
    *norm(f"{_BLOCK}.norm1", f"{_BLOCK}.norm1"),
    Row(_QKV, f"{_BLOCK}.attn.qkv.weight", "(qkv out) dim -> qkv out dim"),
    Row(f"{_ATTENTION}.q_proj.bias", f"{_BLOCK}.attn.q_bias", "out"),
    Row(f"{_ATTENTION}.v_proj.bias", f"{_BLOCK}.attn.v_bias", "out"),
    *linear(f"{_ATTENTION}.out_proj", f"{_BLOCK}.attn.proj", "dim out"),
    Row(f"{_BLOCK}.gamma1", f"{_BLOCK}.gamma_1", "dim"),
    Row(f"{_BLOCK}.gamma2", f"{_BLOCK}.gamma_2", "dim"),
    *norm(f"{_BLOCK}.experts.image.norm", f"{_BLOCK}.norm2"),
    *linear(f"{_BLOCK}.experts.image.mlp.fc1", f"{_BLOCK}.mlp.fc1", "mlp dim"),
    *linear(f"{_BLOCK}.experts.image.mlp.fc2", f"{_BLOCK}.mlp.fc2", "dim mlp"),
    *norm("norm", "norm", group="last norm"),
    Row(f"{_BLOCK}.{_SHARED}", f"{_BLOCK}.attn.{_TABLE}", "offsets heads", "a table a block"),
    Row(_SHARED, f"rel_pos_bias.{_TABLE}", "offsets heads", "one table"),
    *linear("heads.codes", "lm_head", "codes dim", "codes"),
)
_IGNORED = re.compile(r"(.*\.)?relative_position_index|(head|fc_norm)\..*")


@torch.no_grad()
def start_from_beit(model: VLMo, state_dict: StateDict) -> VLMo:
    """Give ``model`` the weights of a BEiT in official names, in place; returns it.

    Attention, norms, image experts and the table of patch offsets are taken, mask token and codes
    head where ``model`` has them. A BEiT with one table for all blocks gives it to each. Text
    experts, word embeddings and modality rows stay as they are. CheckpointError for other sizes:
    take a model of the BEiT's ``image_size``, and resize it afterwards.
    """
    model.load_state_dict(model.state_dict() | beit_weights(model, state_dict))
    return model


def beit_weights(model: VLMo, state_dict: StateDict) -> dict[str, torch.Tensor]:
    """What ``start_from_beit`` gives to ``model``, in our names; CheckpointError as there."""
    state = {key: t for key, t in as_tensors(state_dict).items() if not _IGNORED.fullmatch(key)}
    ours, _ = convert("beit", _ROWS, state)
    has_codes = "codes" in model.heads
    ours = {key: t for key, t in ours.items() if has_codes or not key.startswith(("mask", "heads"))}
    ours = _with_table(model, ours)
    own = model.state_dict()
    problems = key_problems(own, own | ours)
    if problems:
        raise CheckpointError(f"the BEiT does not fit this VLMo: {first_problems(problems)}")
    return ours


def beit_grid_side(state_dict: StateDict) -> int:
    """Patches per side of the images that a BEiT is for, by its tables of relative positions.

    CheckpointError if it has none, or if they are of no square.
    """
    tables = [len(t) for key, t in state_dict.items() if key.endswith(_TABLE)]
    if not tables:
        raise CheckpointError(f"it is no BEiT: it has no {_TABLE!r}")
    side = math.isqrt(max(tables[0] - FIRST_TOKEN_ROWS, 0))
    if side % 2 == 0 or side**2 + FIRST_TOKEN_ROWS != tables[0]:
        raise CheckpointError(f"its tables of {tables[0]} relative positions are of no square")
    return (side + 1) // 2


def _with_table(model: VLMo, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tables of all blocks side by side, in place of the first rows of the model's own."""
    names = [f"blocks.{i}.{_SHARED}" for i in range(model.config.depth)]
    shared = ours.pop(_SHARED, None)
    tables = [ours.pop(name, shared) for name in names]
    if model.position_bias is None or any(table is None for table in tables):
        raise CheckpointError("both the BEiT and the VLMo must have relative positions")
    rows = torch.cat(tables, dim=1)
    whole = model.position_bias.table.detach().clone()
    expected = num_patch_offsets(model.config.grid) + FIRST_TOKEN_ROWS, whole.shape[1]
    if tuple(rows.shape) != expected:
        raise CheckpointError(
            f"the BEiT's tables of relative positions must have {expected[0]} rows and "
            f"{expected[1]} columns in all for this VLMo, got {tuple(rows.shape)}"
        )
    whole[: len(rows)] = rows
    return ours | {"position_bias.table": whole}
