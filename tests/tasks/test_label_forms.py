"""Label files and folders as other programs and people leave them: read, refused in one sentence, or named."""

import gzip
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.definition import load_definitions
from ehrctx.tasks.given import read_given
from ehrctx.tasks.imports import given_files
from ehrctx.tasks.label_files import files_at, label_files
from ehrctx.tasks.label_sets import write_labels
from ehrctx.tasks.labelers import LABEL_SCHEMA

CSV = """subject_id,prediction_time,boolean_value,integer_value,note
7,2018-01-11T10:00:00,True,2,"a, b"
8,2018-02-01 23:59:00,False,0,
"""
TIDY = [(7, datetime(2018, 1, 11, 10), True, 2), (8, datetime(2018, 2, 1, 23, 59), False, 0)]
READ = {
    "as it is": lambda text: text.encode(),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "CR LF": lambda text: text.replace("\n", "\r\n").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "blank lines at the end": lambda text: text.encode() + b"\n\n",
    "cells of nothing at the end": lambda text: text.encode() + b",,,,\n",
    "whole numbers with a point": lambda text: text.replace("7,", "7.0,").replace(",2,", ",2.0,").encode(),
    "quoted": lambda text: text.replace("True", '"True"').replace("subject_id", '"subject_id"').encode(),
    "spaces": lambda text: text.replace(",True", ", True ").replace("subject_id,", " subject_id ,").encode(),
}


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize("name", ["labels.csv", "LABELS.CSV", "labels.csv.gz", "labels.Csv.Gz"])
def test_forms_that_are_read(tmp_path, form, name):
    (tmp_path / name).write_bytes(READ[form](CSV))
    assert read_given(tmp_path / name).rows() == TIDY
    assert read_given(tmp_path / name).schema == LABEL_SCHEMA


