"""Small stand-ins for jaxtyping and einops, for a machine that has torch and little else.

``install()`` puts them where the real ones are missing. Annotations are then not checked, and only
the patterns of ``rearrange`` that merge, split and permute named axes are known.
"""

import importlib.util
import re
import sys
import types

import torch


class _Annotation:
    """``Float[Tensor, "batch dim"]`` is then just ``Tensor``."""

    def __class_getitem__(cls, item):
        return item[0] if isinstance(item, tuple) else item


def _groups(side):
    """``"b (h w) d"`` as ``[["b"], ["h", "w"], ["d"]]``; a literal 1 is a group of none."""
    found = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return [[n for n in (inner or single).split() if n != "1"] for inner, single in found]


def rearrange(tensor, pattern, **sizes):
    """einops.rearrange for patterns of named axes, parentheses and literal ones."""
    left, right = (_groups(side) for side in pattern.split("->"))
    shape = []
    for names, size in zip(left, tensor.shape, strict=True):
        known = [sizes[name] for name in names if name in sizes]
        for name in names:
            sizes.setdefault(name, size // max(1, torch.Size(known).numel()))
        shape += [sizes[name] for name in names]
    order = [name for names in left for name in names]
    target = [name for names in right for name in names]
    permuted = tensor.reshape(shape).permute([order.index(name) for name in target])
    return permuted.reshape([torch.Size([sizes[n] for n in names]).numel() for names in right])


def install():
    """Put stand-ins where the real packages are missing; returns the names of those replaced."""
    missing = [name for name in ("jaxtyping", "einops") if importlib.util.find_spec(name) is None]
    if "jaxtyping" in missing:
        module = types.ModuleType("jaxtyping")
        for name in ("Bool", "Float", "Int", "Int64", "UInt8", "Shaped", "Num", "Integer"):
            setattr(module, name, _Annotation)
        sys.modules["jaxtyping"] = module
    if "einops" in missing:
        sys.modules["einops"] = types.ModuleType("einops")
        sys.modules["einops"].rearrange = rearrange
    return missing
