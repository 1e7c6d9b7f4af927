"""Where the label files of a task lie: one file, or a folder of shards as ACES and MEDS-DEV write them.

MEDS says `<folder>/<task>/**/*.parquet` (https://github.com/Medical-Event-Data-Standard/meds), which covers ACES's
`<cohort_name>/<shard>.parquet`, MEDS-DEV's `<split>/<shard>.parquet`, and EHRSHOT's `<task>/labels.parquet`. Suffixes
are in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ehrctx.errors import InputError
from ehrctx.inventory import Inventory, files_below, is_hidden

SUFFIXES = (".parquet", ".csv", ".csv.gz")
WHOLE = ("labels.parquet", "labeled_patients.csv", "labeled_patients.csv.gz")  # a task's only file in its folder
DRAWS = ("all_shots_data.json", "few_shots_data.json")  # EHRSHOT's, beside its labels
ABOUT = (".md", ".yaml", ".yml", ".log", ".pdf", ".html")
UNREAD = "Labels are parquet, or CSV in a file of its own for each task: convert what holds labels."


def label_stem(name: str) -> str | None:
    """The name of a label file without its suffix; None where the suffix is not one of labels."""
    suffix = next((suffix for suffix in SUFFIXES[::-1] if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


def is_csv(file: Path) -> bool:
    """Whether a label file is CSV by its name; all others are parquet."""
    return file.name.lower().endswith((".csv", ".csv.gz"))


def is_whole(name: str) -> bool:
    """Whether a file in the folder of a task holds all of its labels by its name."""
    return name.lower() in WHOLE


def _visible(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden, as ACES's .logs are."""
    files = files_below(folder) if folder.is_dir() else []
    return sorted(file for file in files if not is_hidden(file.relative_to(folder)))


def _only(task: str, beside: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """The file of `beside` or the whole one in the folder of the task, or all shards there; nothing where none is."""
    inside = _visible(folder)
    whole = [file for file in inside if file.parent == folder and is_whole(file.name)]
    whole = sorted(whole, key=lambda file: WHOLE.index(file.name.lower()))
    whole += sorted(beside, key=lambda file: (is_csv(file), file.name))
    shards = [file for file in inside if file.suffix.lower() == ".parquet" and file not in whole]
    candidates = [*whole, *shards[:1]]
    if len(candidates) > 1:
        raise InputError(
            f"the labels of {task!r} are there twice: {candidates[0]} and {candidates[1]}. Remove one of them."
        )
    return tuple(whole or shards)


def _there(folder: Path, task: str) -> str:
    """What is there instead of labels, for an error."""
    similar = [path.name for path in sorted(folder.iterdir()) if path.name.lower().startswith(task.lower())]
    return f" ({', '.join(similar[:3])} is none)" if similar else ""


def label_files(folder: Path, task: str) -> tuple[Path, ...]:
    """The files of one task in a folder of many: `<task>/labels.parquet`, `<task>/labeled_patients.csv`,
    `<task>.parquet`, `<task>.csv`, or all shards `<task>/**/*.parquet`; a CSV may be compressed (`.csv.gz`).

    Raises InputError if there is none of them, or more than one.
    """
    folder = Path(folder)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    beside = [path for path in paths if path.is_file() and label_stem(path.name) == task]
    files = _only(task, beside, folder / task)
    if not files:
        names = [*(f"{task}/{name}" for name in WHOLE), *(f"{task}{suffix}" for suffix in SUFFIXES)]
        raise InputError(
            f"no labels of {task!r} in {folder}{_there(folder, task) if paths else ''}: put {', '.join(names)} or "
            f"{task}/**/*.parquet there, or leave the task out."
        )
    return files


def files_at(place: Path, task: str) -> tuple[Path, ...]:
    """The files of one task at a place of its own: the file itself, or a folder that holds one or the shards.

    Raises InputError if nothing is there, or more than one.
    """
    place = Path(place)
    if place.is_file():
        return (place,)
    if not place.is_dir():
        raise InputError(f"no such label file: {place}.")
    files = _only(task, [], place)
    if not files:
        raise InputError(f"{place} holds no labels: put {', '.join(WHOLE)} or shards **/*.parquet there.")
    return files


def label_inventory(folder: Path, read: Collection[Path], tasks: Collection[str] | None = None) -> Inventory:
    """What the files of a folder of labels are, of which `read` are read.

    `tasks` are those of the study, where the folder holds the labels of many; without, it is the folder of one.
    """

    def rule(relative: Path) -> str | None:
        if folder / relative in read:
            return ""
        name = relative.name.lower()
        if name in DRAWS:
            return "few-shot draws"
        if name.endswith(ABOUT) or name.startswith(("readme", "license")):
            return "about the labels"
        if tasks is None:
            return None
        top = relative.parts[0]
        owner = top if len(relative.parts) > 1 else label_stem(top)
        return None if owner is None or owner in tasks else "of a task that the study does not have"

    return Inventory.of(folder, files_below(folder), rule)
