"""`ehrctx simulate`: a small seeded MEDS cohort whose subjects `life` lives, with the planted truth beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx import __version__
from ehrctx.artifacts import new_artifact
from ehrctx.events.simulate.clinic import DESCRIPTIONS
from ehrctx.events.simulate.life import live
from ehrctx.events.splits import hash_splits
from ehrctx.events.writer import write_metadata
from ehrctx.study import HashSplits, Simulation

SUBJECTS_PER_SHARD = 1000
SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))


def _shard(subjects: range, seed: int) -> tuple[pl.DataFrame, list[bool]]:
    columns: dict[str, list] = {
        k: [] for k in ("subject_id", "time", "code", "numeric_value", "unit", "text_value", "visit_id")
    }
    episodes = []
    for subject in subjects:
        rows, episode = live(np.random.default_rng([seed, subject]))
        episodes.append(episode)
        for row in rows:
            for name, item in zip(columns, (subject + 1, *row), strict=True):
                columns[name].append(item)
    times = np.array([np.datetime64("NaT") if t is None else t for t in columns.pop("time")], dtype="datetime64[us]")
    frame = pl.DataFrame(
        columns,
        schema={
            "subject_id": pl.Int64,
            "code": pl.String,
            "numeric_value": pl.Float32,
            "unit": pl.String,
            "text_value": pl.String,
            "visit_id": pl.Int64,
        },
    ).with_columns(time=pl.Series(times))
    ordered = frame.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    return ordered.select("subject_id", "time", pl.exclude("subject_id", "time")), episodes


def _shards(simulation: Simulation) -> Iterator[tuple[pl.DataFrame, list[bool]]]:
    for first in range(0, simulation.subjects, SUBJECTS_PER_SHARD):
        yield _shard(range(first, min(first + SUBJECTS_PER_SHARD, simulation.subjects)), simulation.seed)


def simulate(simulation: Simulation, out: Path) -> dict[str, int]:
    """Writes the cohort to the folder `out` as MEDS 0.4, with `truth/subjects.parquet` (subject_id, episode) beside it.

    Returns the number of subjects and events.
    """
    facts = {"subjects": simulation.subjects, "events": 0}
    used: set[str] = set()
    truth: list[bool] = []
    with new_artifact(out, "events", simulation.model_dump(), {}, facts) as folder:
        for name in ("data", "truth"):
            (folder / name).mkdir()
        for index, (events, episodes) in enumerate(_shards(simulation)):
            events.write_parquet(folder / "data" / f"{index:04d}.parquet")
            used.update(events["code"].unique())
            truth += episodes
            facts["events"] += events.height
        ids = np.arange(1, simulation.subjects + 1)
        codes = pl.DataFrame({"code": sorted(used)}).with_columns(
            description=pl.col("code").replace_strict(DESCRIPTIONS, default=None, return_dtype=pl.String),
            parent_codes=pl.lit(None, pl.List(pl.String)),
        )
        about = {"dataset_name": "ehrctx simulated cohort", "dataset_version": __version__}
        write_metadata(folder, about, codes, hash_splits(ids, SPLITS))
        pl.DataFrame({"subject_id": ids, "episode": truth}).write_parquet(folder / "truth" / "subjects.parquet")
    return facts
