"""What momentum encoders need: a slowly moving copy of a network, and a queue of its features.

He et al. 2019, "Momentum Contrast for Unsupervised Visual Representation Learning" (MoCo, arXiv
1911.05722); ALBEF, BLIP and others took both over.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

NO_ID = -100
"""The id of a place in the queue that no sample has taken yet."""


def make_average(network: nn.Module) -> nn.Module:
    """A copy to average into: in evaluation mode, and no gradient reaches it."""
    return deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """``average <- decay * average + (1 - decay) * network``, in place (MoCo, equation 2).

    ``average`` may lack parts of ``network``. Buffers are copied: the statistics of a batch norm
    are a moving average already.
    """
    old, new = dict(average.named_parameters()), dict(network.named_parameters())
    torch._foreach_lerp_(list(old.values()), [new[name] for name in old], 1 - decay)
    buffers = dict(network.named_buffers())
    for name, buffer in average.named_buffers():
        buffer.copy_(buffers[name])


class MomentumTwin(nn.Module):
    """The average of a network that teaches it (momentum distillation; ALBEF, section 3.3).

    - ``network`` starts as a copy of the given one, without the parts named in ``without``
      (``"heads.match"``). No gradient reaches it.
    - ``decay`` is the momentum ``m``; ``alpha`` how much its guesses count in the losses, once it
      has reached that: it rises linearly from 0 over the first ``ramp_steps`` updates.

    Twins are in training mode where the network is, as in the official code: their guesses are made
    under dropout, too. ValueError for a wrong number.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.995,
        alpha: float = 0.4,
        ramp_steps: int = 0,
        without: tuple[str, ...] = (),
    ):
        super().__init__()
        for name, value in (("decay", decay), ("alpha", alpha)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if ramp_steps < 0:
            raise ValueError(f"ramp_steps must be at least 0, got {ramp_steps}")
        self.network = make_average(network)
        for part in without:
            _remove(self.network, part)
        self.decay = decay
        self.alpha = alpha
        self.ramp_steps = ramp_steps
        self.register_buffer("num_updates", torch.tensor(0))

    def update(self, network: nn.Module) -> None:
        """Move towards ``network``: once a step, before the twin is asked."""
        update_average(self.network, network, self.decay)
        self.num_updates += 1

    def weight(self) -> Float[Tensor, ""]:
        """``alpha`` at this step: ``alpha * min(1, i / ramp_steps)``, ``i`` counted from 0."""
        past = (self.num_updates - 1).clamp(min=0)
        risen = (past / self.ramp_steps).clamp(max=1) if self.ramp_steps else torch.ones_like(past)
        return self.alpha * risen.float()


class FeatureQueue(nn.Module):
    """The features of the last ``size`` samples, one table of columns for each given name.

    ``FeatureQueue(65536, images=256, texts=256)`` has the buffers ``images`` and ``texts`` of shape
    (256, 65536), random unit vectors at first, and ``pointer``, the next column to be overwritten.
    With ``ids=True`` a buffer ``ids`` tells whose features they are; ``NO_ID`` where nobody's.
    Everything is saved with the module. ValueError for a size below 1.
    """

    def __init__(self, size: int, ids: bool = False, **dims: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.names = tuple(dims)
        for name, dim in dims.items():
            self.register_buffer(name, F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("ids", torch.full((size,), NO_ID) if ids else None)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(
        self, ids: Int64[Tensor, " batch"] | None = None, **features: Float[Tensor, "batch _"]
    ) -> None:
        """Overwrite the oldest columns with the rows of ``features``, which need every name.

        Where several processes train, each must be given the rows of all, in the same order. The
        official codes want ``size`` to be a multiple of the batch; here the writing goes on at
        column 0. ValueError if the batch is larger than the queue or a name is missing.
        """
        if set(features) != set(self.names) or (ids is None) != (self.ids is None):
            wanted = [*self.names, *(["ids"] if self.ids is not None else [])]
            raise ValueError(f"the queue holds {', '.join(wanted)}; each must be given, no other")
        count = len(next(iter(features.values())))
        if count > self.size:
            raise ValueError(f"a batch of {count} does not fit into a queue of {self.size}")
        columns = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        for name, rows in features.items():
            table = getattr(self, name)
            table[:, columns] = rows.T.to(table.dtype)
        if ids is not None:
            self.ids[columns] = ids
        self.pointer.copy_((self.pointer + count) % self.size)


def _remove(network: nn.Module, path: str) -> None:
    """Take away a submodule or a parameter: an entry of a ``ModuleDict``, or an attribute."""
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    if isinstance(owner, nn.ModuleDict):
        del owner[name]
    else:
        setattr(owner, name, None)
