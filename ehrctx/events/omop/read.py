"""Finding a CDM's tables: every file of its folder is read, ignored by rule, or named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ehrctx.artifacts import Source
from ehrctx.errors import InputError
from ehrctx.events.batches import Batch, columns_there, read_batches
from ehrctx.events.omop.tables import OTHER_TABLES, REQUIRED, TABLES
from ehrctx.inventory import Inventory, files_below, is_hidden

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")
# measurement_000000000000, measurement-00000-of-00002, measurement.0, measurement_part_1
PART = re.compile(r"(?P<table>[a-z_0-9]*?[a-z])[-_.]?(?:part[-_.]?)?(?P<number>\d+)(?:[-_.]?of[-_.]?(?P<count>\d+))?")
ABOUT = re.compile(
    r"(readme|license|licence|changelog|cpt4?|makefile).*|.*\.(md|sql|pdf|docx?|html|jar|sh|bat|py|r|log)"
)
UNREAD = "Name tables as measurement.csv, .tsv, .txt (also .gz) or .parquet, and their parts as measurement_0.csv."
COLUMNS_MISSING = "Export the table with the columns of OMOP CDM 5.3 or 5.4."


@dataclass(frozen=True)
class Table:
    """One table's files, in the order in which they are read."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Cdm:
    """The tables that are read, by lower-case name; what all files of the folder are; and what looks odd there."""

    tables: dict[str, Table]
    inventory: Inventory
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """A file that a table is read from, or the top folder that holds its parts.

    `form` is what must be the same for parts of one table; `number` is that of a part, `count` how many it says there
    are.
    """

    path: Path
    form: str
    number: int | None = None
    count: int | None = None


def _bare(name: str) -> tuple[str, str] | None:
    """A file's name in lower case without its suffix, and the suffix; None where the suffix is not one of a table."""
    suffix = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)
    return (name.removesuffix(suffix), suffix) if suffix else None


def _place(folder: Path, relative: Path) -> tuple[str, _Place] | None:
    """The table that a file belongs to by its name, and where it lies; None where it is no file of a table."""
    top = relative.parts[0].lower()
    bare = _bare(top)
    stem, suffix = bare or (top, "")
    if len(relative.parts) > 1:  # Spark calls folders measurement.parquet
        return (stem, _Place(folder / relative.parts[0], "folder")) if _bare(relative.name.lower()) else None
    if not bare:
        return None
    part = PART.fullmatch(stem)
    if part and stem not in (*TABLES, *OTHER_TABLES):
        count = part["count"]
        return part["table"], _Place(folder / relative, f"parts {suffix}", int(part["number"]), int(count or 0) or None)
    return stem, _Place(folder / relative, "file")


def _refuse_twice(folder: Path, name: str, one: _Place, other: _Place) -> None:
    raise InputError(f"{folder} holds the table {name} twice: {one.path.name} and {other.path.name}. Remove one.")


def _check_places(folder: Path, name: str, places: list[_Place]) -> None:
    """Raises InputError where a table is there in two forms, or a part is there twice or missing."""
    for one, other in pairwise(places):
        if one.form != other.form or one.number == other.number:
            _refuse_twice(folder, name, one, other)
    counts = {place.count for place in places if place.count}
    if counts and counts != {len(places)}:
        raise InputError(
            f"{folder}: {places[0].path.name} says that the table {name} has {max(counts):,} parts, of which "
            f"{len(places):,} are there. Copy all of them."
        )


def _gap(folder: Path, name: str, places: list[_Place]) -> str | None:
    """A sentence about numbers that are missing among parts which are counted from 0 or 1."""
    numbers = [place.number for place in places if place.number is not None]
    missing = sorted(set(range(len(numbers))) - set(numbers)) if numbers and numbers[0] <= 1 else []
    if not missing or numbers == list(range(1, len(numbers) + 1)):
        return None
    return f"{folder}: among the numbers of the parts of {name} some are missing. Copy these parts as well, if any."


def _rule(folder: Path, tables: Iterable[str]) -> Callable[[Path], str | None]:
    """The reason why a file is not read: "" where it is, None where it is not known."""
    reasons = dict.fromkeys(OTHER_TABLES, "a table that gives no events") | dict.fromkeys(tables, "")

    def rule(relative: Path) -> str | None:
        placed = _place(folder, relative)
        if placed and placed[0] in reasons:
            return reasons[placed[0]]
        top = relative.parts[0].lower()
        if reasons.get(top):  # whatever a folder of such a table holds
            return reasons[top]
        return "about the data, no table" if len(relative.parts) == 1 and ABOUT.fullmatch(top) else None

    return rule


def find_cdm(folder: Path) -> Cdm:
    """The tables of a CDM: a file `<table>` with one of SUFFIXES, its numbered parts, or a folder of such files.

    Raises InputError where the folder or a required table is not there, a table is there in two forms, or a part is
    there twice or missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}. Give the folder of an OMOP CDM, the one that holds person.csv.")
    files = files_below(folder)
    places: dict[str, dict[Path, _Place]] = {}
    members: dict[str, list[tuple[_Place, Path]]] = {}
    for file in files:
        relative = file.relative_to(folder)
        placed = None if is_hidden(relative) else _place(folder, relative)
        if placed and placed[0] in TABLES:
            name, place = placed
            places.setdefault(name, {})[place.path] = place
            members.setdefault(name, []).append((place, file))
    gaps = []
    for name, by_path in places.items():
        in_order = sorted(by_path.values(), key=lambda place: (place.number or 0, place.path))
        _check_places(folder, name, in_order)
        gaps += [gap for gap in [_gap(folder, name, in_order)] if gap]
    tables = {
        name: Table(name, tuple(file for _, file in sorted(parts, key=lambda part: (part[0].number or 0, part[1]))))
        for name, parts in sorted(members.items())
    }
    for name, remedy in REQUIRED.items():
        if name not in tables:
            forms = f"{name}.csv, {name}.parquet or a folder {name}/"
            raise InputError(f"{folder} has no table {name.upper()} ({forms}). {remedy}")
    return Cdm(tables, Inventory.of(folder, files, _rule(folder, tables)), tuple(gaps))


def find_tables(folder: Path) -> dict[str, Table]:
    """The tables of `find_cdm`."""
    return find_cdm(folder).tables


def table_inputs(folder: Path, tables: Mapping[str, Table]) -> dict[str, Source]:
    """All files of `tables`, by their path below the folder, under which the imported events record each."""
    return {file.relative_to(folder).as_posix(): file for table in tables.values() for file in table.files}


def batches(table: Table, required: Iterable[str], optional: Iterable[str] = ()) -> Iterator[Batch]:
    """The rows of a table, file by file, as `read_batches` has them."""
    return read_batches(table.files, required, optional, COLUMNS_MISSING)


def uneven_columns(table: Table, optional: Iterable[str]) -> list[tuple[Path, list[str]]]:
    """The parts of a table that lack some of the `optional` columns which other parts have, and these columns."""
    names = tuple(dict.fromkeys(optional))
    there = {file: columns_there(file, names) for file in table.files} if len(table.files) > 1 else {}
    every = {name for columns in there.values() for name in columns}
    lacking = ((file, [name for name in names if name in every - set(columns)]) for file, columns in there.items())
    return [(file, columns) for file, columns in lacking if columns]
