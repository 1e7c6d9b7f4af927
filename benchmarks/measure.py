"""How every benchmark measures: variants interleaved in one process, medians, peak memory, one JSON object per line."""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

Variants = dict[str, Callable[[], object]]

_PAGE_MIB = 4096 / 2**20


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


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MIB


def peak_mib(run: Callable[[], object]) -> float:
    """How much the process's resident memory grows, at most, while `run` runs; sampled every 2 ms."""
    run()  # what it allocates once for all is not its peak
    before = _resident_mib()
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, _resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return highest - before


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
