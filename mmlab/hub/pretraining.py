"""Whole training states of others: not only a network, but also its momentum twin and its queues.

A layout's table gives a network the names of our network, and to what only training needs those of
our pretraining module, ``momentum.…`` and ``queue.…``.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmlab.hub.conversion import OWN, from_mmlab, to_mmlab
from mmlab.hub.mapping import CheckpointError, StateDict, as_tensors, check_shared, first_few

TRAINING_ONLY = ("momentum.", "queue.")
"""How the names of tensors begin that no network has."""

_NETWORK = "network."
_COUNTER = "momentum.num_updates"


def network_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network, of all that a file holds, in our names."""
    return {key: t for key, t in state.items() if not key.startswith(TRAINING_ONLY)}


def load_pretraining(module: nn.Module, layout: str, state_dict: StateDict) -> None:
    """Give a pretraining module the weights, twin and queue of a state dict, in place.

    Strict: CheckpointError names what is missing, left over or of another shape. How many updates
    the twin has behind it is not in such files; it counts on from where it is.
    """
    state = as_tensors(state_dict) if layout == OWN else to_mmlab(layout, state_dict)
    state = {
        key if key.startswith(TRAINING_ONLY) else _NETWORK + key: t for key, t in state.items()
    }
    own = module.state_dict()
    state = {key: t for key, t in own.items() if key == _COUNTER} | state
    wrong = [key for key in {**own, **state} if _shape(own, key) != _shape(state, key)]
    if wrong:
        raise CheckpointError(
            f"the state does not fit this {type(module).__name__}: missing, left over or of "
            f"another shape are {first_few(wrong)}"
        )
    check_shared(module, state)
    module.load_state_dict(state)


def pretraining_state(module: nn.Module, layout: str) -> dict[str, Tensor]:
    """The state of a pretraining module in ``layout``, with twin and queue; see above."""
    state = {
        key.removeprefix(_NETWORK): t for key, t in module.state_dict().items() if key != _COUNTER
    }
    return from_mmlab(layout, state)


def _shape(state: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None
