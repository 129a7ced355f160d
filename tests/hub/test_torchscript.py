"""TorchScript archives give their tensors, and their code is never run."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from mmlab.hub import CheckpointError, read_checkpoint
from mmlab.hub.torchscript import is_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.resolution = 224
        self.widths = [3, 4]
        self.scales = [0.5]
        self.name = "layer"

    def forward(self, x):
        return self.norm(self.linear(x)) * self.scales[0] + len(self.name)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Layer(), nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x):
        return self.layers(x) * self.scale + self.steps[:2]


def archive(path, half=True):
    network = Network()
    network = (network.half() if half else network).eval()
    torch.jit.script(network).save(str(path))
    return network


@pytest.mark.parametrize("half", [True, False])
def test_all_parameters_and_buffers_are_read(tmp_path, half):
    network = archive(tmp_path / "model.pt", half)
    tensors = read_checkpoint(tmp_path / "model.pt").tensors
    expected = network.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert all(tensors[key].dtype == expected[key].dtype for key in expected)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_traced_networks_are_read(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU())
    torch.jit.trace(network, torch.zeros(1, 3)).save(str(tmp_path / "model.pt"))
    tensors = read_checkpoint(tmp_path / "model.pt").tensors
    assert all(torch.equal(tensors[key], t) for key, t in network.state_dict().items())


def test_the_compiler_is_not_called(tmp_path, monkeypatch):
    archive(tmp_path / "model.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the code was compiled"))
    assert read_checkpoint(tmp_path / "model.pt").tensors


def replace_in_archive(path, ending, content):
    """The same archive with other bytes in one of its records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, content if name.endswith(ending) else data)


class Touch:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_code_in_the_pickle_is_refused_and_not_run(tmp_path):
    path, target = tmp_path / "model.pt", tmp_path / "touched"
    archive(path)
    replace_in_archive(path, "data.pkl", pickle.dumps(Touch(target), protocol=2))
    with pytest.raises(CheckpointError, match=r"model.pt.*asks for '.*open'; refused"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_damaged_archive_is_one_sentence(tmp_path):
    path = tmp_path / "model.pt"
    archive(path)
    replace_in_archive(path, "data.pkl", b"\x80\x02}q")
    with pytest.raises(CheckpointError, match=r"'model.pt'") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_state_dict_is_no_program(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    assert not is_torchscript(tmp_path / "a.pt")