REFUSED = {
    "semicolons": (lambda t: t.replace(",", ";").encode(), "are separated by semicolons, tabs or bars. Write it with"),
    "tabs": (lambda t: t.replace(",", "\t").encode(), "are separated by semicolons, tabs or bars. Write it with"),
    "UTF-16": (lambda t: t.encode("utf-16"), "is not UTF-8 text, it looks like UTF-16. Write the file as UTF-8."),
    "UTF-16 without a mark": (lambda t: t.encode("utf-16-le"), "is not UTF-8 text, it looks like UTF-16."),
    "UTF-32": (lambda t: t.encode("utf-32"), "is not UTF-8 text, it looks like UTF-32."),
    "latin-1": (lambda t: t.replace("a, b", "für").encode("latin-1"), ", row 1: this row is not UTF-8 text."),
    "empty": (lambda t: b"", "is empty. Write it with its header, or remove it."),
    "a gzip file that is cut off": (lambda t: gzip.compress(t.encode())[:-12], "it is damaged or cut off."),
    "a spreadsheet": (lambda t: b"PK\x03\x04" + t.encode(), "is not text but a ZIP archive or a spreadsheet."),
    "a column twice": (lambda t: t.replace("note", "boolean_value").encode(), "the column 'boolean_value' is there tw"),
    "no subject": (lambda t: t.replace("\n8,", "\nNA,").encode(), "row 2: subject_id is empty."),
    "no time": (lambda t: t.replace("2018-02-01 23:59:00", "NA").encode(), "row 2: prediction_time is empty."),
    "no value": (lambda t: t.replace("False,0", "NA,NA").encode(), "row 2: boolean_value is empty."),
    "a zone": (lambda t: t.replace("10:00:00", "10:00:00Z").encode(), "(it looks like a date-time with a time zone)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_are_refused(tmp_path, case):
    change, sentence = REFUSED[case]
    file = tmp_path / "labels.csv"
    file.write_bytes(change(CSV))
    with pytest.raises(InputError) as caught:
        read_given(file)
    said = str(caught.value)
    assert sentence in said
    assert said.startswith(str(file))
    assert "\n" not in said
    assert said.endswith(".")


@pytest.mark.parametrize("missing", ["NA", "N/A", "None", "nan", r"\N", "NULL"])
def test_grades_that_are_missing(tmp_path, missing):
    file = tmp_path / "labels.csv"
    file.write_text(CSV.replace(",0,", f",{missing},"))
    assert read_given(file).rows() == [TIDY[0], (*TIDY[1][:3], None)]


def table(**columns):
    made = pa.table(
        {
            "subject_id": pa.array([7, 8], pa.int64()),
            "prediction_time": pa.array([row[1] for row in TIDY], pa.timestamp("us")),
            "boolean_value": pa.array([True, False]),
            "integer_value": pa.array([2, 0], pa.int64()),
        }
    )
    for name, column in columns.items():
        at = made.schema.get_field_index(name)
        made = made.set_column(at, name, column) if at >= 0 else made.append_column(name, column)
    return made


PARQUET = {
    "beside a decimal256": {"cost": pa.array([Decimal(1), None], pa.decimal256(76, 38))},
    "beside lists": {"tags": pa.array([[1], None])},
    "ids of 32 bits": {"subject_id": pa.array([7, 8], pa.int32())},
    "unsigned ids": {"subject_id": pa.array([7, 8], pa.uint64())},
    "times in milliseconds": {"prediction_time": pa.array([row[1] for row in TIDY], pa.timestamp("ms"))},
    "times in INT96": {},
    "grades as numbers": {"integer_value": pa.array([2.0, 0.0])},
    "values of type null": {"float_value": pa.nulls(2), "categorical_value": pa.nulls(2)},
}


@pytest.mark.parametrize("case", PARQUET)
@pytest.mark.parametrize("name", ["labels.parquet", "LABELS.PARQUET"])
def test_parquet_that_is_read(tmp_path, case, name):
    pq.write_table(table(**PARQUET[case]), tmp_path / name, use_deprecated_int96_timestamps=case == "times in INT96")
    assert read_given(tmp_path / name).rows() == TIDY


def test_a_time_in_int96_beyond_nanoseconds(tmp_path):
    late = datetime(2300, 1, 6)
    times = pa.array([late, late], pa.timestamp("us"))
    pq.write_table(table(prediction_time=times), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert read_given(tmp_path / "a.parquet")["prediction_time"].to_list() == [late, late]


WRONG_TYPES = {
    "a zone": ({"prediction_time": pa.array([datetime.now(UTC)] * 2)}, "prediction_time has a time zone"),
    "ids as numbers": ({"subject_id": pa.array([7.0, 8.0])}, "the column 'subject_id' is Float64, expected an integer"),
    "ids as texts": ({"subject_id": pa.array(["7", "8"])}, "the column 'subject_id' is String, expected an integer"),
    "ids as decimal256": (
        {"subject_id": pa.array([Decimal(7), Decimal(8)], pa.decimal256(60, 0))}, "the column 'subject_id' is String",
    ),
    "lists": ({"boolean_value": pa.array([[True], [False]])}, "the column 'boolean_value' is list"),
    "days": ({"prediction_time": pa.array([row[1].date() for row in TIDY])}, "expected a date-time. Cast it."),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_types_that_are_refused_by_column(tmp_path, case):
    columns, sentence = WRONG_TYPES[case]
    pq.write_table(table(**columns), tmp_path / "a.parquet")
    with pytest.raises(InputError) as caught:
        read_given(tmp_path / "a.parquet")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# --- folders ----------------------------------------------------------------------------------------------------------


def put(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(".parquet"):
            pq.write_table(table(), file)
        else:
            file.write_text(CSV)


@pytest.mark.parametrize(
    "name",
    [
        "guo_los.csv", "guo_los.CSV", "guo_los.csv.gz", "guo_los.PARQUET", "guo_los/Labels.parquet",
        "guo_los/labeled_patients.csv.gz", "guo_los/LABELED_PATIENTS.CSV", "guo_los/train/0.PARQUET",
        "guo_los/split=train/0.parquet",
    ],
)  # fmt: skip
def test_files_of_a_task(tmp_path, name):
    put(tmp_path, name)
    assert label_files(tmp_path, "guo_los") == (tmp_path / name,)
    if "/" in name:
        assert files_at(tmp_path / "guo_los", "guo_los") == (tmp_path / name,)


def test_a_folder_that_is_a_link(tmp_path):
    put(tmp_path, "elsewhere/train/0.parquet")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "guo_los").symlink_to(tmp_path / "elsewhere")
    assert label_files(tmp_path / "labels", "guo_los") == (tmp_path / "labels" / "guo_los" / "train" / "0.parquet",)


@pytest.mark.parametrize(
    "name", ["guo_los.csv.gz", "guo_los.CSV", "guo_los/labeled_patients.csv.gz", "guo_los/0.parquet"]
)
def test_two_forms_are_refused(tmp_path, name):
    put(tmp_path, "guo_los.csv", name)
    with pytest.raises(InputError, match="the labels of 'guo_los' are there twice"):
        label_files(tmp_path, "guo_los")


def test_a_file_that_is_no_label_file_is_named_where_none_is(tmp_path):
    put(tmp_path, "guo_los.tsv")
    with pytest.raises(InputError, match=r"no labels of 'guo_los' in .* \(guo_los\.tsv is none\): put "):
        label_files(tmp_path, "guo_los")


def test_a_compressed_file_is_a_task_of_its_own(tmp_path):
    put(tmp_path, "sepsis.csv.gz", "fall/labeled_patients.csv.gz")
    tasks = load_definitions([str(tmp_path / "sepsis.csv.gz"), str(tmp_path / "fall" / "labeled_patients.csv.gz")])
    assert [task.task for task in tasks] == ["sepsis", "fall"]
    assert [len(files) for files in given_files(tasks, None).values()] == [1, 1]


def test_every_file_of_the_folders_is_accounted_for(tmp_path, write_meds, repository, capsys):
    events = pl.DataFrame(
        {"subject_id": [7, 8], "time": [datetime(2000, 1, 1)] * 2, "code": ["A", "A"]},
        schema_overrides={"time": pl.Datetime("us")},
    ).with_columns(numeric_value=pl.lit(None, pl.Float32))
    data = write_meds(tmp_path / "data", {"0": events}, {7: "train", 8: "held_out"})
    given, own = tmp_path / "labels", tmp_path / "sepsis"
    put(given, "guo_los/labels.parquet", "guo_los/all_shots_data.json", "guo_los/notes.csv", "new_lupus.csv", "x.xlsx")
    put(given, "chexpert/labeled_patients.csv", "README.md", "._guo_los.csv", "guo_los/.logs/a.log")
    put(own, "train/0.parquet", "train/1.csv")

    def label(**options):
        profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
        write_labels(data, profile, ["guo_los"], Labels(given=str(given)), tmp_path / "out", **options)
        write_labels(data, profile, [str(own)], Labels(), tmp_path / "out2", **options)
        return capsys.readouterr().err

    said = label()
    assert said.splitlines() == [
        f"warning: {given}: not read: guo_los/notes.csv, x.xlsx. Labels are parquet, or CSV in a file of its own for "
        "each task: convert what holds labels.",
        f"warning: {own}: not read: train/1.csv. Labels are parquet, or CSV in a file of its own for each task: "
        "convert what holds labels.",
    ]
    said = label(verbose=True)
    assert "ignored: new_lupus.csv (of a task that the study does not have)\n" in said
    assert "ignored: guo_los/all_shots_data.json (few-shot draws)\n" in said
    assert said.count("ignored: ") == 6
