"""Every system on a CUDA device: is it right, how fast is it, how much memory does it take?

    python benchmarks/gpu.py [--systems vit clip] [--minutes 7] [--json FILE]

It needs torch and little else, and ends within ``--minutes``: systems that no longer fit are named
and left out. Four questions, each answered beside its yardstick:

- right? The outputs on the device, in float32, in bfloat16 and compiled, against those of the same
  weights on the CPU in float32; the largest difference in units of their standard deviation.
- fast? Medians of a forward pass and of a training step in bfloat16, and the share of the matrix
  product peak that was measured on this device just before.
- big? The greatest memory during the training step.

``--device cpu`` tries the script itself, at mini sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import standins  # noqa: E402 - found by the line above

REPLACED = standins.install()

from cases import CASES, Case  # noqa: E402 - mmlab may need the stand-ins

# Largest differences in standard deviations of the output. bfloat16 keeps 8 bits: 0.4 % a number.
TOLERANCES = {"fp32": 1e-3, "bf16": 1e-1, "compiled": 1e-3}
ROUNDS, WARM_UP = 10, 3


@dataclass(frozen=True)
class Clock:
    """What is left of the time that was asked for."""

    ends: float

    @classmethod
    def start(cls, minutes: float) -> Clock:
        return cls(time.monotonic() + 60 * minutes)

    def left(self) -> float:
        return self.ends - time.monotonic()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(run: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """The median time of ``run`` after some unmeasured calls."""
    times = []
    for number in range(WARM_UP + rounds):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        if number >= WARM_UP:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def matmul_peak(device: str) -> float:
    """FLOP/s of the best of three sizes of square bfloat16 products."""
    best = 0.0
    for side in (4096, 8192, 16384) if device == "cuda" else (256,):
        a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
        best = max(best, 2 * side**3 / median_seconds(lambda a=a, b=b: a @ b, device))
    return best


def redraw(module: torch.nn.Module) -> None:
    """Fresh numbers everywhere: a zero head or position table would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = 0.02 if parameter.ndim > 1 else 0.1
        drawn = torch.randn(parameter.shape, generator=generator) * spread
        parameter.data.add_(drawn.to(parameter))


def largest_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """In standard deviations of what is wanted; infinite where a number is no number."""
    difference = (found.float().cpu() - wanted).abs().max() / wanted.std()
    return difference.item() if torch.isfinite(difference) else float("inf")


@torch.no_grad()
def check(case: Case, device: str) -> dict[str, float]:
    """The differences from the CPU in float32."""
    torch.manual_seed(0)
    network = case.network().eval()
    redraw(network)
    inputs = case.inputs(2, torch.Generator().manual_seed(1))
    wanted = case.encode(network, inputs)
    network, inputs = network.to(device), to_device(inputs, device)
    found = {"fp32": case.encode(network, inputs)}
    with torch.autocast(device, torch.bfloat16):
        found["bf16"] = case.encode(network, inputs)
    torch.compiler.reset()
    found["compiled"] = torch.compile(case.encode)(network, inputs)
    return {name: largest_difference(output, wanted) for name, output in found.items()}


def measure(case: Case, device: str, peak: float) -> dict[str, float]:
    """Times, memory, and how near the forward pass and the training step come to the peak."""
    batch = case.batch_size if device == "cuda" else 2
    network = case.network().to(device)
    inputs = to_device(case.inputs(batch, torch.Generator().manual_seed(1)), device)
    flops = forward_flops(case, batch)
    forward = median_seconds(lambda: _forward(case, network.eval(), inputs, device), device)
    pretraining = case.pretraining(network).to(device).train()
    optimizer = torch.optim.AdamW(pretraining.parameters(), lr=1e-4, fused=True)
    targets = to_device(case.batch(batch, torch.Generator().manual_seed(2)), device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = median_seconds(lambda: _step(pretraining, targets, optimizer, device), device)
    return {
        "batch": batch,
        "gflops_a_sample": flops / batch / 1e9,
        "forward_ms": 1e3 * forward,
        "forward_a_second": batch / forward,
        "forward_share_of_peak": flops / forward / peak,
        "step_ms": 1e3 * step,
        "step_a_second": batch / step,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
    }


@torch.no_grad()
def _forward(case: Case, network, inputs, device: str) -> None:
    with torch.autocast(device, torch.bfloat16):
        case.encode(network, inputs)


def _step(pretraining, batch, optimizer, device: str) -> None:
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16):
        loss = sum(pretraining.losses(batch).values())
    loss.backward()
    optimizer.step()


