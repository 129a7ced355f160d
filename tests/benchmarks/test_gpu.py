"""The script for CUDA machines, tried where there is none."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPT.parent / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [
        ("b c (rows p) (columns q) -> b (rows columns) (c p q)", {"p": 2, "q": 3}),
        ("b (rows columns) (c p q) -> b c (rows p) (columns q)", {"rows": 2, "p": 4, "q": 3}),
        ("b t (heads d) -> b heads t d", {"heads": 3}),
        ("b heads t d -> b t (heads d)", {}),
    ],
)
def test_the_stand_in_rearranges_as_einops_does(pattern, sizes):
    shape = {"b c": (2, 3, 4, 6), "b (": (2, 4, 24), "b t": (2, 4, 6), "b h": (2, 3, 4, 2)}
    x = torch.randn(next(s for start, s in shape.items() if pattern.startswith(start)))
    if "(c p q)" in pattern and pattern.startswith("b (rows"):
        sizes = {**sizes, "c": 2}
    assert torch.equal(
        load("standins").rearrange(x, pattern, **sizes), rearrange(x, pattern, **sizes)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_it_says_that_there_is_no_gpu():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "There is no CUDA device here: nothing was measured.\n"


def test_an_unknown_system_is_named():
    arguments = [sys.executable, SCRIPT, "--device", "cpu", "--systems", "vot"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1 and "unknown system 'vot'; there are vit" in done.stderr


@pytest.mark.slow
def test_it_runs_on_the_cpu_without_jaxtyping_and_einops(tmp_path):
    blocked = "import sys, runpy\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("jaxtyping", "einops", "safetensors")
    )
    target = tmp_path / "gpu.json"
    arguments = ["gpu.py", "--device", "cpu", "--systems", "vit", "--json", str(target)]
    code = f"{blocked}sys.argv = {arguments!r}\n"
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(target.read_text())
    assert found["stand_ins"] == ["jaxtyping", "einops"]
    row = found["systems"]["vit-mini"]
    assert row["verdict"] == "right" and row["step_ms"] > row["forward_ms"] > 0


def test_a_wrong_result_is_reported(monkeypatch):
    sys.path.insert(0, str(SCRIPT.parent))
    gpu = load("gpu")
    case = next(case for case in gpu.CASES if case.mini)
    monkeypatch.setattr(gpu.torch, "compile", lambda encode: lambda *given: encode(*given) + 1)
    monkeypatch.setattr(gpu, "measure", lambda *given: {})
    assert gpu.examine(case, "cpu", peak=1e12)["verdict"] == "WRONG: compiled"
