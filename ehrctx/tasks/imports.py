"""Labels that are taken over instead of made: from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrctx.tasks.definition import Given, Task
from ehrctx.tasks.given import read_given
from ehrctx.tasks.label_files import files_at, label_files
from ehrctx.tasks.labelers import Labels


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


def import_labels(tasks: Sequence[Task], given: str | None) -> tuple[dict[str, Labels], dict[str, Path]]:
    """By task, the labels of those tasks that are not made here, none left out; and the files read."""
    files = given_files(tasks, given)
    read = {task: pl.concat([read_given(file) for file in of_task]) for task, of_task in files.items()}
    if not read:
        return {}, {}
    inputs = {
        f"labels of {task}" + (f", part {part}" if len(of_task) > 1 else ""): file
        for task, of_task in files.items()
        for part, file in enumerate(of_task, 1)
    }
    return {
        task: (labels.sort("subject_id", "prediction_time", maintain_order=True), Counter())
        for task, labels in read.items()
    }, inputs
