"""Few-shot learning: which k labels of each class a head may learn from, and which k of each class choose its settings.

The draws are a function of (seed, task, labels) alone: every model and head meets the same ones, and those of a larger
k contain those of every smaller k. A class with fewer than k labels gives all of them and is filled up by drawing from
it again, as EHRSHOT does. EHRSHOT's own draws can take the place of ours.

Source: https://github.com/som-shahlab/ehrshot-benchmark
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.ehrshot import SHOT_FILES
from ehrctx.study import FewShot

SPLITS = ("train", "tuning")
PUBLISHED = {"train": "train", "tuning": "val"}  # EHRSHOT's names of the splits

Key = tuple[int, datetime, bool]  # subject, prediction time, label


@dataclass(frozen=True)
class Shot:
    """One draw: the places of its labels among a task's train and among its tuning labels, int64.

    A label that fills up a class is there twice.
    """

    k: str
    replicate: int
    train: np.ndarray | slice
    tuning: np.ndarray | slice


EVERY = Shot("all", 0, slice(None), slice(None))  # no draw: every label


@dataclass(frozen=True)
class PublishedShot:
    """One draw of EHRSHOT's: its labels by split."""

    k: int
    replicate: int
    labels: dict[str, list[Key]]


def _mixed(bits: np.ndarray) -> np.ndarray:
    """splitmix64 of uint64[n]: neighbours become strangers (https://doi.org/10.1145/2660193.2660195)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _hashes(key: str, *columns: np.ndarray) -> np.ndarray:
    """uint64[n] from whole numbers, int64[n] each: the same on every machine and by every version of a library."""
    found = np.full(len(columns[0]), int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"), np.uint64)
    for column in columns:
        found = _mixed(found ^ column.astype(np.int64).view(np.uint64))
    return found


def _order(labels: pl.DataFrame, key: str, by_subject: bool) -> np.ndarray:
    """The rows of the labels of one class in the order in which they are drawn; one of each subject if `by_subject`.

    The place of a label is its own hash, so that it moves past no other when a third one comes or goes.
    """
    columns = [labels[c].to_physical().to_numpy() for c in ("subject_id", "prediction_time", "occurrence")]
    order = np.argsort(_hashes(key, *columns), kind="stable")
    if by_subject:
        subjects, first = np.unique(columns[0][order], return_index=True)
        order = order[first][np.argsort(_hashes(f"{key}/subjects", subjects), kind="stable")]
    return labels["row"].to_numpy()[order]


def _filled(order: np.ndarray, k: int, key: str) -> np.ndarray:
    """The first k of `order`, drawn from again where it is shorter; nothing where it is empty."""
    if not len(order):
        return order
    again = _hashes(f"{key}/again", np.arange(len(order), k)) % np.uint64(len(order))
    return np.concatenate([order[:k], order[again.astype(np.int64)]])


def draw_shots(task: str, labels: Mapping[str, pl.DataFrame], choices: FewShot) -> tuple[list[Shot], dict[str, Any]]:
    """All draws of a task, by replicate and k, and what is to be told of them.

    `labels` are the frames (subject_id, prediction_time, y) of its train and of its tuning labels. Told is how many
    labels (or subjects, if these are drawn) the rarer class of each split has: every larger k is filled up.
    """
    key = ["subject_id", "prediction_time", "y"]
    numbered = {
        split: labels[split]
        .select(key)
        .cast({"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})
        .with_columns(row=pl.int_range(pl.len()), occurrence=pl.int_range(pl.len()).over(key))
        for split in SPLITS
    }
    classes = {s: {y: frame.filter(pl.col("y") == y) for y in (False, True)} for s, frame in numbered.items()}
    shots, fewest = [], {}
    for replicate in range(choices.replicates):
        # a key for each class: a subject that comes early among the positive labels need not among the negative ones
        draws = {y: f"{choices.seed}/{task}/{replicate}/{y}" for y in (False, True)}
        orders = {
            s: {y: _order(own, draws[y], choices.draw == "subjects") for y, own in classes[s].items()} for s in SPLITS
        }
        fewest = {s: min(map(len, orders[s].values())) for s in SPLITS}
        for k in choices.k:
            rows = {s: np.concatenate([_filled(order, k, draws[y]) for y, order in orders[s].items()]) for s in SPLITS}
            shots.append(Shot(str(k), replicate, rows["train"], rows["tuning"]))
    return shots, {f"{choices.draw}_of_the_rarer_class": fewest}


def shot_files(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """EHRSHOT's draws of each task: `<task>/all_shots_data.json`, or else `<task>/few_shots_data.json`.

    Raises InputError if a task has neither.
    """
    found = {}
    for task in tasks:
        files = [file for name in SHOT_FILES if (file := Path(folder) / task / name).is_file()]
        if not files:
            raise InputError(
                f"no draws of {task!r} in {folder}: put {task}/{SHOT_FILES[0]} or {task}/{SHOT_FILES[1]} there, or "
                f"leave out `probe.few_shot.shots`, and labels are drawn here."
            )
        found[task] = files[0]
    return found


def shot_inputs(choices: FewShot | None, tasks: Sequence[str]) -> dict[str, Path]:
    """EHRSHOT's draws that `choices` ask for, by the name under which predictions record each."""
    files = shot_files(Path(choices.shots), tasks) if choices is not None and choices.shots else {}
    return {f"shots of {task}": file for task, file in files.items()}


