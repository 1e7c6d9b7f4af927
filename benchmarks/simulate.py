"""A simulated cohort, written to disk with its truth, against a simulator that draws one event at a time in Python.

The baseline draws its events from numpy's generator, keeps them as rows and writes the same columns: no clocks, no
truth, the least that any such simulator does for each event.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import line, options, peak_mib

from ehrctx.events.simulate.cohort import simulate
from ehrctx.events.simulate.parameters import parameters_of
from ehrctx.events.simulate.record import code_table

BASELINE = "a Python loop over events"


def one_at_a_time(n_events: int, folder: Path) -> None:
    """`n_events` events of 1,000 subjects, a row each, as parquet."""
    rng = np.random.default_rng(0)
    codes = code_table()["code"].to_list()
    rows = []
    time_of = 0.0
    for event in range(n_events):
        time_of += rng.exponential(1.0)
        value = float(rng.normal()) if rng.random() < 0.6 else None
        rows.append((event * 1_000 // n_events, int(time_of * 86_400e6), codes[rng.integers(len(codes))], value))
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code", "numeric_value"], orient="row")
    frame.sort("subject_id", "time").write_parquet(folder / "events.parquet")


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `run` returns, its seconds, and those of all cores together, its processes' as well."""
    started, before = time.perf_counter(), sum(os.times()[:4])
    result = run()
    return result, time.perf_counter() - started, sum(os.times()[:4]) - before


def main() -> None:
    asked = options(__doc__, runs_on_gpu=False)
    sizes = (1_000, 4_000) if asked.quick else (10_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        n = 50_000 if asked.quick else 500_000
        _, seconds, _ = timed(partial(one_at_a_time, n, out))
        baseline = n / seconds / 1e6
        for preset, subjects in (*(("published", size) for size in sizes), ("long", sizes[0] // 10)):
            parameters = parameters_of(preset, {}, "benchmark")
            for workers in (1, 2):
                cohort = out / f"{preset} {subjects} {workers}"
                facts, seconds, of_cores = timed(partial(simulate, parameters, subjects, 0, cohort, workers))
                millions = facts["events"] / 1e6
                case = f"{preset}, {subjects:,} subjects, {millions:.1f} M events, {workers} workers"
                for metric, spent in (("M events/s", seconds), ("M events per second of a core", of_cores)):
                    line("simulate", case, metric, millions / spent, baseline, BASELINE, 1, more_is_better=True)
        parameters = parameters_of("published", {}, "benchmark")
        few, many = (peak_mib(partial(simulate, parameters, n, 0, out / "memory", 1)) for n in sizes)
        case = f"published, peak memory of {sizes[1]:,} subjects against {sizes[0]:,}"
        line("simulate", case, "MiB", many, few, f"{sizes[0]:,} subjects", 1, more_is_better=False)


if __name__ == "__main__":
    main()
