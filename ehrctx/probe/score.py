"""`ehrctx score`: predictions of all models -> tidy scores, paired differences, label counts, model table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import fingerprint, new_file, require_same_input
from ehrctx.errors import InputError, refuse_repeated
from ehrctx.events.meds import SPLITS
from ehrctx.events.splits import read_splits
from ehrctx.pretrain.trained import final_validation, trained_model
from ehrctx.probe.predict import KIND as PREDICTIONS
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.statistics import SCORES, interval, scores, subject_draws
from ehrctx.probe.suppression import COUNTS, Cells, Counts, mask, of_sum, suppress
from ehrctx.study import Privacy, Statistics
from ehrctx.tasks.label_sets import read_labels, read_left_out

EVALUATED = "held_out"
KEYS = ["task", "model", "head", "k", "replicate"]
MACRO = "macro"


def _row(
    identity: dict[str, Any], points: np.ndarray, replicates: np.ndarray, counts: dict, level: float
) -> list[dict]:
    """One row per score, of `points` float64[3] and `replicates` float64[replicates, 3]."""
    rows = []
    for s, name in enumerate(SCORES):
        lower, upper = interval(replicates[:, s], level)
        rows.append(identity | {"score": name, "value": points[s], "lower": lower, "upper": upper} | counts)
    return rows


def count_labels(y: np.ndarray, subjects: np.ndarray) -> dict[str, int]:
    """COUNTS of labels: `y` bool[n], and whose they are, `subjects` int64[n]."""
    numbers = len(y), int(y.sum()), len(np.unique(subjects)), len(np.unique(subjects[y]))
    return dict(zip(COUNTS, numbers, strict=True))


@dataclass(frozen=True)
class _Scored:
    """One task: (KEYS without the task) -> its scores, and those of each replicate; and its labels."""

    found: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]
    y: np.ndarray  # bool[n]
    subjects: np.ndarray  # int64[n]


def _task_scores(task: str, frame: pl.DataFrame, ids: np.ndarray, draws: np.ndarray) -> _Scored:
    key = ["subject_id", "prediction_time", "y"]
    parts = frame.partition_by(*KEYS, maintain_order=True)
    labels = parts[0].sort(key).select(key)
    y, subjects = labels["y"].to_numpy(), labels["subject_id"].to_numpy()
    drawn = draws[:, np.searchsorted(ids, subjects)]
    found = {}
    for part in parts:
        ordered = part.sort(key)
        if not ordered.select(key).equals(labels):
            raise InputError(f"the models predicted different labels of {task!r}. Run the probes again.")
        p = ordered["p"].to_numpy()
        found[part.select(KEYS[1:]).row(0)] = scores(y, p, np.ones((1, len(y))))[0], scores(y, p, drawn)
    return _Scored(found, y, subjects)


def score_tables(predictions: Sequence[pl.DataFrame], statistics: Statistics) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores of each model and paired differences of each pair of models, on the held-out split, with intervals.

    Scores: KEYS, score, value, lower, upper, COUNTS. Differences: the same with `reference` and `reference_head`; value
    is the model's score minus the reference's (for Brier, less is better). The task "macro" is the unweighted mean over
    the tasks that every model predicted: its n and n_positive are sums over them, its subjects distinct. One set of
    draws of subjects serves all tasks, so that the mean's intervals and differences are paired, too.
    """
    held_out = pl.concat(list(predictions)).filter(pl.col("split") == EVALUATED)
    ids = held_out["subject_id"].unique().sort().to_numpy()
    draws = subject_draws(ids, statistics) if len(ids) else np.empty((statistics.replicates, 0))
    everything = held_out.select(KEYS[1:]).unique(maintain_order=True).rows()
    of_tasks = {
        str(task): _task_scores(str(task), frame, ids, draws)
        for (task,), frame in held_out.group_by(["task"], maintain_order=True)
    }
    complete = [scored for scored in of_tasks.values() if len(scored.found) == len(everything)]
    if len(complete) > 1:
        mean = {}
        for key in everything:
            points, replicates = zip(*(scored.found[key] for scored in complete), strict=True)
            mean[key] = np.mean(points, axis=0), np.mean(replicates, axis=0)
        y, subjects = (np.concatenate(parts) for parts in zip(*((s.y, s.subjects) for s in complete), strict=True))
        of_tasks = {MACRO: _Scored(mean, y, subjects), **of_tasks}
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for task, scored in of_tasks.items():
        found, counts = scored.found, count_labels(scored.y, scored.subjects)
        identities = {key: {"task": task, **dict(zip(KEYS[1:], key, strict=True))} for key in found}
        for key, of_key in found.items():
            rows += _row(identities[key], *of_key, counts, statistics.level)
        for a, b in itertools.permutations(found, 2):
            reference = {"reference": identities[b]["model"], "reference_head": identities[b]["head"]}
            difference = found[a][0] - found[b][0], found[a][1] - found[b][1]
            differences += _row(identities[a] | reference, *difference, counts, statistics.level)
    numbers: dict[str, Any] = dict.fromkeys(("value", "lower", "upper"), pl.Float64)
    numbers |= dict.fromkeys(COUNTS, pl.Int64)
    identity_schema = {**dict.fromkeys(KEYS, pl.String), "replicate": pl.Int64}
    referred = dict.fromkeys(("reference", "reference_head"), pl.String)
    return (
        pl.DataFrame(rows, schema={**identity_schema, "score": pl.String, **numbers}),
        pl.DataFrame(differences, schema={**identity_schema, **referred, "score": pl.String, **numbers}),
    )


