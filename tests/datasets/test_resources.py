import pytest

from mmlab.datasets import resources
from mmlab.datasets.resources import data_folder, read_data


def test_the_emoji_set_is_found():
    assert (data_folder("emoji") / "concepts.json").is_file()
    assert read_data("emoji", "concepts.json").startswith(b"{")


def test_the_packaged_folder_comes_before_the_checkout(tmp_path, monkeypatch):
    packaged = tmp_path / "_data" / "emoji"
    packaged.mkdir(parents=True)
    (packaged / "concepts.json").write_text("packaged")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert read_data("emoji", "concepts.json") == b"packaged"


def test_missing_data_is_one_clear_error():
    with pytest.raises(
        FileNotFoundError, match=r"data folder 'sounds' is neither in .* `make data`"
    ):
        data_folder("sounds")
    with pytest.raises(FileNotFoundError, match=r"data folder 'emoji' lacks 'apple\.webp'"):
        read_data("emoji", "apple.webp")
