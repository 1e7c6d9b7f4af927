"""Small random stores, untrained models as artefacts, and label folders, for the tests of the probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ehrctx.artifacts import new_artifact
from ehrctx.models.model import build_model, save_model
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.probe.groups import KIND as GROUPS
from ehrctx.study import ModelId
from ehrctx.tasks.history import FILE as HISTORY_FILE
from ehrctx.tasks.label_sets import KIND as LABELS
from ehrctx.tasks.label_sets import prediction_times, read_labels
from ehrctx.timelines.store import SUBJECT, Timelines

torch.set_num_threads(1)
SPECIAL, VOCABULARY = 7, 30


@pytest.fixture(scope="session")
def random_timelines():
    """A function (timed tokens by subject, seed) -> a store with 0-2 static tokens, many simultaneous events."""

    def make(timed: list[int], seed: int = 0) -> Timelines:
        rng = np.random.default_rng(seed)
        n_static = rng.integers(0, 3, size=len(timed))
        offsets = np.concatenate([[0], np.cumsum(n_static + np.array(timed))]).astype(np.int64)
        subjects = np.zeros(len(timed), dtype=SUBJECT)
        subjects["subject_id"] = 10 + 3 * np.arange(len(timed))
        subjects["split"], subjects["n_static"] = "train", n_static
        # a fraction of a second, so that rounding matters
        subjects["origin"] = np.datetime64("1950-01-01T00:00:00.250000", "us") + rng.integers(0, 10**9, len(timed))
        subjects["born"] = True
        seconds = [[0] * s + sorted(rng.integers(0, 50, size=n).tolist()) for s, n in zip(n_static, timed, strict=True)]
        flat = np.array([x for one in seconds for x in one], dtype=np.uint32)
        return Timelines(
            path=Path("in memory"),
            tokens=rng.integers(SPECIAL, VOCABULARY, size=offsets[-1]),
            seconds=flat,
            event=np.concatenate([np.arange(n) for n in np.diff(offsets)]).astype(np.uint32),
            offsets=offsets,
            subjects=subjects,
            manifest={"facts": {"vocabulary_size": VOCABULARY}},
        )

    return make


@pytest.fixture(scope="session")
def seen_tokens():
    """A function (store, position, time) -> the tokens that may be seen then, event by event, from the definition."""

    def seen(store: Timelines, position: int, time: np.datetime64) -> list[int]:
        lo, hi = int(store.offsets[position]), int(store.offsets[position + 1])
        origin, n_static = store.subjects["origin"][position], int(store.subjects["n_static"][position])
        found = []
        for i in range(lo, hi):
            happened = origin + np.timedelta64(int(store.seconds[i]), "s")
            if i - lo < n_static or happened <= time:
                found.append(int(store.tokens[i]))
        return found

    return seen


@pytest.fixture(scope="session")
def write_model():
    """A function (folder, name, timelines folder) -> an untrained model with the manifest of a trained one."""

    def write(folder: Path, name: str, timelines: Path) -> Path:
        identity = ModelId.parse(name)
        facts = {
            "arch": identity.arch, "context": identity.context, "parameters": 1, "tokens": 2, "seconds": 3.0,
            "tokens_per_second": 4.0, "real_token_share": 0.5, "subjects": 7, "passes": 1.5, "device": "cpu",
            "validation": [[1, 9.0], [2, 8.0]],
        }  # fmt: skip
        model = build_model(identity, Timelines.open(timelines).vocabulary_size, identity.seed)
        with new_artifact(folder, MODEL, {"model": name}, {"timelines": timelines}, facts) as partial:
            save_model(model, partial)
        return folder

    return write


@pytest.fixture(scope="session")
def write_groups_folder():
    """A function (folder, labels folder) -> groups of its prediction times, in which all are one age and sex."""

    def write(folder: Path, labels: Path) -> Path:
        keys = prediction_times(read_labels(labels))
        with new_artifact(folder, GROUPS, {}, {"labels": labels}) as partial:
            keys.with_columns(age=pl.lit("18-44"), sex=pl.lit("female")).write_parquet(partial / "groups.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def write_labels_folder():
    """A function (folder, frames by task) -> a folder of labels."""

    def write(folder: Path, frames: dict[str, pl.DataFrame]) -> Path:
        with new_artifact(
            folder,
            LABELS,
            {"tasks": [{"task": task} for task in frames]},
            {},
            {task: {"labels": f.height} for task, f in frames.items()},
        ) as partial:
            for task, frame in frames.items():
                frame.write_parquet(partial / f"{task}.parquet")
            never = pl.lit(False).alias("repeated")
            history = [
                frame.select(pl.lit(task).alias("task"), "subject_id", "prediction_time", never)
                for task, frame in frames.items()
            ]
            pl.concat(history, how="vertical_relaxed").write_parquet(partial / HISTORY_FILE)
        return folder

    return write
