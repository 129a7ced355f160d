"""Every shape annotation in mmlab is checked at run time while the tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from jaxtyping import install_import_hook

install_import_hook("mmlab", "beartype.beartype")


@pytest.fixture
def mmlab(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder: exit code, stdout, stderr."""
    from mmlab import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMLAB_TRACEBACK", raising=False)

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
