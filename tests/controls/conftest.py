"""Folders of predictions, truth, properties and token losses whose every number a test chooses."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import new_artifact
from ehrctx.probe.predict import KIND as PREDICTED
from ehrctx.probe.predict import PREDICTIONS, PREDICTIONS_FILE
from ehrctx.robustness.progression import KIND as LOSSES
from ehrctx.robustness.properties import KIND as PROPERTIES_KIND
from ehrctx.robustness.properties import PROPERTIES

TIME = datetime(2020, 1, 1, 23, 59)


def times_of(n: int, days: np.ndarray | None) -> list[datetime]:
    """TIME, or so many days after it."""
    return [TIME + timedelta(days=int(day)) for day in (np.zeros(n) if days is None else days)]


@pytest.fixture(scope="session")
def write_predictions():
    """A function (folder, model, task -> (y, p)) -> a folder of predictions, all held out.

    Label i is subject i's, at TIME, where `days` after it and `subjects` do not say otherwise.
    """

    def write(
        folder: Path,
        model: str,
        tasks: dict[str, tuple[np.ndarray, np.ndarray]],
        days: np.ndarray | None = None,
        subjects: np.ndarray | None = None,
    ) -> Path:
        frames = [
            pl.DataFrame(
                {
                    "task": task,
                    "model": model,
                    "head": "logistic_regression",
                    "k": "all",
                    "replicate": 0,
                    "subject_id": np.arange(len(y)) if subjects is None else subjects,
                    "prediction_time": times_of(len(y), days),
                    "split": "held_out",
                    "y": y,
                    "p": p,
                },
                schema=PREDICTIONS,
            )
            for task, (y, p) in tasks.items()
        ]
        with new_artifact(folder, PREDICTED, {"model": model}, {}, {}) as partial:
            pl.concat(frames).write_parquet(partial / PREDICTIONS_FILE)
        return folder

    return write


@pytest.fixture(scope="session")
def write_truth():
    """A function (folder, task, probability, without the cause, levels by subject) -> simulated events' truth alone.

    `days` and `subjects` as in `write_predictions`.
    """

    def write(
        folder: Path,
        task: str,
        probability: np.ndarray,
        without: np.ndarray,
        level: np.ndarray | None = None,
        days: np.ndarray | None = None,
        subjects: np.ndarray | None = None,
    ) -> Path:
        n = len(probability)
        labels = pl.DataFrame(
            {
                "task": [task] * n,
                "subject_id": np.arange(n) if subjects is None else subjects,
                "prediction_time": times_of(n, days),
                "probability": probability,
                "probability_without_cause": without,
            },
            schema_overrides={"prediction_time": pl.Datetime("us")},
        )
        subjects = pl.DataFrame({"subject_id": np.arange(n), "level": level if level is not None else np.zeros(n)})
        for name, table in (("labels", labels), ("subjects", subjects)):
            (folder / "truth" / name).mkdir(parents=True)
            table.write_parquet(folder / "truth" / name / "00000.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def write_properties():
    """A function (folder, property -> value per subject) -> a folder of properties; all others are 0."""

    def write(folder: Path, values: dict[str, np.ndarray]) -> Path:
        n = len(next(iter(values.values())))
        # each subject twice: the later time counts
        columns = {name: np.zeros(2 * n) for name in PROPERTIES}
        columns |= {name: np.repeat(own, 2) * np.tile([100.0, 1.0], n) for name, own in values.items()}
        columns |= {
            "subject_id": np.repeat(np.arange(n), 2),
            "prediction_time": [TIME + timedelta(days=d) for _ in range(n) for d in (0, 1)],
        }
        frame = pl.DataFrame(columns).select(pl.col(name).cast(dtype) for name, dtype in PROPERTIES.items())
        with new_artifact(folder, PROPERTIES_KIND, {}, {}, {}) as partial:
            frame.write_parquet(partial / "properties.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def write_losses():
    """A function (folder, losses float64[subjects, positions], tokens per subject: all) -> a folder of token losses."""

    def write(folder: Path, losses: np.ndarray, tokens: np.ndarray | None = None) -> Path:
        n, length = losses.shape
        frame = pl.DataFrame(
            {
                "subject_id": np.repeat(np.arange(n), length),
                "position": np.tile(np.arange(1, length + 1), n),
                "repeat": np.zeros(n * length, dtype=bool),
                "loss": losses.ravel().astype(np.float32),
            }
        )
        if tokens is not None:
            frame = frame.filter(pl.col("position") <= pl.Series(np.repeat(tokens, length)))
        with new_artifact(folder, LOSSES, {"model": "llama-tiny-512"}, {}, {}) as partial:
            frame.write_parquet(partial / "losses.parquet")
        return folder

    return write
