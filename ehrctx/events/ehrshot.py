"""EHRSHOT's CSV release: where its files lie, and its events and splits as MEDS.

The release (https://ehrshot.stanford.edu, layout: https://github.com/som-shahlab/ehrshot-benchmark) holds
data/ehrshot.csv, splits/person_id_map.csv and benchmark/<task>/labeled_patients.csv. It is 41.66 million rows long, so
it is read in blocks and dealt out to shards. Its MEDS release needs no import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from ehrctx.artifacts import Source
from ehrctx.errors import InputError
from ehrctx.events.event_rows import OURS, discharges, refuse_row, to_events, typed_rows
from ehrctx.events.meds import SPLITS_FILE
from ehrctx.events.ontology import described
from ehrctx.events.splits import hash_splits
from ehrctx.events.writer import ShardWriter, sharded, shards_for, write_metadata
from ehrctx.study import HashSplits

REQUIRED = ("patient_id", "start", "code", "value")
OPTIONAL = ("end", "unit", "visit_id", "omop_table")
EVENT_FILES = ("ehrshot.csv", "ehrshot.csv.gz")
SPLIT_FILES = ("person_id_map.csv",)
LABEL_FILE = "labeled_patients.csv"
SEVERAL_FINDINGS = "chexpert"  # its labels are 14 findings in one number, and Context Clues leaves it out
DEPTH = 4  # people unpack EHRSHOT_ASSETS/ into EHRSHOT_ASSETS/, and look from above
BLOCK = 32 * 2**20  # bytes of the file that are parsed at a time, some 400,000 rows
BYTES_PER_ROW = 77  # 3.2 GB hold 41.66 million rows; it only sets the number of shards
SPLITS = {"train": "train", "val": "tuning", "test": "held_out"}
THIRDS = HashSplits(hash=(1 / 3, 1 / 3, 1 / 3))  # as the release's own: 2,295, 2,232 and 2,212 patients


@dataclass(frozen=True)
class Release:
    """The files of an unpacked CSV release; those of labels by task, without CheXpert's."""

    events: Path
    splits: Path
    labels: dict[str, Path]

    def files(self) -> list[Path]:
        """All of them."""
        return [self.events, self.splits, *self.labels.values()]


def _below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Everything below a folder, not deeper than `depth`, hidden folders left out."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            yield path
            if depth > 1 and path.is_dir():
                yield from _below(path, depth - 1)


def _one(found: Iterable[Path], folder: Path, what: str) -> Path | None:
    several = list(found)
    if len(several) > 1:
        raise InputError(f"{folder} holds {what} twice: {several[0]} and {several[1]}. Give the folder of one of them.")
    return several[0] if several else None


