"""`ehrctx label`: the label files of a study, one per task, in the MEDS label schema."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import Source, new_artifact, read_manifest
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset, open_dataset, read_codes
from ehrctx.events.ontology import PREFIX_SYSTEMS, UNREAD_VOCABULARY, athena_codes, athena_files, athena_inventory
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.shards import read_shards
from ehrctx.inventory import tell_inventory
from ehrctx.study import Labels
from ehrctx.tasks.definition import Definition, Femr, Given, Laboratory, Task, load_definitions, with_censored
from ehrctx.tasks.history import FILE as HISTORY
from ehrctx.tasks.history import HISTORY_SCHEMA, LABELS, history_of
from ehrctx.tasks.imports import import_labels, label_sources
from ehrctx.tasks.labelers import UNKNOWN_UNIT, judge, labels_of, reasons_of
from ehrctx.tasks.missing_codes import (
    concepts_without_codes,
    used_codes,
    warn_of_concepts,
    warn_of_profile,
    warn_of_units,
    with_ancestors,
)
from ehrctx.tasks.permutation import permuted

KIND = LABELS
BEYOND_LIMIT = "beyond max_times_per_subject"


def read_definitions(tasks: Sequence[str], choices: Labels) -> list[Task]:
    """The definitions of `tasks` (names or paths), as the study's choices change them."""
    return [with_censored(definition, choices.censored) for definition in load_definitions(tasks)]


def check_profile(definitions: Sequence[Definition], profile: DatasetProfile) -> None:
    """Raises InputError if the profile leaves a key empty that a task needs."""
    for definition in definitions:
        for key in definition.needs:
            if not getattr(profile, key):
                raise InputError(f"the task {definition.task!r} needs `{key}` in the profile {profile.name!r}. Add it.")


def _priority(subject_id: int, time: int, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(struct.pack(">qqq", seed, subject_id, time)).digest()[:8], "big")


