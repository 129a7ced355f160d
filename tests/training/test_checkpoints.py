import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from mmlab.hub import CheckpointError
from mmlab.training.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    remove_partial,
    save_checkpoint,
)
from mmlab.training.loop import make_state
from mmlab.training.run import new_model, training_data
from tests.training.tiny import TINY


def new_state(seed: int = 0):
    recipe = replace(TINY, seed=seed)
    return make_state(new_model(recipe, training_data(recipe)), recipe, Accelerator())


def stepped(seed: int = 0):
    """A state with an optimiser that has moments."""
    state = new_state(seed)
    for p in state.model.parameters():
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    state.step = 5
    return state


def moments(state):
    entries = state.optimizer.state_dict()["state"].values()
    return [t for entry in entries for t in entry.values()]


@contextmanager
def no_space():
    """The system refuses files of more than 20 kB, the tests' own log among them: keep it short."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_everything_comes_back(tmp_path):
    saved, loaded = stepped(), new_state(seed=1)
    # What only a pretraining module has, such as a queue.
    for state, value in ((saved, 2.0), (loaded, 0.0)):
        state.model.register_buffer("queue", torch.full((3,), value))
    load_checkpoint(loaded, save_checkpoint(saved, tmp_path, keep=1))
    assert loaded.step == 5
    assert torch.equal(loaded.model.queue, saved.model.queue)
    for a, b in ((saved.model, loaded.model), (saved.average, loaded.average)):
        assert all(torch.equal(t, b.state_dict()[k]) for k, t in a.state_dict().items())
    assert all(map(torch.equal, moments(saved), moments(loaded)))


def test_only_the_newest_are_kept(tmp_path):
    state = stepped()
    for step in (2, 9, 10, 100):
        state.step = step
        save_checkpoint(state, tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_old_checkpoint_alone(tmp_path):
    state = stepped()
    (tmp_path / "step-00000001").mkdir()
    expected = pytest.raises(CheckpointError, match=r"could not write .*step-00000005")
    with expected, no_space():
        save_checkpoint(state, tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".step-00000003.partial").mkdir()
    (tmp_path / ".step-00000001.old").mkdir()
    checkpoint = save_checkpoint(stepped(), tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [checkpoint]
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize("name", ["state.pt", "model.safetensors", "average.safetensors"])
def test_a_truncated_checkpoint_is_refused(name, tmp_path):
    checkpoint = save_checkpoint(stepped(), tmp_path, keep=1)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(new_state(), checkpoint)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    checkpoint = save_checkpoint(stepped(), tmp_path, keep=1)
    torch.save({"step": Trap()}, checkpoint / "state.pt")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        load_checkpoint(new_state(), checkpoint)
    assert not (tmp_path / "sprung").exists()