def forward_flops(case: Case, batch: int) -> int:
    """Counted by torch on shapes alone: two a multiplication with its addition."""
    with torch.device("meta"):
        # The counter stumbles over a view of what could have a gradient, such as BLIP-2's queries.
        network = case.network().eval().requires_grad_(False)
    inputs = to_device(case.inputs(batch, torch.Generator().manual_seed(1)), "meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.encode(network, inputs)
    return counter.get_total_flops()


def to_device(inputs: dict, device: str) -> dict:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def examine(case: Case, device: str, peak: float) -> dict[str, object]:
    """One row of the report. A system that fails is reported, and the others go on."""
    try:
        differences = check(case, device)
        wrong = [name for name, value in differences.items() if not value < TOLERANCES[name]]
        verdict = f"WRONG: {', '.join(wrong)}" if wrong else "right"
        return {"verdict": verdict, "differences": differences, **measure(case, device, peak)}
    except Exception as error:
        # Whatever it is, the other systems should still be examined.
        return {"verdict": f"FAILED: {type(error).__name__}: {str(error)[:200]}"}


def shown(name: str, row: dict[str, object]) -> str:
    if "step_ms" not in row:
        return f"{name:24s} {row['verdict']}"
    return (
        f"{name:24s} {row['verdict']:8s} fp32 {row['differences']['fp32']:.0e}  "
        f"bf16 {row['differences']['bf16']:.0e}  compiled {row['differences']['compiled']:.0e}  "
        f"forward {row['forward_a_second']:8.0f}/s ({row['forward_share_of_peak']:4.0%} of peak)  "
        f"step {row['step_a_second']:8.0f}/s  {row['memory_gib']:5.1f} GiB"
    )


def report(cases: list[Case], device: str, minutes: float) -> dict[str, object]:
    """Examine the cases one after another while there is time."""
    clock = Clock.start(minutes)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    peak = matmul_peak(device)
    print(f"{device_name(device)}: matrix products at {peak / 1e12:.3g} TFLOP/s in bfloat16")
    rows, slowest = {}, 0.0
    for case in cases:
        if clock.left() < 1.2 * slowest:
            rows[case.name] = {"verdict": "left out: no time"}
        else:
            started = time.monotonic()
            rows[case.name] = examine(case, device, peak)
            slowest = max(slowest, time.monotonic() - started)
        print(shown(case.name, rows[case.name]), flush=True)
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "stand_ins": REPLACED,
        "peak_tflops": peak / 1e12,
        "systems": rows,
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def chosen(systems: list[str] | None, device: str) -> list[Case]:
    """The cases of the systems asked for, at paper size on a GPU and at mini size elsewhere."""
    known = list(dict.fromkeys(case.system for case in CASES))
    unknown = [system for system in systems or [] if system not in known]
    if unknown:
        sys.exit(f"unknown system {unknown[0]!r}; there are {', '.join(known)}")
    return [
        case
        for case in CASES
        if case.mini == (device != "cuda") and (not systems or case.system in systems)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", help="which systems; all without it")
    parser.add_argument("--minutes", type=float, default=7, help="time to spend")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.", file=sys.stderr)
        return 2
    cases = chosen(arguments.systems, arguments.device)
    found = report(cases, arguments.device, arguments.minutes)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0 if all(row["verdict"] == "right" for row in found["systems"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