def limit_times(labels: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    """Keeps the labels at `limit` prediction times of each subject.

    The draw is a hash of (seed, subject, time): every task that has labels at the same times keeps the same ones.
    """
    times = labels.select("subject_id", "prediction_time").unique(maintain_order=True)
    keys = times.select("subject_id", pl.col("prediction_time").dt.epoch("us"))
    rank = pl.Series([_priority(s, t, seed) for s, t in keys.iter_rows()], dtype=pl.UInt64)
    kept = times.with_columns(_priority=rank).filter(pl.col("_priority").rank("ordinal").over("subject_id") <= limit)
    return labels.join(kept.drop("_priority"), on=["subject_id", "prediction_time"], how="semi", maintain_order="left")


def read_concepts(dataset: Dataset, definitions: Sequence[Definition], ontology: Path | None = None) -> pl.DataFrame:
    """(code, description, parent_codes): the data set's own, and what an ontology has below the tasks' concepts."""
    codes = read_codes(dataset)
    concepts = {
        f"{system}/{member}"
        for definition in definitions
        for system, members in definition.concepts.items()
        if system not in PREFIX_SYSTEMS
        for member in members
    }
    if ontology is None or not concepts:
        return codes
    return pl.concat([codes, athena_codes(ontology, concepts)], how="vertical_relaxed")


def limited(labels: pl.DataFrame, definition: Task, choices: Labels) -> pl.DataFrame:
    """The labels that the study keeps: laboratory tasks have many for some subjects."""
    if choices.max_times_per_subject is None or not isinstance(definition, Laboratory):
        return labels
    return limit_times(labels, choices.max_times_per_subject, choices.seed)


def find_missing_concepts(
    dataset: Dataset, profile: DatasetProfile, definitions: Sequence[Definition], codes: pl.DataFrame
) -> dict[str, list[str]]:
    """By task, its concepts that match no code. Warns of tasks that have no code at all, and of keys of the profile."""
    used = used_codes(dataset)
    warn_of_profile(definitions, profile, used)
    reached = with_ancestors(used, codes)
    missing = {d.task: concepts_without_codes(d, reached) for d in definitions if d.concepts}
    for definition in definitions:
        warn_of_concepts(definition, missing.get(definition.task, ()))
    return missing


def make_labels(
    dataset: Dataset, profile: DatasetProfile, definitions: Sequence[Definition], codes: pl.DataFrame
) -> dict[str, tuple[pl.DataFrame, Counter[str]]]:
    """By task, the labels of all subjects, and how many were left out for which reason.

    `codes` is what `read_concepts` gives.
    """
    parts: dict[str, list[pl.DataFrame]] = {d.task: [] for d in definitions}
    left_out: dict[str, Counter[str]] = {d.task: Counter() for d in definitions}
    has_known_unit: set[str] = set()
    for events in read_shards(dataset, profile):
        for definition in definitions:
            judged = judge(events, profile, codes, definition)
            parts[definition.task].append(labels_of(judged))
            left_out[definition.task].update(reasons_of(judged))
            if isinstance(definition, Laboratory) and judged["value"].count():
                has_known_unit.add(definition.task)
    for definition in definitions:
        in_unknown_unit = left_out[definition.task][UNKNOWN_UNIT]
        if isinstance(definition, Laboratory) and in_unknown_unit and definition.task not in has_known_unit:
            warn_of_units(definition, profile)
        n_candidates = sum(labels.height for labels in parts[definition.task]) + left_out[definition.task].total()
        if "discharge" in definition.needs and not n_candidates:
            raise InputError(
                f"the task {definition.task!r} finds no hospital stay: no event of `discharge` follows one of "
                f"`admission` in the profile {profile.name!r}. Fix the profile, or add the ends of stays."
            )
    return {
        task: (pl.concat(found).sort("subject_id", "prediction_time", maintain_order=True), left_out[task])
        for task, found in parts.items()
    }


def made_here(definitions: Sequence[Task], choices: Labels) -> list[Definition]:
    """Those of `definitions` whose labels are made from events, not taken over."""
    return [d for d in definitions if choices.given is None and not isinstance(d, Given | Femr)]


def label_settings(definitions: Sequence[Task], choices: Labels, profile: dict[str, Any]) -> dict[str, Any]:
    """What a folder of labels records of the choices that made it; `profile` as keys and values."""
    settings = {"tasks": [d.model_dump() for d in definitions], "labels": choices.model_dump()}
    return settings | ({"profile": profile} if made_here(definitions, choices) else {})


def label_inputs(
    events: Source, definitions: Sequence[Task], choices: Labels, ontology: Path | None
) -> dict[str, Source]:
    """What a folder of labels is made from, by the name under which it records each."""
    files: dict[str, Path] = label_sources(definitions, choices.given)
    if ontology is not None and made_here(definitions, choices):
        files |= {f"ontology {name}": file for name, file in athena_files(ontology).items()}
    return {"events": events, **files}


def write_labels(
    data: Path,
    profile_file: str,
    tasks: Sequence[str],
    choices: Labels,
    out: Path,
    ontology: Path | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Labels every subject for every task (or takes labels that are given) and writes `<task>.parquet` files to `out`.

    Beside them lies `history.parquet`: whether each label kept repeats an earlier outcome, kept or not.

    `ontology` is the folder of an Athena download, which says what lies below the tasks' concepts.

    Returns, by task, how many labels were made, positive, and left out for which reason; and, of tasks that name
    concepts, `concepts_without_codes`. Warns where none of a task's concepts, or no unit of its results, is known, and
    of files that nobody reads in folders of labels and in the ontology's; `verbose` also lists those that are ignored
    by rule.
    """
    dataset = open_dataset(data)
    profile = load(DatasetProfile, find_profile(profile_file))
    definitions = read_definitions(tasks, choices)
    facts: dict[str, Any] = {}
    made = import_labels(dataset, definitions, choices.given, verbose)
    missing: dict[str, list[str]] = {}
    if to_make := made_here(definitions, choices):
        check_profile(to_make, profile)
        codes = read_concepts(dataset, to_make, ontology)
        missing = find_missing_concepts(dataset, profile, to_make, codes)
        made |= make_labels(dataset, profile, to_make, codes)
        if ontology is not None:
            tell_inventory(athena_inventory(ontology), UNREAD_VOCABULARY, verbose)
    settings = label_settings(definitions, choices, profile.model_dump())
    inputs = label_inputs(dataset.source(), definitions, choices, ontology)
    histories = [pl.DataFrame(schema=HISTORY_SCHEMA)]
    with new_artifact(out, KIND, settings, inputs, facts) as folder:
        for definition in definitions:
            labels, left_out = made[definition.task]
            if choices.permuted is not None:
                labels = permuted(labels, definition.task, choices.permuted)
            kept = limited(labels, definition, choices)
            if choices.max_times_per_subject and isinstance(definition, Laboratory):
                left_out[BEYOND_LIMIT] = labels.height - kept.height
            kept.write_parquet(folder / f"{definition.task}.parquet")
            if not isinstance(definition, Given | Femr):  # of whose outcomes nobody says when they happen
                history = history_of(definition.task, labels, first_only=definition.family == "diagnosis")
                histories.append(
                    history.join(kept, on=["subject_id", "prediction_time"], how="semi", maintain_order="left")
                )
            facts[definition.task] = {
                "question": definition.question,
                "labels": kept.height,
                "positive": int(kept["boolean_value"].sum()),
                "left_out": dict(left_out),
            }
            if definition.task in missing:
                facts[definition.task]["concepts_without_codes"] = missing[definition.task]
        pl.concat(histories).write_parquet(folder / HISTORY)
    return facts


def read_labels(folder: Path) -> dict[str, pl.DataFrame]:
    """The label files of a finished folder, by task, in the study's order."""
    manifest = read_manifest(folder, KIND)
    return {
        task: pl.read_parquet(Path(folder) / f"{task}.parquet")
        for task in (d["task"] for d in manifest["settings"]["tasks"])
    }


def read_left_out(folder: Path) -> dict[str, dict[str, int]]:
    """By task, how many labels of a finished folder were left out for which reason."""
    return {task: facts.get("left_out", {}) for task, facts in read_manifest(folder, KIND)["facts"].items()}


def prediction_times(labels: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """The distinct (subject_id, prediction_time) of all tasks, in order."""
    keys = [frame.select("subject_id", "prediction_time") for frame in labels.values()]
    return pl.concat(keys).unique().sort("subject_id", "prediction_time")
