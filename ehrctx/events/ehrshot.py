"""EHRSHOT's CSV release: where its files lie, and its events and splits as MEDS.

The release (https://ehrshot.stanford.edu, layout: https://github.com/som-shahlab/ehrshot-benchmark) holds
data/ehrshot.csv, splits/person_id_map.csv and benchmark/<task>/labeled_patients.csv. It is 41.66 million rows long, so
it is read in blocks and dealt out to shards. Its MEDS release needs no import.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import Files, Source
from ehrctx.errors import InputError
from ehrctx.events.batches import Batch, read_batches
from ehrctx.events.columns import integers, texts
from ehrctx.events.csv_files import is_gzip
from ehrctx.events.event_rows import OURS, Counts, discharges, implausible_starts, to_events, typed_rows
from ehrctx.events.limits import IMPLAUSIBLE
from ehrctx.events.meds import SPLITS_FILE
from ehrctx.events.ontology import described, description_files
from ehrctx.events.splits import hash_splits
from ehrctx.events.writer import ShardWriter, sharded, shards_for, write_metadata
from ehrctx.inventory import Inventory, files_below
from ehrctx.study import HashSplits

REQUIRED = ("patient_id", "start", "code", "value")
OPTIONAL = ("end", "unit", "visit_id", "omop_table")
EVENT_FILES = ("ehrshot.csv", "ehrshot.csv.gz")
SPLIT_FILES = ("person_id_map.csv", "person_id_map.csv.gz")
LABEL_FILES = ("labeled_patients.csv", "labeled_patients.csv.gz")
SHOT_FILES = ("all_shots_data.json", "few_shots_data.json")
# Folders of the published code's results and inputs, of which the events do not depend.
OTHER_FOLDERS = (
    "athena_download", "femr", "models", "features", "figures", "results", "results_ehrshot", "tables",
    "tokenized_timelines", "tokenized_timelines_ehrshot", "ehrshot", "logs",
)  # fmt: skip
ABOUT_SUFFIXES = (".md", ".pdf", ".html", ".py", ".sh", ".yaml", ".yml", ".zip", ".gz", ".tar", ".log")
UNREAD = "The release holds data/ehrshot.csv, splits/person_id_map.csv and benchmark/<task>/labeled_patients.csv."
SEVERAL_FINDINGS = "chexpert"  # its labels are 14 findings in one number, and Context Clues leaves it out
DEPTH = 4  # people unpack EHRSHOT_ASSETS/ into EHRSHOT_ASSETS/, and look from above
BLOCK = 32 * 2**20  # bytes of the file that are parsed at a time, some 400,000 rows
BYTES_PER_ROW = 77  # 3.2 GB hold 41.66 million rows; it only sets the number of shards
SPLITS = {"train": "train", "val": "tuning", "test": "held_out"}
THIRDS = HashSplits(hash=(1 / 3, 1 / 3, 1 / 3))  # as the release's own: 2,295, 2,232 and 2,212 patients


@dataclass(frozen=True)
class Release:
    """The files of an unpacked CSV release; those of labels by task, without CheXpert's; and what all files are."""

    events: Path
    splits: Path
    labels: dict[str, Path]
    inventory: Inventory

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
    label_files = [file for file in files if file.name.lower() in LABEL_FILES]
    roots = sorted({file.parent.parent for file in label_files})
    root = _one([root for root in roots if root.name == "benchmark"] or roots, folder, "labels")
    of_tasks = {file.parent.name: file for file in label_files if file.parent.parent == root}
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
    events = _one((f for f in files if f.name.lower() in EVENT_FILES), folder, "the events")
    if events is None:
        meds = next((f.parent.parent for f in files if f.parts[-2:] == SPLITS_FILE.parts), None)
        if meds is not None:
            raise InputError(
                f"{meds} is EHRSHOT's MEDS release, which is used in place: write `data: {meds}` and "
                f"`labels: {{given: {meds / 'labels'}}}` into the study, and import nothing."
            )
        raise InputError(f"{folder} holds no data/{EVENT_FILES[0]}. Give the folder into which EHRSHOT was unpacked.")
    splits = _one((f for f in files if f.name.lower() in SPLIT_FILES), folder, "the splits")
    if splits is None:
        raise InputError(f"{folder} holds no splits/{SPLIT_FILES[0]}. Unpack it as well: it says who is held out.")
    labels = _labels(files, folder)
    return Release(events, splits, labels, _inventory(events, splits, labels))


def release_inputs(release: Release, concepts: Path | None) -> dict[str, Source]:
    """What the imported events are made from, by the name under which they record each."""
    labels = {f"labels of {task}": file for task, file in release.labels.items()}
    files: dict[str, Source] = {"events": release.events, "splits": release.splits, **labels}
    if concepts is None:
        return files
    return {**files, "concepts": Files(concepts, tuple(description_files(concepts)))}


