"""Labels that are taken over instead of made: from files, or from femr's labelers; and which of them can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrctx.events.meds import Dataset
from ehrctx.events.shards import read_valid
from ehrctx.inventory import Inventory, tell_inventory
from ehrctx.tasks.definition import Femr, Given, Laboratory, Task
from ehrctx.tasks.femr_labels import femr_labels
from ehrctx.tasks.given import read_given
from ehrctx.tasks.label_files import UNREAD, files_at, label_files, label_inventory
from ehrctx.tasks.labelers import first_reason, labels_of, reasons_of

KEY = ["subject_id", "prediction_time"]
Made = tuple[pl.DataFrame, Counter[str]]


def given_files(tasks: Sequence[Task], given: str | None) -> dict[str, tuple[Path, ...]]:
    """By task, the label files of those tasks that have some: in the folder `given`, if there is one, or of their own.

    Raises InputError if a task has none there, or two.
    """
    found = {}
    for task in tasks:
        if isinstance(task, Given):
            found[task.task] = files_at(Path(task.labels), task.task)
        elif given:
            found[task.task] = label_files(Path(given), task.task)
    return found


def label_inventories(tasks: Sequence[Task], given: str | None, files: dict[str, tuple[Path, ...]]) -> list[Inventory]:
    """What the files of the folders are in which labels lie, of which `files` are read."""
    inventories = [label_inventory(Path(given), _all(files), list(files))] if given else []
    places = [Path(task.labels) for task in tasks if isinstance(task, Given)]
    return inventories + [label_inventory(place, _all(files)) for place in places if place.is_dir()]


def _all(files: dict[str, tuple[Path, ...]]) -> list[Path]:
    return [file for of_task in files.values() for file in of_task]


def watched_files(tasks: Sequence[Task], given: str | None) -> list[Path]:
    """The files besides the definitions on which the labels depend."""
    files = _all(given_files(tasks, given))
    return files + [task.file for task in tasks if isinstance(task, Femr) and not given]


def first_events(dataset: Dataset) -> pl.DataFrame:
    """(subject_id, first) of every subject: the raw time of the first timed event, null where all are static."""
    parts = []
    for shard in dataset.shards:
        raw = read_valid(dataset, shard)
        parts.append(raw.select(pl.col("subject_id").cast(pl.Int64), first=pl.col("time").cast(pl.Datetime("us"))))
    return pl.concat(parts).group_by("subject_id").agg(pl.col("first").min())


def usable(labels: pl.DataFrame, first: pl.DataFrame, several_at_a_time: bool) -> Made:
    """The labels that can be used, in order, and how many were left out for which reason; the first reason counts.

    `first` is what `first_events` gives. Of labels that say the same of one subject and time, one is kept; of those
    that contradict each other none, since nothing tells which is right. `several_at_a_time`: each label is that of a
    result, of which a minute can have several; all are kept, as in labels that are made.
    """
    known = first.with_columns(_known=True)
    placed = labels.join(known, on="subject_id", how="left", maintain_order="left")
    reasons = {
        "of subjects that the data set does not have": pl.col("_known").is_null(),
        "before the subject's first event": (pl.col("prediction_time") < pl.col("first")).fill_null(True),
    }
    if not several_at_a_time:
        differ = [pl.col(value).n_unique().over(KEY) > 1 for value in ("boolean_value", "integer_value")]
        reasons["given twice with different values"] = pl.any_horizontal(differ)
        reasons["given twice"] = ~pl.struct(KEY).is_first_distinct()
    judged = placed.with_columns(left_out=first_reason(reasons))
    return labels_of(judged).sort(KEY, maintain_order=True), reasons_of(judged)


def label_sources(tasks: Sequence[Task], given: str | None) -> dict[str, Path]:
    """The files from which labels are taken over, by the name under which the labels record them."""
    files = given_files(tasks, given)
    sources = {
        f"labels of {task}" + (f", part {part}" if len(of_task) > 1 else ""): file
        for task, of_task in files.items()
        for part, file in enumerate(of_task, 1)
    }
    labelers = [task for task in tasks if isinstance(task, Femr) and task.task not in files]
    return sources | {f"labeler of {task.task}": task.file for task in labelers}


def import_labels(dataset: Dataset, tasks: Sequence[Task], given: str | None, verbose: bool = False) -> dict[str, Made]:
    """By task, the usable labels of those tasks that are not made here, and what was left out.

    Warns of files in the folders of labels that nobody reads; `verbose` also lists those that are ignored by rule.
    """
    files = given_files(tasks, given)
    for inventory in label_inventories(tasks, given, files):
        tell_inventory(inventory, UNREAD, verbose)
    read = {task: pl.concat([read_given(file) for file in of_task]) for task, of_task in files.items()}
    labelers = [task for task in tasks if isinstance(task, Femr) and task.task not in read]
    read |= femr_labels(dataset, labelers)
    if not read:
        return {}
    first = first_events(dataset)
    several = {task.task for task in tasks if isinstance(task, Laboratory)}
    return {task: usable(labels, first, task in several) for task, labels in read.items()}
