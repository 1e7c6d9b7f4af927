"""Tidy labels, changed in one way: the right labels, or one sentence; each row is a label, or counted."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutation import Mutation, assert_right_or_refused

from ehrctx.study import Labels
from ehrctx.tasks.label_sets import read_labels, write_labels

Change = Callable[[Path, np.random.Generator], object]
SUBJECTS = range(1, 9)
PROFILE = Path(__file__).parents[2] / "pipelines" / "datasets" / "simulated.yaml"
CSV = "subject_id,prediction_time,boolean_value,note\n" + "".join(
    f'{subject},2020-0{subject}-01T23:59:00,{subject % 3 == 0},"a, b"\n' for subject in SUBJECTS
)


def reader(data: Path) -> Callable[[Path, Path], list[tuple]]:
    def read(folder: Path, out: Path) -> list[tuple]:
        """The labels and how many were left out; those and these are all rows."""
        facts = write_labels(data, str(PROFILE), ["guo_los"], Labels(given=str(folder)), out)["guo_los"]
        labels = read_labels(out)["guo_los"].rows()
        assert facts["labels"] == len(labels)
        return [*labels, sum(facts["left_out"].values())]

    return read


def file_as(edit: Callable[[bytes], bytes], name: str = "guo_los.csv") -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        file = folder / "guo_los.csv"
        content = edit(file.read_bytes())
        file.unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def text_as(old: str, new: str) -> Change:
    """Replaces `old` in a line that is drawn of those that have it."""

    def change(folder: Path, draw: np.random.Generator) -> None:
        file = folder / "guo_los.csv"
        lines = file.read_text().splitlines(keepends=True)
        at = draw.choice([i for i, line in enumerate(lines) if old in line])
        lines[at] = lines[at].replace(old, new, 1)
        file.write_text("".join(lines))

    return change


def as_parquet(*names: str, edit: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame) -> Change:
    """Writes the labels as parquet, divided among as many files as there are names."""

    def change(folder: Path, draw: np.random.Generator) -> None:
        frame = pl.read_csv(folder / "guo_los.csv", try_parse_dates=True)
        (folder / "guo_los.csv").unlink()
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            edit(frame[i :: len(names)]).write_parquet(folder / name)

    return change


def with_decimal256(folder: Path, draw: np.random.Generator) -> None:
    as_parquet("guo_los.parquet")(folder, draw)
    file = folder / "guo_los.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("cost", pa.nulls(len(table), pa.decimal256(76, 38))), file)


def in_int96(folder: Path, draw: np.random.Generator) -> None:
    as_parquet("guo_los.parquet")(folder, draw)
    file = folder / "guo_los.parquet"
    pq.write_table(pq.read_table(file), file, use_deprecated_int96_timestamps=True)


def as_link(folder: Path, draw: np.random.Generator) -> None:
    elsewhere = folder.with_name("elsewhere")
    as_parquet("guo_los/0.parquet", "guo_los/1.parquet")(folder, draw)
    (folder / "guo_los").rename(elsewhere)
    (folder / "guo_los").symlink_to(elsewhere)


def shuffled(folder: Path, draw: np.random.Generator) -> None:
    header, *rows = csv.reader(io.StringIO((folder / "guo_los.csv").read_text()))
    columns = draw.permutation(len(header))
    with (folder / "guo_los.csv").open("w", newline="") as stream:
        table = [header, *(rows[i] for i in draw.permutation(len(rows)))]
        csv.writer(stream).writerows([[row[c] for c in columns] for row in table])


def beside(name: str) -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x00\xff")

    return change


MUTATIONS = [
    Mutation("capital letters", file_as(bytes, "guo_los.CSV")),
    Mutation("gzip", file_as(gzip.compress, "guo_los.csv.gz")),
    Mutation("gzip without the suffix", file_as(gzip.compress)),
    Mutation("gzip that is cut off", file_as(lambda text: gzip.compress(text)[:-9]), "damaged or cut off"),
    Mutation("EHRSHOT's place", file_as(bytes, "guo_los/labeled_patients.csv")),
    Mutation("a byte order mark", file_as(b"\xef\xbb\xbf".__add__)),
    Mutation("CR LF and blank lines", file_as(lambda text: text.replace(b"\n", b"\r\n") + b"\r\n,,,\r\n")),
    Mutation("semicolons", file_as(lambda text: text.replace(b",", b";")), "separated by semicolons"),
    Mutation("tabs in a .tsv", file_as(bytes, "guo_los.tsv"), r"no labels of 'guo_los' in .* \(guo_los\.tsv is none\)"),
    Mutation("UTF-16", file_as(lambda text: text.decode().encode("utf-16-le")), "looks like UTF-16"),
    Mutation("latin-1", file_as(lambda t: t.replace(b"a, b", b"\xfc")),
             "row 1: this row is not UTF-8 text"),
    Mutation("empty", file_as(lambda text: b""), "is empty"),
    Mutation("a spreadsheet", file_as(lambda text: b"PK\x03\x04" + text), "not text but a ZIP archive"),
    Mutation("rows and columns in another order", shuffled),
    Mutation("a column twice", file_as(lambda text: text.replace(b"note", b"subject_id")), "'subject_id' is there twi"),
    Mutation("a column missing", file_as(lambda t: t.replace(b"prediction_time", b"time")), "'prediction_time' is mis"),
    Mutation("an id with a point", text_as("5,", "5.0,")),
    Mutation("an id of a text", text_as("5,", "x5,"), "row 5: subject_id is not a whole number"),
    Mutation("NA for a value", text_as("True", "NA"), r"row \d: boolean_value is empty"),
    Mutation("NA for a time", text_as("2020-05-01T23:59:00", "NA"), "row 5: prediction_time is empty"),
    Mutation("a zone", text_as(":00,", ":00+01:00,"), "looks like a date-time with a time zone"),
    Mutation("a month first", text_as("2020-05-01T23:59:00", "5/1/2020"), r"row 5: .* \(it looks like MM/DD/YYYY\)"),
    Mutation("parquet", as_parquet("guo_los.parquet")),
    Mutation("shards", as_parquet("guo_los/train/0.PARQUET", "guo_los/split=held_out/1.parquet")),
    Mutation("shards behind a link", as_link),
    Mutation("parquet beside decimal256", with_decimal256),
    Mutation("parquet with INT96", in_int96),
    Mutation("two forms", lambda folder, draw: (folder / "guo_los.parquet").write_bytes(b""), "are there twice"),
    Mutation("times with a zone", as_parquet("guo_los.parquet", edit=lambda frame: frame.with_columns(
        pl.col("prediction_time").dt.replace_time_zone("UTC"))), "prediction_time has a time zone"),
    Mutation("junk beside the labels", beside("guo_los/notes.txt")),
    Mutation("junk of macOS", beside("._guo_los.csv")),
    Mutation("labels of another task", beside("new_lupus/labels.parquet")),
]  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads the labels of a folder for a small data set, of all of whose subjects there is a label."""
    data = tmp_path_factory.mktemp("events")
    (data / "data").mkdir()
    columns = {"subject_id": list(SUBJECTS), "time": [datetime(2000, 1, 1)] * len(SUBJECTS), "code": ["A"] * 8}
    events = pl.DataFrame(columns, schema_overrides={"time": pl.Datetime("us")})
    events.with_columns(numeric_value=pl.lit(None, pl.Float32)).write_parquet(data / "data" / "0.parquet")
    return reader(data)


def tidy(folder: Path) -> Path:
    folder.mkdir()
    (folder / "guo_los.csv").write_text(CSV)
    return folder


@pytest.fixture(scope="module")
def tidy_result(tmp_path_factory, read):
    folder = tmp_path_factory.mktemp("tidy")
    result = read(tidy(folder / "labels"), folder / "out")
    assert len(result) == len(SUBJECTS) + 1
    return result


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_changed_labels(mutation, tmp_path, read, tidy_result):
    assert_right_or_refused(mutation, tidy(tmp_path / "labels"), tmp_path / "out", read, tidy_result)


@pytest.mark.parametrize(("old", "new"), [("5,", "99,"), ("2020-05", "1999-05")])
def test_labels_that_cannot_be_used_are_counted(tmp_path, read, tidy_result, old, new):
    folder = tidy(tmp_path / "labels")
    text_as(old, new)(folder, np.random.default_rng(0))
    *labels, left_out = read(folder, tmp_path / "out")
    assert (len(labels), left_out) == (len(SUBJECTS) - 1, 1)
    assert set(labels) < set(tidy_result)
