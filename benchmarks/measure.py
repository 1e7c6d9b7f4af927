"""How every benchmark measures: variants interleaved in one process, medians, peak memory, one JSON object per line.

On one thread of the CPU, or on a GPU: there, a run ends when the GPU has done it, and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

Variants = dict[str, Callable[[], object]]


class Options(NamedTuple):
    quick: bool
    device: str


def options(description: str | None, runs_on_gpu: bool = True) -> Options:
    """What the command line says; without `runs_on_gpu`, what is measured runs on the CPU alone."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: under a minute")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
        help="where models and operators are measured (default: a GPU, if there is one)",
    )  # fmt: skip
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device = asked.device if runs_on_gpu else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            parser.error("no GPU that torch can use is here; leave out --device")
        torch.cuda.init()
    return Options(asked.quick, device)


def _whole(run: Callable[[], object]) -> None:
    """`run`, and what it has given a GPU to do."""
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def that_fit(variants: Variants) -> Variants:
    """Without those that a GPU has not the memory for; a CPU is not asked."""
    if not torch.cuda.is_initialized():
        return variants
    fitting: Variants = {}
    for name, run in variants.items():
        with suppress(torch.OutOfMemoryError):
            _whole(run)
            fitting[name] = run
        gc.collect()
        torch.cuda.empty_cache()
    return fitting


def medians(variants: Variants, repeats: int, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each variant. They take turns, so that a slow minute of the machine hits all of them."""
    if warm_up:
        for run in variants.values():
            _whole(run)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            started = time.perf_counter()
            _whole(run)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def trained(operator: Callable[..., Any], leaves: list[Any], *others: Any) -> Callable[[], None]:
    """Forward and backward of `operator` (leaves, others) -> tensor, whose sum is the loss."""

    def run() -> None:
        operator(*leaves, *others).sum().backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def _memory_mib(name: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (the most since the last reset) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def peak_mib(run: Callable[[], object]) -> float:
    """The most that `run` adds to the process's resident memory (Linux with glibc), or to what a GPU has given out."""
    _whole(run)  # what it allocates once for all is not its peak
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        _whole(run)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _memory_mib("VmRSS")
    run()
    return max(0.0, _memory_mib("VmHWM") - before)


def line(
    benchmark: str,
    case: str,
    unit: str,
    ours: float,
    baseline: float | None,
    baseline_name: str,
    repeats: int,
    *,
    more_is_better: bool,
    ours_peak_mib: float | None = None,
    baseline_peak_mib: float | None = None,
) -> None:
    """Prints one result; `ratio` is how many times better ours is. A baseline that did not run is None."""
    ratio = None if baseline is None else ours / baseline if more_is_better else baseline / ours
    found = {
        "benchmark": benchmark,
        "case": case,
        "ours": float(f"{ours:.4g}"),
        "baseline": None if baseline is None else float(f"{baseline:.4g}"),
        "unit": unit,
        "ratio": None if ratio is None else float(f"{ratio:.3g}"),
        "ours_peak_mib": None if ours_peak_mib is None else round(ours_peak_mib),
        "baseline_peak_mib": None if baseline_peak_mib is None else round(baseline_peak_mib),
        "baseline_name": baseline_name,
        "repeats": repeats,
        "device": torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu",
    }
    print(json.dumps(found), flush=True)


def compare(
    benchmark: str, case: str, ours: Variants, baselines: Variants, repeats: int, *, warm_up: bool = True
) -> None:
    """Milliseconds and peak memory of each of ours against each baseline, all in turns."""
    fitting = that_fit(ours | baselines)
    took = medians(fitting, repeats, warm_up)
    peaks = {name: peak_mib(run) for name, run in fitting.items()}
    for mine in (name for name in ours if name in fitting):
        for name in baselines:
            line(
                benchmark, case if len(ours) == 1 else f"{mine}, {case}", "ms", 1e3 * took[mine],
                1e3 * took[name] if name in fitting else None, name, repeats, more_is_better=False,
                ours_peak_mib=peaks[mine], baseline_peak_mib=peaks.get(name),
            )  # fmt: skip