def _labels(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """The label files by task; of several folders with labels, those of the one called benchmark."""
    found = [file for file in files if file.name == LABEL_FILE]
    roots = sorted({file.parent.parent for file in found})
    root = _one([root for root in roots if root.name == "benchmark"] or roots, folder, "labels")
    of_tasks = {file.parent.name: file for file in found if file.parent.parent == root}
    return {task: file for task, file in of_tasks.items() if task != SEVERAL_FINDINGS}


def find_release(folder: Path) -> Release:
    """The files of the CSV release in `folder`, or up to four levels below.

    Raises InputError where events or splits are missing or there twice, or the folder is the MEDS release.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}. Give the folder into which EHRSHOT was unpacked.")
    paths = list(_below(folder))
    files = [path for path in paths if path.is_file()]
    events = _one((f for f in files if f.name in EVENT_FILES), folder, "the events")
    if events is None:
        meds = next((f.parent.parent for f in files if f.parts[-2:] == SPLITS_FILE.parts), None)
        if meds is not None:
            raise InputError(
                f"{meds} is EHRSHOT's MEDS release, which is used in place: write `data: {meds}` and "
                f"`labels: {{given: {meds / 'labels'}}}` into the study, and import nothing."
            )
        raise InputError(f"{folder} holds no data/{EVENT_FILES[0]}. Give the folder into which EHRSHOT was unpacked.")
    splits = _one((f for f in files if f.name in SPLIT_FILES), folder, "the splits")
    if splits is None:
        raise InputError(f"{folder} holds no splits/{SPLIT_FILES[0]}. Unpack it as well: it says who is held out.")
    return Release(events, splits, _labels(files, folder))


def release_inputs(release: Release, concepts: Path | None) -> dict[str, Source]:
    """What the imported events are made from, by the name under which they record each."""
    labels = {f"labels of {task}": file for task, file in release.labels.items()}
    files: dict[str, Source] = {"events": release.events, "splits": release.splits, **labels}
    return files if concepts is None else {**files, "concepts": concepts}


def _header(file: Path) -> list[str]:
    try:
        parsing = pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        with pa_csv.open_csv(file, parse_options=parsing) as reader:
            names = [str(name) for name in reader.schema.names]
    except (pa.ArrowInvalid, OSError):
        raise InputError(f"{file} is not a readable CSV file. Unpack it again.") from None
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Its first line must name the columns.")
    return names


def _blocks(file: Path) -> Iterator[tuple[pl.DataFrame, int]]:
    """The rows of the events, as texts (null where empty), and the number of the first of them, counted from 1."""
    present = [name for name in (*REQUIRED, *OPTIONAL) if name in _header(file)]
    odd: list[int] = []

    def note(row: pa_csv.InvalidRow) -> str:  # pyarrow's own message would show the row
        odd.append(row.number - 1)
        return "skip"

    read = 0
    try:
        reader = pa_csv.open_csv(
            file,
            # with threads, pyarrow cannot tell the number of a broken row
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(present, pa.string()),
                include_columns=present,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        with reader:
            for batch in reader:
                if odd:
                    break
                rows = pl.DataFrame(pl.from_arrow(batch))
                absent = [pl.lit(None, pl.String).alias(name) for name in OPTIONAL if name not in present]
                yield rows.with_columns(absent), read + 1
                read += rows.height
    except pa.ArrowInvalid:
        raise InputError(f"{file}, after row {read:,}: this is not CSV in UTF-8. Unpack the file again.") from None
    if odd:
        raise InputError(
            f"{file}, row {odd[0]:,}: it has another number of fields than the first line. Mend it, or unpack the "
            f"file again."
        )


def _write_rows(file: Path, writer: ShardWriter) -> tuple[dict[str, Any], np.ndarray, set[str]]:
    """Adds all events to `writer`. Returns what was counted, the distinct subjects int64[n], and the codes."""
    left_out: Counter[str] = Counter()
    subjects: list[np.ndarray] = []
    ends: list[pl.DataFrame] = []
    codes: set[str] = set()
    rows = 0
    for texts, first_row in _blocks(file):
        events = to_events(typed_rows(texts, file, first_row), left_out)
        writer.add(events)
        ends.append(discharges(events, left_out))
        subjects.append(events["subject_id"].unique().to_numpy())
        codes.update(events["code"].unique())
        rows += texts.height
    if not writer.n_events:
        raise InputError(f"{file} holds no events. Unpack it again.")
    closed = pl.concat(ends)
    # last, so that a visit ends after everything else of that minute, wherever the blocks were cut
    writer.add(closed)
    codes.update(closed["code"].unique())
    counted = {"rows": rows, "events": writer.n_events, "ends_of_visits": closed.height, "left_out": dict(left_out)}
    return counted, np.unique(np.concatenate(subjects)), codes


def read_release_splits(file: Path) -> pl.DataFrame:
    """(subject_id, split) of the release, under MEDS's names: train, tuning (its val) and held_out (its test).

    Raises InputError, with file and row, where a split or an id is none, or a subject is in two splits.
    """
    try:
        rows = pl.read_csv(file, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(f"{file} is not a readable CSV file. Unpack it again.") from None
    for name in ("omop_person_id", "split"):
        if name not in rows.columns:
            raise InputError(f"{file}: the column {name!r} is missing. Unpack it again.")
    subject = rows["omop_person_id"].str.strip_suffix(".0").cast(pl.Int64, strict=False)
    refuse_row(file, 1, subject.is_null(), "omop_person_id is not a whole number. Correct it.")
    split = rows["split"].str.strip_chars()
    refuse_row(file, 1, ~split.is_in(list(SPLITS)).fill_null(False), "split is not train, val or test. Correct it.")
    table = pl.DataFrame({"subject_id": subject, "split": split.replace_strict(SPLITS, return_dtype=pl.String)})
    in_two = table.select(pl.col("split").n_unique().over("subject_id") > 1).to_series()
    refuse_row(file, 1, in_two, "this subject is in two splits. Keep the row that is right.")
    return table.unique(maintain_order=True)


def _complete(splits: pl.DataFrame, subjects: np.ndarray) -> tuple[pl.DataFrame, int]:
    """The release's splits, and those of subjects that it forgot, by a hash; and how many these are."""
    forgotten = np.setdiff1d(subjects, splits["subject_id"].to_numpy())
    if not len(forgotten):
        return splits.sort("subject_id"), 0
    return pl.concat([splits, hash_splits(forgotten, THIRDS)]).sort("subject_id"), len(forgotten)


def write_events(release: Release, folder: Path, concepts: Path | None) -> tuple[dict[str, Any], np.ndarray]:
    """Writes `data/` and `metadata/` of the release to `folder`, as MEDS 0.4.

    `concepts`: the folder of an Athena download, which gives descriptions and parents of codes. Returns what was
    counted, and the distinct subjects with events, int64[n].
    """
    table = read_release_splits(release.splits)
    size = release.events.stat().st_size * (8 if release.events.suffix == ".gz" else 1)
    with sharded(folder, shards_for(size // BYTES_PER_ROW)) as writer:
        facts, subjects, used = _write_rows(release.events, writer)
    splits, forgotten = _complete(table, subjects)
    codes = described(pl.Series("code", sorted(used), pl.String), concepts, OURS)
    facts |= {
        "subjects": len(subjects),
        "codes": len(used),
        "splits": dict(splits["split"].value_counts().sort("split").iter_rows()),
        "subjects_by_hash_split": forgotten,
    }
    if concepts is not None:
        facts["codes_without_description"] = codes.filter(pl.col("code").is_in(list(used)))["description"].null_count()
    write_metadata(folder, {"dataset_name": "EHRSHOT", "etl_name": "ehrctx import ehrshot"}, codes, splits)
    return facts, subjects
