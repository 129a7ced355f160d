"""Files of every kind, whole, damaged and hostile; all are written by the tests."""

import argparse
import contextlib
import errno
import json
import os
import pickle
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch

from mmlab.hub import CheckpointError, read_checkpoint
from mmlab.hub import files as hub_files
from mmlab.hub.files import atomic_path, write_npz, write_safetensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16)}


def write(path: Path, tensors=TENSORS) -> Path:
    """A valid file of the kind that the ending says."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path, metadata={"note": "hello"})
    elif path.suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


ENDINGS = [".safetensors", ".npz", ".pt", ".pth", ".th", ".bin", ".ckpt"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_reads_each_kind_of_file(tmp_path, ending):
    file = read_checkpoint(write(tmp_path / f"weights{ending}"))
    assert_same(file.tensors, TENSORS)
    assert file.config == {}
    assert file.metadata.get("note") == ("hello" if ending == ".safetensors" else None)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
def test_unwraps_what_training_scripts_save(tmp_path, wrapper):
    content = {wrapper: TENSORS, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "run.pth")
    assert_same(read_checkpoint(tmp_path / "run.pth").tensors, TENSORS)


def test_reads_config_json_beside_the_file_and_in_the_folder(tmp_path):
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert read_checkpoint(tmp_path).config == {"model_type": "vit"}
    assert read_checkpoint(tmp_path / "model.safetensors").config == {"model_type": "vit"}


def write_shards(folder: Path, names=("model-1.safetensors", "model-2.safetensors")) -> None:
    weight_map = dict(zip(TENSORS, names, strict=True))
    for key, name in weight_map.items():
        write(folder / name, {key: TENSORS[key]})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_reads_a_sharded_folder(tmp_path):
    write_shards(tmp_path)
    assert_same(read_checkpoint(tmp_path).tensors, TENSORS)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its shard 'model-2.safetensors'"):
        read_checkpoint(tmp_path)


def test_a_shard_without_its_key_is_named(tmp_path):
    write_shards(tmp_path)
    write(tmp_path / "model-2.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"shard 'model-2.safetensors' .* lacks 'b.c'"):
        read_checkpoint(tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shards(folder, ("model-1.safetensors", "../secret.safetensors"))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_an_error(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_one_clear_sentence(tmp_path, ending, share):
    path = write(tmp_path / f"weights{ending}", {"a": torch.randn(64, 64)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=f"weights{ending}.*damaged") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_random_damage_gives_no_other_error(tmp_path, ending):
    path = write(tmp_path / f"weights{ending}")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(len(whole), size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_checkpoint(path)


def test_damaged_bytes_inside_an_npz_are_noticed(tmp_path):
    path = write(tmp_path / "weights.npz", {"a": torch.randn(64, 64)})
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="may be truncated or damaged"):
        read_checkpoint(path)


class Malicious:
    """Unpickling an object of this class creates a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".th", ".bin", ".ckpt"])
