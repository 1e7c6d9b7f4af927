"""`ehrctx score`: predictions of all models -> tidy scores, paired differences, label counts, model table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import fingerprint, new_file
from ehrctx.errors import InputError
from ehrctx.events.meds import SPLITS
from ehrctx.events.splits import read_splits
from ehrctx.pretrain.trained import trained_model
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.statistics import SCORES, interval, scores, subject_draws
from ehrctx.study import Privacy, Statistics
from ehrctx.tasks.label_sets import read_labels

EVALUATED = "held_out"
KEYS = ["task", "model", "head", "k", "replicate"]


def mask(count: pl.Expr, privacy: Privacy) -> pl.Expr:
    """A count as text; one of few people as '<10'. Zero is shown: it is nobody."""
    small = (count > 0) & (count < privacy.minimum_count)
    return pl.when(small).then(pl.lit(f"<{privacy.minimum_count}")).otherwise(count.cast(pl.String))


def score_tables(predictions: Sequence[pl.DataFrame], statistics: Statistics) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores of each model and paired differences of each pair of models, on the held-out split, with intervals.

    Scores: KEYS, score, value, lower, upper, n, n_positive, n_subjects. Differences: the same with `reference`; value
    is the model's score minus the reference's (for Brier, less is better).
    """
    held_out = pl.concat(list(predictions)).filter(pl.col("split") == EVALUATED)
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for (task,), of_task in held_out.group_by(["task"], maintain_order=True):
        models = of_task.partition_by("model", "head", "k", "replicate", maintain_order=True)
        key = ["subject_id", "prediction_time", "y"]
        first = models[0].sort(key)
        y, subjects = first["y"].to_numpy(), first["subject_id"].to_numpy()
        draws = subject_draws(subjects, statistics)
        counts = {"n": len(y), "n_positive": int(y.sum()), "n_subjects": len(np.unique(subjects))}
        replicates, points = [], []
        for frame in models:
            ordered = frame.sort(key)
            if not ordered.select(key).equals(first.select(key)):
                raise InputError(f"the models predicted different labels of {task!r}. Run the probes again.")
            p = ordered["p"].to_numpy()
            points.append(scores(y, p, np.ones((1, len(y))))[0])
            replicates.append(scores(y, p, draws))
        ids = [frame.select(KEYS).row(0, named=True) for frame in models]
        for identity, point, replicate in zip(ids, points, replicates, strict=True):
            for s, name in enumerate(SCORES):
                lower, upper = interval(replicate[:, s], statistics.level)
                rows.append(identity | {"score": name, "value": point[s], "lower": lower, "upper": upper} | counts)
        for a, b in itertools.permutations(range(len(ids)), 2):
            for s, name in enumerate(SCORES):
                lower, upper = interval(replicates[a][:, s] - replicates[b][:, s], statistics.level)
                value = points[a][s] - points[b][s]
                differences.append(
                    ids[a]
                    | {"reference": ids[b]["model"], "score": name, "value": value, "lower": lower, "upper": upper}
                    | counts
                )
    numbers = {"value": pl.Float64, "lower": pl.Float64, "upper": pl.Float64}
    numbers |= {"n": pl.Int64, "n_positive": pl.Int64, "n_subjects": pl.Int64}  # type: ignore[dict-item]
    identity_schema = {**dict.fromkeys(KEYS, pl.String), "replicate": pl.Int64}
    return (
        pl.DataFrame(rows, schema={**identity_schema, "score": pl.String, **numbers}),
        pl.DataFrame(differences, schema={**identity_schema, "reference": pl.String, "score": pl.String, **numbers}),
    )


def label_table(
    labels: dict[str, pl.DataFrame], splits: pl.DataFrame, estimable: dict[str, str | None]
) -> pl.DataFrame:
    """(task, split, n, n_positive, n_subjects, note); the note says why a task has no scores."""
    rows = []
    for task, frame in labels.items():
        placed = frame.join(splits, on="subject_id", how="left")
        for split in SPLITS:
            part = placed.filter(pl.col("split") == split)
            rows.append(
                {
                    "task": task,
                    "split": split,
                    "n": part.height,
                    "n_positive": int(part["boolean_value"].sum()),
                    "n_subjects": part["subject_id"].n_unique(),
                    "note": estimable.get(task) or "",
                }
            )
    return pl.DataFrame(rows)


def model_table(folders: Sequence[Path]) -> pl.DataFrame:
    """(model, arch, context, parameters, tokens, seconds, tokens_per_second, real_token_share, …) of trained models."""
    columns = (
        "arch",
        "context",
        "parameters",
        "tokens",
        "seconds",
        "tokens_per_second",
        "real_token_share",
        "subjects",
    )
    rows = []
    for folder in folders:
        model, facts = trained_model(folder)
        rows.append(
            {"model": model}
            | {c: facts[c] for c in (*columns, "passes", "device")}
            | {"validation_loss": facts["validation"][-1][1]}
        )
    return pl.DataFrame(rows)


def write_scores(
    predictions: Sequence[Path],
    models: Sequence[Path],
    labels_folder: Path,
    splits_file: Path,
    statistics: Statistics,
    privacy: Privacy,
    out: Path,
) -> pl.DataFrame:
    """Writes scores.csv, differences.csv, labels.csv, models.csv and provenance.json to `out`; returns the scores."""
    read = [read_predictions(folder) for folder in predictions]
    table, differences = score_tables([frame for _, frame, _ in read], statistics)
    reasons = {task: fact.get("not_estimable") for _, _, facts in read for task, fact in facts.items()}
    splits = read_splits(splits_file)
    counted = label_table(read_labels(labels_folder), splits, reasons)
    frames = {"scores": table, "differences": differences, "labels": counted, "models": model_table(models)}
    for name, frame in frames.items():
        counts = [c for c in ("n", "n_positive", "n_subjects", "subjects") if c in frame.columns]
        with new_file(Path(out) / f"{name}.csv") as partial:
            frame.with_columns([mask(pl.col(c), privacy).alias(c) for c in counts]).write_csv(
                partial, float_precision=6
            )
    provenance = {
        "statistics": statistics.model_dump(),
        "inputs": {
            f"{p.parent.name}/{p.name}": fingerprint(p)
            for p in (*predictions, *models, Path(labels_folder), Path(splits_file))
        },
    }
    with new_file(Path(out) / "provenance.json") as partial:
        partial.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    return table