def label_table(
    labels: dict[str, pl.DataFrame], splits: pl.DataFrame, estimable: dict[str, str | None]
) -> pl.DataFrame:
    """(task, split, COUNTS, note); the note says why a task has no scores."""
    rows = []
    for task, frame in labels.items():
        placed = frame.join(splits, on="subject_id", how="left")
        for split in SPLITS:
            part = placed.filter(pl.col("split") == split)
            counts = count_labels(part["boolean_value"].to_numpy(), part["subject_id"].to_numpy())
            rows.append({"task": task, "split": split, **counts, "note": estimable.get(task) or ""})
    return pl.DataFrame(rows)


def left_out_text(left_out: Mapping[str, int], privacy: Privacy) -> str:
    """How many labels of one task were left out for which reason, in words; small counts are masked."""
    least = privacy.minimum_count
    return "; ".join(f"{f'{n:,}' if n >= least else f'<{least}'} {reason}" for reason, n in left_out.items() if n)


def model_tables(folders: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per trained model (architecture, context, parameters, tokens, speed …), and its validation losses.

    The second table is (model, arch, context, tokens, loss), the loss in nats per token.
    """
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
    rows, curves = [], []
    for folder in folders:
        model, facts = trained_model(folder)
        rows.append(
            {"model": model}
            | {c: facts[c] for c in (*columns, "passes", "device")}
            | {"earlier_tokens": facts.get("start", {}).get("earlier_tokens", 0)}
            | {"validation_loss": validation[1] if (validation := final_validation(facts)) else None}
        )
        identity = {"model": model, "arch": facts["arch"], "context": facts["context"]}
        curves += [identity | {"tokens": tokens, "loss": loss} for tokens, loss in facts["validation"]]
    return pl.DataFrame(rows), pl.DataFrame(curves)


def _refuse_other_splits(predictions: Sequence[pl.DataFrame], splits: pl.DataFrame, splits_file: Path) -> None:
    made = pl.concat([frame.select("subject_id", "split") for frame in predictions]).unique()
    joined = made.join(splits.rename({"split": "given"}), on="subject_id", how="left")
    other = joined.filter(pl.col("split").ne_missing(pl.col("given"))).height
    if other:
        raise InputError(
            f"{splits_file} puts {other:,} subjects into another split than the predictions do. "
            f"Give the splits that the timelines were made with."
        )


def _hide_parts_of_the_mean(keys: Sequence[tuple], _: Sequence[Counts], shown: Sequence[Cells]) -> list[Cells]:
    """`keys` are (task,): the mean's counts must not give away those of a task."""
    tasks = [own for (task,), own in zip(keys, shown, strict=True) if task != MACRO]
    return [of_sum(own, tasks) if task == MACRO else own for (task,), own in zip(keys, shown, strict=True)]


def write_scores(
    predictions: Sequence[Path],
    models: Sequence[Path],
    labels_folder: Path,
    splits_file: Path,
    statistics: Statistics,
    privacy: Privacy,
    out: Path,
) -> pl.DataFrame:
    """Writes scores, differences, labels, models and curves (.csv) and provenance.json to `out`; returns the scores.

    Raises InputError if the predictions were made from other labels or other splits, or a model is given twice.
    """
    for folder in predictions:
        require_same_input(folder, PREDICTIONS, "labels", labels_folder)
    read = [read_predictions(folder) for folder in predictions]
    refuse_repeated([model for model, _, _ in read], "the predictions")
    splits = read_splits(splits_file)
    _refuse_other_splits([frame for _, frame, _ in read], splits, splits_file)
    table, differences = score_tables([frame for _, frame, _ in read], statistics)
    reasons = {task: fact.get("not_estimable") for _, _, facts in read for task, fact in facts.items()}
    left_out = {task: left_out_text(found, privacy) for task, found in read_left_out(labels_folder).items()}
    counted = label_table(read_labels(labels_folder), splits, reasons).with_columns(
        left_out=pl.col("task").replace_strict(left_out, default="", return_dtype=pl.String)
    )
    trained, curves = model_tables(models)
    frames = {
        "scores": suppress(table, ["task"], privacy, _hide_parts_of_the_mean),
        "differences": suppress(differences, ["task"], privacy, _hide_parts_of_the_mean),
        "labels": suppress(counted, ["task", "split"], privacy),
        "models": trained.with_columns(subjects=mask(pl.col("subjects"), privacy)) if trained.height else trained,
        "curves": curves,
    }
    for name, frame in frames.items():
        with new_file(Path(out) / f"{name}.csv") as partial:
            frame.write_csv(partial, float_precision=6)
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
