"""`ehrctx probe`: the predictions of one model (or of the count baseline) for every task of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest, require_same_input
from ehrctx.probe.counts import count_features
from ehrctx.probe.embeddings import KIND as EMBEDDINGS
from ehrctx.probe.embeddings import labelled_times, read_embeddings
from ehrctx.probe.few_shot import EVERY, Shot, shot_inputs, shots_of
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
PREDICTIONS_FILE = "predictions.parquet"
FITTED: dict[str, Any] = {
    **{name: PREDICTIONS[name] for name in ("task", "model", "head", "k", "replicate")},
    "chosen": pl.String,  # the settings, as JSON
    "tuning_auroc": pl.Float64,
    "converged": pl.Boolean,
}


class Heads(NamedTuple):
    """Which heads are fitted on all labels of a task, and which on few."""

    on_all: Sequence[str]
    few_shot: Sequence[str]


LINEAR_ALONE = Heads((LINEAR,), (LINEAR,))


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
    heads: Heads,
    probe: Probe,
    shots_file: Path | None,
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """PREDICTIONS for the tuning and held-out labels of one task, FITTED of its heads, and what is to be told of it.

    Heads fitted on few labels predict the held-out ones alone.
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
        return pl.DataFrame(schema=PREDICTIONS), pl.DataFrame(schema=FITTED), facts
    x = {s: features[frame["row"].to_numpy()] for s, frame in rows.items()}
    jobs: list[tuple[str, Shot, tuple[str, ...]]] = [(head, EVERY, ("tuning", "held_out")) for head in heads.on_all]
    if probe.few_shot is not None:
        without_row = {s: frame.select("subject_id", "prediction_time", "y") for s, frame in rows.items()}
        shots, facts["few_shot"] = shots_of(task, without_row, probe.few_shot, shots_file)
        jobs += [(head, shot, ("held_out",)) for head in heads.few_shot for shot in shots]
    predicted, fits = [], []
    for head, shot, splits in jobs:
        train, tuning = ((x[s][own], y[s][own]) for s, own in (("train", shot.train), ("tuning", shot.tuning)))
        fitted = fit_head(head, *train, *tuning, probe)
        identity = {"task": task, "model": model, "head": head, "k": shot.k, "replicate": shot.replicate}
        told = {"tuning_auroc": fitted.tuning_auroc, "converged": fitted.converged}
        fits.append(identity | {"chosen": json.dumps(fitted.chosen)} | told)
        if shot is EVERY:
            facts[head] = fitted.chosen | told
        constants = [pl.lit(value, PREDICTIONS[name]).alias(name) for name, value in identity.items()]
        predicted += [
            rows[s].select("subject_id", "prediction_time", "split", "y", *constants, p=fitted.predict(x[s]))
            for s in splits
            if len(y[s])
        ]
    return pl.concat(predicted).select(list(PREDICTIONS)), pl.DataFrame(fits, schema=FITTED), facts


def _write(
    model: str,
    index: pl.DataFrame,
    features: Features,
    labels_folder: Path,
    heads: Heads,
    probe: Probe,
    out: Path,
    inputs: dict[str, Path],
) -> dict[str, Any]:
    """A task at a time, so that memory holds the predictions of one."""
    facts: dict[str, Any] = {}
    labels = read_labels(labels_folder)
    shots = shot_inputs(probe.few_shot, list(labels))
    inputs = inputs | {"labels": labels_folder} | shots
    with new_artifact(out, KIND, {"model": model, "probe": probe.model_dump()}, inputs, facts) as folder:
        parts, fitted = [], []
        for number, (task, own) in enumerate(labels.items()):
            frame, fits, facts[task] = _task_predictions(
                task, model, own, index, features, heads, probe, shots.get(f"shots of {task}")
            )
            parts.append(folder / f"{number}.parquet")
            frame.write_parquet(parts[-1])
            fitted.append(fits)
        pl.scan_parquet(parts).sink_parquet(folder / PREDICTIONS_FILE)
        for part in parts:
            part.unlink()
        pl.concat(fitted).write_parquet(folder / "heads.parquet")
    return facts


def probe_embeddings(embeddings: Path, labels: Path, probe: Probe, out: Path) -> dict[str, Any]:
    """Fits the linear probe on a model's embeddings for every task; writes predictions.parquet to the folder `out`."""
    require_same_input(embeddings, EMBEDDINGS, "labels", labels)
    model = read_manifest(embeddings, EMBEDDINGS)["settings"]["model"]
    index, rows = read_embeddings(embeddings)
    return _write(model, index, np.asarray(rows), labels, LINEAR_ALONE, probe, out, {"embeddings": embeddings})


def probe_counts(timelines: Path, labels: Path, probe: Probe, out: Path) -> dict[str, Any]:
    """The baselines called `counts`: `probe.baselines` on counts of tokens over the whole visible history, and
    `probe.few_shot.baselines` on few labels."""
    store = Timelines.open(timelines)
    index, positions, _ = labelled_times(store, labels)
    features = count_features(store, positions, index["prediction_time"].to_numpy())
    heads = Heads(probe.baselines, probe.few_shot.baselines if probe.few_shot else ())
    return _write(COUNTS, index, features, labels, heads, probe, out, {"timelines": timelines})


def read_predictions(folder: Path) -> tuple[str, pl.LazyFrame, dict[str, Any]]:
    """The model's name, its predictions (with many draws, more than memory holds), and how each probe was fitted."""
    manifest = read_manifest(folder, KIND)
    return manifest["settings"]["model"], pl.scan_parquet(Path(folder) / PREDICTIONS_FILE), manifest["facts"]
