"""How every benchmark measures: variants interleaved in one process, medians, peak memory, one JSON object per line."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Variants = dict[str, Callable[[], object]]


def quick(description: str | None) -> bool:
    """Whether the command line says `--quick`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats: under a minute")
    return bool(parser.parse_args().quick)


def medians(variants: Variants, repeats: int, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each variant. They take turns, so that a slow minute of the machine hits all of them."""
    if warm_up:
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
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
    """How much the process's resident memory grows, at most, while `run` runs. Linux with glibc."""
    run()  # what it allocates once for all is not its peak
    gc.collect()
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
    baseline: float,
    baseline_name: str,
    repeats: int,
    *,
    more_is_better: bool,
    ours_peak_mib: float | None = None,
    baseline_peak_mib: float | None = None,
) -> None:
    """Prints one result; `ratio` is how many times better ours is."""
    found = {
        "benchmark": benchmark,
        "case": case,
        "ours": float(f"{ours:.4g}"),
        "baseline": float(f"{baseline:.4g}"),
        "unit": unit,
        "ratio": float(f"{ours / baseline if more_is_better else baseline / ours:.3g}"),
        "ours_peak_mib": None if ours_peak_mib is None else round(ours_peak_mib),
        "baseline_peak_mib": None if baseline_peak_mib is None else round(baseline_peak_mib),
        "baseline_name": baseline_name,
        "repeats": repeats,
    }
    print(json.dumps(found), flush=True)
