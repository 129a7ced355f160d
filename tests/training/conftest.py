import pytest

from mmlab import cli


@pytest.fixture
def mmlab(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMLAB_TRACEBACK", raising=False)

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
