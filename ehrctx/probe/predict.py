"""`ehrctx probe`: the predictions of one model (or of the count baseline) for every task of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest, require_same_input
from ehrctx.probe.counts import count_features
from ehrctx.probe.embeddings import KIND as EMBEDDINGS
from ehrctx.probe.embeddings import labelled_times, read_embeddings
from ehrctx.probe.heads import LINEAR, Features, fit_head
from ehrctx.study import Probe
from ehrctx.tasks.label_sets import read_labels
from ehrctx.timelines.store import Timelines

KIND = "predictions"
COUNTS = "counts"  # what stands for a model's name in the baselines' rows
PREDICTIONS: dict[str, Any] = {
    "task": pl.String,
    "model": pl.String,
    "head": pl.String,
    "k": pl.String,  # labels per class in few-shot learning; "all" otherwise
    "replicate": pl.Int64,
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "split": pl.String,
    "y": pl.Boolean,
    "p": pl.Float64,
}


def _not_estimable(y: dict[str, np.ndarray]) -> str:
    """Why the labels of a task (bool[n] by split) give no scores; nothing where they do."""
    classes = {split: len(np.unique(y[split])) for split in ("train", "held_out")}
    reasons = []
    for n, what in enumerate(("no labels", "one class only")):
        if splits := [split for split, found in classes.items() if found == n]:
            reasons.append(f"{what} in {' and '.join(splits)}")
    return "; ".join(reasons)


def _task_predictions(
    task: str,
    model: str,
    labels: pl.DataFrame,
    index: pl.DataFrame,
    features: Features,
    heads: Sequence[str],
    probe: Probe,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Predictions for the tuning and held-out labels of one task, and how its heads were fitted.

    `index` is (subject_id, prediction_time, split) of the rows of `features`.
    """
    placed = labels.select("subject_id", "prediction_time", y="boolean_value").join(
        index.with_row_index("row"), on=["subject_id", "prediction_time"], how="inner", maintain_order="left"
    )
    rows = {s: placed.filter(pl.col("split") == s) for s in ("train", "tuning", "held_out")}
    y = {s: frame["y"].to_numpy() for s, frame in rows.items()}
    facts: dict[str, Any] = {"without_features": labels.height - placed.height}
    if reason := _not_estimable(y):
        facts["not_estimable"] = reason
        return pl.DataFrame(schema=PREDICTIONS), facts
    x = {s: features[frame["row"].to_numpy()] for s, frame in rows.items()}
    predicted = []
    for head in heads:
        fitted = fit_head(head, x["train"], y["train"], x["tuning"], y["tuning"], probe)
        facts[head] = fitted.chosen | {"tuning_auroc": fitted.tuning_auroc, "converged": fitted.converged}
        predicted += [
            rows[s].with_columns(p=pl.Series(fitted.predict(x[s]), dtype=pl.Float64), head=pl.lit(head))
            for s in ("tuning", "held_out")
            if len(y[s])
        ]
    constants = {"task": task, "model": model, "k": "all"}
    return pl.concat(predicted).with_columns(
        *[pl.lit(v).alias(k) for k, v in constants.items()], replicate=pl.lit(0, pl.Int64)
    ).select([pl.col(c).cast(t) for c, t in PREDICTIONS.items()]), facts


def _write(
    model: str,
    index: pl.DataFrame,
    features: Features,
    labels_folder: Path,
    heads: Sequence[str],
    probe: Probe,
    out: Path,
    inputs: dict[str, Path],
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    inputs = inputs | {"labels": labels_folder}
    with new_artifact(out, KIND, {"model": model, "probe": probe.model_dump()}, inputs, facts) as folder:
        frames = []
        for task, labels in read_labels(labels_folder).items():
            frame, facts[task] = _task_predictions(task, model, labels, index, features, heads, probe)
            frames.append(frame)
        pl.concat(frames).write_parquet(folder / "predictions.parquet")
    return facts


def probe_embeddings(embeddings: Path, labels: Path, probe: Probe, out: Path) -> dict[str, Any]:
    """Fits the linear probe on a model's embeddings for every task; writes predictions.parquet to the folder `out`."""
    require_same_input(embeddings, EMBEDDINGS, "labels", labels)
    model = read_manifest(embeddings, EMBEDDINGS)["settings"]["model"]
    index, rows = read_embeddings(embeddings)
    return _write(model, index, np.asarray(rows), labels, (LINEAR,), probe, out, {"embeddings": embeddings})


def probe_counts(timelines: Path, labels: Path, probe: Probe, out: Path) -> dict[str, Any]:
    """The baselines called `counts`: `probe.baselines` on counts of tokens over the whole visible history."""
    store = Timelines.open(timelines)
    index, positions, _ = labelled_times(store, labels)
    features = count_features(store, positions, index["prediction_time"].to_numpy())
    return _write(COUNTS, index, features, labels, probe.baselines, probe, out, {"timelines": timelines})


def read_predictions(folder: Path) -> tuple[str, pl.DataFrame, dict[str, Any]]:
    """The model's name, its predictions, and how each task's probe was fitted."""
    manifest = read_manifest(folder, KIND)
    return manifest["settings"]["model"], pl.read_parquet(Path(folder) / "predictions.parquet"), manifest["facts"]
