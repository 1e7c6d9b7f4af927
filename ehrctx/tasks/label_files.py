"""Where the label files of a task lie: one file, or a folder of shards as ACES and MEDS-DEV write them.

MEDS says `<folder>/<task>/**/*.parquet` (https://github.com/Medical-Event-Data-Standard/meds), which covers ACES's
`<cohort_name>/<shard>.parquet`, MEDS-DEV's `<split>/<shard>.parquet`, and EHRSHOT's `<task>/labels.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ehrctx.errors import InputError

SUFFIXES = (".parquet", ".csv")
WHOLE = ("labels.parquet", "labeled_patients.csv")  # names of a task's only file in the folder of the task


def _shards(folder: Path) -> list[Path]:
    """The parquet files below a folder, other than a whole one; what is hidden (ACES's .logs) is none."""
    found = (p.relative_to(folder) for p in folder.rglob("*.parquet") if p.is_file())
    shards = (p for p in found if not any(part.startswith(".") for part in p.parts) and p.as_posix() not in WHOLE)
    return [folder / p for p in sorted(shards)]


def _only(task: str, places: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """The file among `places`, or the shards below `folder`; nothing where neither is there."""
    files = [place for place in places if place.is_file()]
    shards = _shards(folder)
    candidates = [*files, *shards[:1]]
    if len(candidates) > 1:
        raise InputError(
            f"the labels of {task!r} are there twice: {candidates[0]} and {candidates[1]}. Remove one of them."
        )
    return tuple(files or shards)


def label_files(folder: Path, task: str) -> tuple[Path, ...]:
    """The files of one task in a folder of many: `<task>/labels.parquet`, `<task>/labeled_patients.csv`,
    `<task>.parquet`, `<task>.csv`, or all shards `<task>/**/*.parquet`.

    Raises InputError if there is none of them, or more than one.
    """
    folder = Path(folder)
    names = [*(f"{task}/{name}" for name in WHOLE), *(f"{task}{suffix}" for suffix in SUFFIXES)]
    found = _only(task, [folder / name for name in names], folder / task)
    if not found:
        raise InputError(
            f"no labels of {task!r} in {folder}: put {', '.join(names)} or {task}/**/*.parquet there, or leave the "
            f"task out."
        )
    return found


def files_at(place: Path, task: str) -> tuple[Path, ...]:
    """The files of one task at a place of its own: the file itself, or a folder that holds one or the shards.

    Raises InputError if nothing is there, or more than one.
    """
    place = Path(place)
    if place.is_file():
        return (place,)
    if not place.is_dir():
        raise InputError(f"no such label file: {place}.")
    found = _only(task, [place / name for name in WHOLE], place)
    if not found:
        raise InputError(f"{place} holds no labels: put {', '.join(WHOLE)} or shards **/*.parquet there.")
    return found
