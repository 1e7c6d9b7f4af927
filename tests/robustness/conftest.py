"""Small stores whose every event a test chooses, and label folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import new_artifact
from ehrctx.tasks.label_sets import KIND as LABELS
from ehrctx.timelines.store import SUBJECT, Timelines


@dataclass(frozen=True)
class Record:
    """One subject: `events` are (second since the origin, its tokens), ascending."""

    subject_id: int
    events: Sequence[tuple[int, Sequence[int]]]
    born: bool = True
    static: Sequence[int] = ()
    origin: str = "1980-01-01T00:00:00"


@pytest.fixture(scope="session")
def store_of():
    """A function (the arguments of each Record) -> a store in memory that holds them."""

    def make(subjects_of_store: Sequence[dict[str, Any]]) -> Timelines:
        records = [Record(**arguments) for arguments in subjects_of_store]
        subjects = np.zeros(len(records), dtype=SUBJECT)
        tokens, seconds, event, offsets = [], [], [], [0]
        for i, record in enumerate(records):
            origin = np.datetime64(record.origin, "us")
            subjects[i] = (record.subject_id, "held_out", origin, record.born, len(record.static))
            rows = [(0, number, token) for number, token in enumerate(record.static)]
            for number, (second, of_event) in enumerate(record.events, start=len(record.static)):
                rows += [(second, number, token) for token in of_event]
            seconds += [s for s, _, _ in rows]
            event += [e for _, e, _ in rows]
            tokens += [t for _, _, t in rows]
            offsets.append(len(tokens))
        return Timelines(
            path=Path("in memory"),
            tokens=np.array(tokens, dtype=np.uint16),
            seconds=np.array(seconds, dtype=np.uint32),
            event=np.array(event, dtype=np.uint32),
            offsets=np.array(offsets, dtype=np.int64),
            subjects=subjects,
            manifest={"facts": {"vocabulary_size": 100}},
        )

    return make


@pytest.fixture(scope="session")
def write_label_folder():
    """A function (folder, frames by task) -> a folder of labels."""

    def write(folder: Path, frames: dict[str, pl.DataFrame]) -> Path:
        settings = {"tasks": [{"task": task} for task in frames]}
        with new_artifact(folder, LABELS, settings, {}, {}) as partial:
            for task, frame in frames.items():
                frame.write_parquet(partial / f"{task}.parquet")
        return folder

    return write
