"""A MEDS data set on disk (schemas 0.3 and 0.4): which of its files are read, and the tables beside its events.

0.3 and 0.4 differ in what may be absent (`numeric_value` is optional in 0.4, `text_value` a custom column in 0.3) and
in string widths; both are read here, and every reader downstream sees the same columns.

Source: https://github.com/Medical-Event-Data-Standard/meds
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import MANIFEST, Files, Source
from ehrctx.errors import InputError
from ehrctx.events.parquet import read_parquet
from ehrctx.events.profile import ABOUT_FILE
from ehrctx.events.rules import BEFORE_BIRTH as BEFORE_BIRTH
from ehrctx.events.rules import BIRTH as BIRTH
from ehrctx.events.rules import SPLITS as SPLITS
from ehrctx.events.rules import wrong_codes
from ehrctx.events.violations import BrokenFile
from ehrctx.inventory import Inventory, files_below

SPLITS_FILE = Path("metadata/subject_splits.parquet")
CODES_FILE = Path("metadata/codes.parquet")
CODES: dict[str, Any] = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
REMEDY = "Write events as parquet files below data/, and move what is not part of the data set elsewhere."
# Formats of tables whose folders hold old versions beside the current one: what marks them, and their name.
TABLE_FORMATS = {"_delta_log": "Delta Lake", ".hoodie": "Apache Hudi"}


@dataclass(frozen=True)
class Dataset:
    """A MEDS data set on disk: its folder, its shards in a fixed order, and what becomes of each of its files."""

    root: Path
    shards: tuple[Path, ...]
    inventory: Inventory

    def name_of(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def files(self) -> list[Path]:
        """The files that its content depends on: all that are read."""
        return [*self.shards, *self.parts(SPLITS_FILE), *self.parts(CODES_FILE)]

    def parts(self, table: Path) -> list[Path]:
        """The files of SPLITS_FILE or CODES_FILE: itself, or those in the folder of this name; none if it is absent."""
        place = self.root / table
        return [file for file in self.inventory.read if file == place or place in file.parents]

    def source(self) -> Source:
        """What an artefact that is made from it records: itself, if it is an artefact, else its files."""
        return self.root if (self.root / MANIFEST).is_file() else Files(self.root, tuple(self.files()))


def _rule(below: Path) -> str | None:
    """Which files of a data set are read, by their path below it (see `Inventory.of`)."""
    if below.parts[0] not in ("data", "metadata"):
        return "outside data/ and metadata/"
    if below == ABOUT_FILE:
        return "says what the data set is called"
    is_table = below.suffix.lower() == ".parquet"
    if below in (SPLITS_FILE, CODES_FILE):
        return ""
    if is_table and (below.parts[0] == "data" or {SPLITS_FILE, CODES_FILE} & set(below.parents)):
        return ""
    return None


def _refuse_table_format(root: Path, files: list[Path]) -> None:
    for file in files:
        below = file.relative_to(root)
        name = next((TABLE_FORMATS[part] for part in below.parts if part in TABLE_FORMATS), None)
        if file.name.endswith(".metadata.json"):
            name = "Apache Iceberg"
        if name:
            raise InputError(
                f"{root} holds a table of {name} ({below.as_posix()}), whose folder has old rows beside current ones. "
                f"Write the current version as plain parquet files, and give their folder."
            )


def _refuse_same_file(root: Path, shards: tuple[Path, ...]) -> None:
    first: dict[Path, Path] = {}
    for shard in shards:
        earlier = first.setdefault(shard.resolve(), shard)
        if earlier is not shard:
            raise InputError(
                f"{root}: {earlier.relative_to(root)} and {shard.relative_to(root)} are the same file, whose subjects "
                f"would count twice. Remove one of the links."
            )


def open_dataset(root: Path) -> Dataset:
    """The data set in the folder `root`, whose events are in `root/data/**/*.parquet`.

    Links are followed; a folder that ends in `.parquet` is its files. Raises InputError where there is no such folder
    or no file, where a file is there twice by links, and for the folders of table formats (Delta Lake, …).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no such folder: {root}. Give the folder of a MEDS data set, the one that holds data/.")
    outside = sorted(path for path in root.iterdir() if path.name not in ("data", "metadata"))
    inside = [file for name in ("data", "metadata") if (root / name).is_dir() for file in files_below(root / name)]
    _refuse_table_format(root, inside)
    inventory = Inventory.of(root, outside + inside, _rule)
    shards = tuple(sorted(file for file in inventory.read if file.is_relative_to(root / "data")))
    if not shards:
        other = [file for file in inventory.unknown if file.is_relative_to(root / "data")]
        instead = f", but {len(other):,} other files, such as {other[0].relative_to(root)}" if other else ""
        raise InputError(f"{root} holds no data/**/*.parquet{instead}. Give the folder of a MEDS data set.")
    _refuse_same_file(root, shards)
    return Dataset(root, shards, inventory)


def _codes_of(file: Path, name: str) -> pl.DataFrame:
    codes = read_parquet(file, name, columns=list(CODES))
    if problems := wrong_codes(codes, name):
        raise BrokenFile(problems[0])
    missing = [pl.lit(None, dtype).alias(column) for column, dtype in CODES.items() if column not in codes.columns]
    return codes.with_columns(missing).select(pl.col(column).cast(dtype) for column, dtype in CODES.items())


def read_codes(dataset: Dataset) -> pl.DataFrame:
    """`metadata/codes.parquet` as (code, description, parent_codes list of strings); empty where there is none.

    A row without a code describes none, and is left out. A code may be there twice: see who reads it.
    """
    parts = [_codes_of(file, dataset.name_of(file)) for file in dataset.parts(CODES_FILE)]
    return pl.concat([pl.DataFrame(schema=CODES), *parts]).drop_nulls("code")