def test_code_in_a_pickle_does_not_run(tmp_path, ending):
    path, target = tmp_path / f"weights{ending}", tmp_path / "owned"
    torch.save({"model": TENSORS, "extra": Malicious(target)}, path)
    with pytest.raises(CheckpointError, match="holds Python objects, which could run code"):
        read_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the file was harmless, so the test proved nothing"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_bare_pickle_does_not_run(tmp_path):
    path, target = tmp_path / "weights.bin", tmp_path / "owned"
    path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(CheckpointError, match="holds Python objects, which could run code"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}", b"\x80\x02}q\x00(X\xff"])
def test_damaged_pickles_never_advise_to_switch_the_protection_off(tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.bin.*damaged") as error:
        read_checkpoint(tmp_path / "weights.bin")
    assert "weights_only" not in str(error.value)


def test_code_in_an_npz_does_not_run(tmp_path):
    path, target = tmp_path / "weights.npz", tmp_path / "owned"
    np.savez(path, a=np.array([Malicious(target)], dtype=object))
    with pytest.raises(CheckpointError, match="holds Python objects, which could run code"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_single_array_under_the_name_npz_is_an_error(tmp_path):
    with open(tmp_path / "weights.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"not an .npz archive"):
        read_checkpoint(tmp_path / "weights.npz")


def test_a_file_of_another_kind_under_a_known_ending_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"weights.pt"):
        read_checkpoint(tmp_path / "weights.pt")


def test_entries_that_are_no_tensors_are_named(tmp_path):
    torch.save({"a": torch.zeros(1), "vocab_size": 7}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not all of its entries are tensors: 'vocab_size'"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="it holds a list, not a dict of tensors"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_an_empty_folder_and_an_unknown_ending_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file or folder"):
        read_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint file or folder"):
        read_checkpoint("weights/absent.safetensors")
    with pytest.raises(CheckpointError, match=r"has no weights; looked for model.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(CheckpointError, match=r"known endings are .safetensors, .npz"):
        read_checkpoint(tmp_path / "weights.onnx")


def fake_hub(monkeypatch, download):
    monkeypatch.setattr(hub_files, "hf_hub_download", download)


def test_a_hub_model_is_fetched_file_by_file(tmp_path, monkeypatch):
    write(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')

    def download(repository, name):
        assert repository == "someone/vit"
        if not (tmp_path / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(tmp_path / name)

    fake_hub(monkeypatch, download)
    file = read_checkpoint("someone/vit")
    assert_same(file.tensors, TENSORS)
    assert (file.source, file.config) == ("someone/vit", {"model_type": "vit"})


def test_a_sharded_hub_model_is_fetched(tmp_path, monkeypatch):
    write_shards(tmp_path)

    def download(repository, name):
        if not (tmp_path / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(tmp_path / name)

    fake_hub(monkeypatch, download)
    assert_same(read_checkpoint("someone/vit").tensors, TENSORS)


def test_no_network_is_one_clear_sentence(tmp_path, monkeypatch):
    """The real client, offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="the Hugging Face Hub cannot be reached") as error:
        read_checkpoint("someone/a-model-that-nobody-has")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConnectionError("connection reset"), "could not fetch config.json.*connection reset"),
        (OSError(errno.ENOSPC, "No space left on device"), "could not fetch.*No space left"),
    ],
)
def test_a_failing_download_is_one_clear_sentence(monkeypatch, failure, message):
    def download(repository, name):
        raise failure

    fake_hub(monkeypatch, download)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint("someone/vit")


@pytest.mark.parametrize("writer", ["safetensors", "npz"])
def test_what_is_written_reads_back_and_leaves_nothing_else(tmp_path, writer):
    path = tmp_path / f"out.{writer}"
    if writer == "npz":
        write_npz(path, TENSORS)
    else:
        write_safetensors(path, TENSORS, {"seed": "7"})
        assert read_checkpoint(path).metadata == {"seed": "7"}
    assert_same(read_checkpoint(path).tensors, TENSORS)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("existed", [False, True])
def test_an_interrupted_write_leaves_the_old_file_or_nothing(tmp_path, failure, existed):
    path = tmp_path / "out.bin"
    if existed:
        path.write_bytes(b"old")
    expected = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_path(path) as aside:
        aside.write_bytes(b"half")
        raise failure
    assert os.listdir(tmp_path) == (["out.bin"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_a_really_full_disk_is_one_clear_sentence(tmp_path):
    message = r"could not write .*No space left on device"
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(CheckpointError, match=message),
        atomic_path(tmp_path / "out.bin"),
    ):
        full.write(b"x")
    assert not os.listdir(tmp_path)


def test_a_missing_target_folder_is_one_clear_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not write .*absent"):
        write_safetensors(tmp_path / "absent" / "out.safetensors", TENSORS, {})


def test_npz_refuses_bfloat16(tmp_path):
    with pytest.raises(CheckpointError, match=r".npz has no bfloat16, which 'a' is"):
        write_npz(tmp_path / "out.npz", {"a": torch.zeros(2, dtype=torch.bfloat16)})
    assert not os.listdir(tmp_path)
