"""The positive control: does a model whose context reaches the planted cause find it, and no other?

All scores are AUROCs on the same held-out labels, beside that of the oracle, which knows each label's true probability,
and of what one could tell at best without knowing who has the cause. Each subject has one label, the first: from the
first discharge the cause lies as far as was planted, from the next ones any distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.statistics import SCORES, Draws, Intervals
from ehrctx.study import Statistics

ORACLE, BLIND = "oracle", "oracle without the cause"
KEYS = ["subject_id", "prediction_time"]


def read_truth(events: Path, name: str) -> pl.DataFrame:
    """A table of the truth beside simulated events: subjects, diseases or labels."""
    files = sorted((Path(events) / "truth" / name).glob("*.parquet"))
    if not files:
        raise InputError(f"{events} holds no truth/{name}: `ehrctx simulate` writes it. Simulate the cohort again.")
    return pl.concat([pl.read_parquet(file) for file in files])


def held_out(predictions: Path, task: str) -> tuple[str, pl.DataFrame]:
    """A model's id, and (subject_id, prediction_time, y, p) of its logistic regression on first held-out labels."""
    model, found, _ = read_predictions(predictions)
    chosen = found.filter(
        pl.col("task") == task,
        pl.col("split") == "held_out",
        pl.col("head") == "logistic_regression",
        pl.col("k") == "all",
    )
    labels = chosen.select(*KEYS, "y", "p").collect().sort(KEYS)
    return model, labels.unique("subject_id", keep="first", maintain_order=True)


@dataclass(frozen=True)
class Found:
    """AUROCs of one arm by model, and of each bootstrap replicate; all on the same labels of `subjects` subjects."""

    values: dict[str, float]
    replicates: dict[str, np.ndarray]
    subjects: int


def aurocs(events: Path, predictions: Sequence[Path], task: str, statistics: Statistics) -> Found:
    """The AUROC of every model on the held-out labels of `task`, and of the oracle with and without the cause.

    Raises InputError where the oracle itself may be at chance: of nothing, no share can be recovered.
    """
    auroc = SCORES.index("auroc")
    truth = read_truth(events, "labels").filter(task=task)
    tables: dict[str, pl.DataFrame] = dict(held_out(folder, task) for folder in predictions)
    labels = next(iter(tables.values()))
    for column, name in (("probability", ORACLE), ("probability_without_cause", BLIND)):
        joined = labels.join(truth.select(*KEYS, column), on=KEYS, how="left", maintain_order="left")
        tables[name] = joined.select(*KEYS, "y", p=column)
    subjects = labels["subject_id"].to_numpy()
    draws = Draws.of(subjects, statistics)
    values, replicates = {}, {}
    for name, table in tables.items():
        if not table.select(*KEYS, "y").equals(labels.select(*KEYS, "y")) or table["p"].null_count():
            raise InputError(f"{events}: {name} predicts other labels of {task!r} than the first model. Run again.")
        one, drawn = draws.scores(table["y"].to_numpy(), table["p"].to_numpy(), subjects)
        values[name], replicates[name] = float(one[auroc]), drawn[:, auroc]
    intervals = Intervals(statistics.level)
    n = intervals.subjects(labels["y"].to_numpy(), subjects)
    if not intervals.of(replicates[ORACLE], n)[0] > 0.5:
        raise InputError(
            f"{events}: the oracle itself is not surely better than chance on {task!r}, with {n} held-out subjects of "
            "the rarer class. Simulate more subjects, or a stronger cause."
        )
    return Found(values, replicates, n)


def recovered(found: Found, model: str) -> tuple[float, np.ndarray]:
    """The share of the oracle's AUROC above .5 that a model reaches, and that of each replicate."""
    return (
        (found.values[model] - 0.5) / (found.values[ORACLE] - 0.5),
        (found.replicates[model] - 0.5) / (found.replicates[ORACLE] - 0.5),
    )


def difference(one: Found, model: str, other: Found, against: str) -> tuple[float, np.ndarray]:
    """The difference of two AUROCs, paired where both rest on the same labels (and so on the same draws)."""
    return one.values[model] - other.values[against], one.replicates[model] - other.replicates[against]