def _inventory(events: Path, splits: Path, labels: dict[str, Path]) -> Inventory:
    """What the files of the release's own folder are."""
    read = {events, splits, *labels.values()}
    root = Path(os.path.commonpath([file.parent for file in read]))
    root = root.parent if root == events.parent and root.name == "data" else root

    def rule(relative: Path) -> str | None:
        folders = [part.lower() for part in relative.parts[:-1]]
        name = relative.name.lower()
        if root / relative in read or (name in SHOT_FILES and relative.parent.name in labels):
            return ""
        if SEVERAL_FINDINGS in folders:
            return "labels of 14 findings in one number"
        if name in LABEL_FILES:
            return "labels beside those of benchmark/"
        if any(part in OTHER_FOLDERS for part in folders):
            return "nothing of which events or labels are made"
        return "about the data" if name.endswith(ABOUT_SUFFIXES) or name.startswith(("readme", "license")) else None

    return Inventory.of(root, files_below(root), rule)


def _write_rows(file: Path, writer: ShardWriter, implausible_time: str) -> tuple[dict[str, Any], np.ndarray, set[str]]:
    """Adds all events to `writer`. Returns what was counted, the distinct subjects int64[n], and the codes."""
    counts = Counts()
    subjects: list[np.ndarray] = []
    ends: list[pl.DataFrame] = []
    codes: set[str] = set()
    rows = 0
    for batch in read_batches([file], REQUIRED, OPTIONAL, "Its first line must name the columns.", BLOCK):
        typed = typed_rows(batch)
        if implausible_time == "refuse":
            batch.refuse(implausible_starts(typed), f"start {IMPLAUSIBLE}")
        events = to_events(typed, counts)
        writer.add(events)
        ends.append(discharges(events, counts))
        subjects.append(events["subject_id"].unique().to_numpy())
        codes.update(events["code"].unique())
        rows += batch.rows.height
    if not writer.n_events:
        raise InputError(f"{file} holds no events. Unpack it again.")
    closed = pl.concat(ends)
    # last, so that a visit ends after everything else of that minute, wherever the blocks were cut
    writer.add(closed)
    codes.update(closed["code"].unique())
    counted = {"rows": rows, "events": writer.n_events, "ends_of_visits": closed.height, **counts.facts()}
    return counted, np.unique(np.concatenate(subjects)), codes


def read_release_splits(file: Path) -> pl.DataFrame:
    """(subject_id, split) of the release, under MEDS's names: train, tuning (its val) and held_out (its test).

    Raises InputError, with file and row, where a split or an id is none, or a subject is in two splits.
    """
    parts = [pl.DataFrame(schema={"subject_id": pl.Int64, "split": pl.String})]
    for batch in read_batches([file], ("omop_person_id", "split"), (), "Unpack it again."):
        subject = integers(batch, "omop_person_id")
        batch.refuse(subject.is_null(), "omop_person_id is empty. Fill it, or leave the row out.")
        split = texts(batch, "split")
        batch.refuse(~split.is_in(list(SPLITS)).fill_null(False), "split is not train, val or test. Correct it.")
        parts.append(
            pl.DataFrame({"subject_id": subject, "split": split.replace_strict(SPLITS, return_dtype=pl.String)})
        )
    table = pl.concat(parts)
    in_two = table.select(pl.col("split").n_unique().over("subject_id") > 1).to_series()
    Batch(file, 1, table).refuse(in_two, "this subject is in two splits. Keep the row that is right.")
    return table.unique(maintain_order=True)


def _complete(splits: pl.DataFrame, subjects: np.ndarray) -> tuple[pl.DataFrame, int]:
    """The release's splits, and those of subjects that it forgot, by a hash; and how many these are."""
    forgotten = np.setdiff1d(subjects, splits["subject_id"].to_numpy())
    if not len(forgotten):
        return splits.sort("subject_id"), 0
    return pl.concat([splits, hash_splits(forgotten, THIRDS)]).sort("subject_id"), len(forgotten)


def write_events(
    release: Release, folder: Path, concepts: Path | None, implausible_time: str = "refuse"
) -> tuple[dict[str, Any], np.ndarray]:
    """Writes `data/` and `metadata/` of the release to `folder`, as MEDS 0.4.

    `concepts`: the folder of an Athena download, which gives descriptions and parents of codes. `implausible_time`:
    refuse or drop events whose start is a placeholder. Returns what was counted, and the distinct subjects with events,
    int64[n].
    """
    table = read_release_splits(release.splits)
    size = release.events.stat().st_size * (8 if is_gzip(release.events) else 1)
    with sharded(folder, shards_for(size // BYTES_PER_ROW)) as writer:
        facts, subjects, used = _write_rows(release.events, writer, implausible_time)
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