def _keys(entry: Any, split: str, place: str) -> list[Key]:
    names = [f"{column}_{PUBLISHED[split]}_k" for column in ("patient_ids", "label_times", "label_values")]
    if not isinstance(entry, dict) or any(not isinstance(entry.get(name), list) for name in names):
        raise InputError(f"{place}: lists {', '.join(names)} are expected. Take the file as EHRSHOT hands it out.")
    ids, times, values = (entry[name] for name in names)
    if not len(ids) == len(times) == len(values):
        raise InputError(
            f"{place}: {names[0]}, {names[1]} and {names[2]} have {len(ids)}, {len(times)} and {len(values)} entries. "
            f"Take the file as EHRSHOT hands it out."
        )
    keys = []
    for number, (subject, time, value) in enumerate(zip(ids, times, values, strict=True), start=1):
        try:
            when = datetime.fromisoformat(time)
            right = isinstance(subject, int) and value in (0, 1, 2, 3) and when.tzinfo is None
        except (TypeError, ValueError):
            right = False
        if not right:
            raise InputError(
                f"{place}, entry {number} of {PUBLISHED[split]}: expected a whole number, an ISO date-time without a "
                f"zone, and true, false or a grade from 0 to 3."
            )
        keys.append((subject, when, bool(value)))
    return keys


def read_shots(file: Path, task: str, choices: FewShot) -> list[PublishedShot]:
    """EHRSHOT's draws of `choices.k`, those of the replicates that are asked for and there.

    The file is JSON: sub-task -> k (-1: all labels) -> replicate -> patient ids, ISO label times and label values, of
    `train` and `val`. Raises InputError that names the file, k and replicate of what is malformed.
    """
    try:
        held = json.loads(Path(file).read_text())
    except (OSError, ValueError):
        raise InputError(f"{file} cannot be read as JSON. Take the file as EHRSHOT hands it out.") from None
    if not isinstance(held, dict) or not isinstance(held.get(task), dict):
        raise InputError(f"{file}: no draws of {task!r} are in it. Take the file from the folder of that task.")
    shots = []
    for replicate in range(choices.replicates):
        for k in choices.k:
            of_k = held[task].get(str(k), {})
            if not isinstance(of_k, dict):
                raise InputError(f"{file}, k {k}: replicates are expected. Take the file as EHRSHOT hands it out.")
            if (entry := of_k.get(str(replicate))) is not None:
                place = f"{file}, k {k}, replicate {replicate}"
                shots.append(PublishedShot(k, replicate, {s: _keys(entry, s, place) for s in SPLITS}))
    return shots


def match_shots(
    published: Sequence[PublishedShot], labels: Mapping[str, pl.DataFrame]
) -> tuple[list[Shot], Counter[str]]:
    """EHRSHOT's draws as places among our labels, and how many of their labels are not used, by reason.

    `labels` are the frames (subject_id, prediction_time, y) by split. A label is matched by subject, time and value;
    one that our splits put elsewhere is not used. A label that was drawn several times counts once in what is told.
    """
    places: dict[Key, tuple[str, int]] = {}
    for split, frame in labels.items():
        for row, key in enumerate(frame.select("subject_id", "prediction_time", "y").iter_rows()):
            places.setdefault(key, (split, row))
    times = {key[:2] for key in places}
    reasons: dict[tuple[str, Key], str] = {}

    def matched(split: str, keys: Sequence[Key]) -> Iterator[int]:
        for key in keys:
            found, row = places.get(key, ("", -1))
            if found == split:
                yield row
            elif found:
                reasons[split, key] = "in another split here"
            else:
                reasons[split, key] = "with another value here" if key[:2] in times else "not among the labels here"

    shots = []
    for shot in published:
        rows = {s: np.array(list(matched(s, shot.labels[s])), dtype=np.int64) for s in SPLITS}
        shots.append(Shot(str(shot.k), shot.replicate, rows["train"], rows["tuning"]))
    return shots, Counter(reasons.values())


def shots_of(
    task: str, labels: Mapping[str, pl.DataFrame], choices: FewShot, file: Path | None
) -> tuple[list[Shot], dict[str, Any]]:
    """The draws of a task that a head can be fitted on, by replicate and k, and what is to be told of them.

    They are EHRSHOT's of `file`, or our own without one. `labels` are the frames (subject_id, prediction_time, y) of
    train, tuning and held_out.
    """
    if file is None:
        return draw_shots(task, labels, choices)
    published = read_shots(file, task, choices)
    shots, unmatched = match_shots(published, labels)
    y = labels["train"]["y"].to_numpy()
    usable = [shot for shot in shots if len(np.unique(y[shot.train])) == 2]
    return usable, {
        "unmatched": dict(unmatched),
        "draws_not_in_the_file": len(choices.k) * choices.replicates - len(published),
        "draws_of_one_class": len(shots) - len(usable),
    }
