"""Labels as CSV: EHRSHOT's labeled_patients.csv and MEDS's columns, and every text that is refused, by file and row."""

import csv
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.tasks.definition import load_definition
from ehrctx.tasks.given import read_given
from ehrctx.tasks.labelers import LABEL_SCHEMA

SECRET = 48_151_623
EHRSHOT = "patient_id,prediction_time,value,label_type"  # as the release has it; older code wrote label_type first


def write(tmp_path, *lines, header=EHRSHOT, name="labeled_patients.csv"):
    file = tmp_path / name
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def refusal_of(file):
    """The message of an InputError after the file's name: one line, no data."""
    with pytest.raises(InputError) as caught:
        read_given(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(SECRET) not in message
    assert message.startswith(str(file))
    return message.removeprefix(str(file))


def test_booleans(tmp_path):
    lines = [f"{SECRET},2012-05-03T23:59:00,True,boolean", "7,2012-05-03T23:59:00,False,boolean"]
    labels = read_given(write(tmp_path, *lines))
    assert dict(labels.schema) == LABEL_SCHEMA
    time = datetime(2012, 5, 3, 23, 59)
    assert labels.rows() == [(7, time, False, None), (SECRET, time, True, None)]


def test_grades_are_positive_from_one_on(tmp_path):
    lines = [f"7,2012-05-03T0{g}:14:00,{g},categorical" for g in range(4)]
    found = read_given(write(tmp_path, *lines)).select("boolean_value", "integer_value").rows()
    assert found == [(False, 0), (True, 1), (True, 2), (True, 3)]


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("patient_id,prediction_time,label_type,value", "7,2012-05-03T10:00:00,integer,2", (True, 2)),
        ("patient_id,prediction_time,value", "7,2012-05-03T10:00:00,false", (False, None)),
        ("subject_id,prediction_time,value", "7,2012-05-03T10:00:00,12", (True, 12)),
        ("subject_id,prediction_time,boolean_value", "7,2012-05-03T10:00:00,TRUE", (True, None)),
        ("subject_id,prediction_time,boolean_value", "7,2012-05-03T10:00:00,0", (False, None)),
        ("subject_id,prediction_time,integer_value", "7,2012-05-03T10:00:00,0", (False, 0)),
        ("subject_id,prediction_time,boolean_value,integer_value", "7,2012-05-03T10:00:00,,3", (True, 3)),
        ("note, subject_id ,prediction_time,value", 'x, 7 ,"2012-05-03T10:00:00", True', (True, None)),
        ("patient_id,subject_id,prediction_time,value", "9,7,2012-05-03T10:00:00,True", (True, None)),
    ],
)
def test_other_spellings(tmp_path, header, line, expected):
    labels = read_given(write(tmp_path, line, header=header, name="sepsis.csv"))
    assert labels.rows() == [(7, datetime(2012, 5, 3, 10), *expected)]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2012-05-03T23:59:00", datetime(2012, 5, 3, 23, 59)),
        ("2012-05-03 23:59:00", datetime(2012, 5, 3, 23, 59)),
        ("2012-05-03T23:59", datetime(2012, 5, 3, 23, 59)),
        ("2012-05-03 23:59:07.250001", datetime(2012, 5, 3, 23, 59, 7, 250_001)),
        ("2012-05-03T23:59:07.25", datetime(2012, 5, 3, 23, 59, 7, 250_000)),
    ],
)
def test_iso_times(tmp_path, text, time):
    assert read_given(write(tmp_path, f"7,{text},True,boolean"))["prediction_time"].to_list() == [time]


seconds = st.integers(0, 4_000_000_000)
ids = st.integers(-(2**63), 2**63 - 1)


@given(st.dictionaries(st.tuples(ids, seconds), st.booleans(), max_size=8))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, labels):
    file = tmp_path_factory.mktemp("csv") / "labeled_patients.csv"
    rows = {(s, datetime(1930, 1, 1) + timedelta(seconds=t)): value for (s, t), value in labels.items()}
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(EHRSHOT.split(","))
        writer.writerows([s, t.isoformat(), value, "boolean"] for (s, t), value in rows.items())
    assert read_given(file).rows() == sorted((s, t, value, None) for (s, t), value in rows.items())


def test_blank_lines_at_the_end_are_no_labels(tmp_path):
    assert read_given(write(tmp_path, "7,2012-05-03T10:00:00,True,boolean", "", "")).height == 1


def test_header_alone_has_no_labels(tmp_path):
    labels = read_given(write(tmp_path))
    assert labels.is_empty()
    assert dict(labels.schema) == LABEL_SCHEMA


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("05/03/2012 23:59", " (it looks like MM/DD/YYYY)"),
        ("5/3/2012", " (it looks like MM/DD/YYYY)"),
        ("13/03/2012", " (it looks like DD/MM/YYYY)"),
        ("03.05.2012 23:59", " (it looks like DD.MM.YYYY)"),
        ("2012/05/03", " (it looks like YYYY/MM/DD)"),
        ("2012-05-03", " (it looks like YYYY-MM-DD)"),
        ("2012-05-03T23:59:00Z", " (it looks like a date-time with a time zone)"),
        ("2012-05-03 23:59:00+02:00", " (it looks like a date-time with a time zone)"),
        ("1336089540", " (it looks like a number)"),
        ("yesterday", ""),
    ],
)
def test_time_of_another_shape_is_named_by_row_and_shape(tmp_path, text, shape):
    lines = [f"7,2012-05-03T{h:02}:00:00,True,boolean" for h in range(16)]
    message = refusal_of(write(tmp_path, *lines, f"{SECRET},{text},True,boolean", f"7,{text},True,boolean"))
    assert message == f", row 17: prediction_time is not an ISO date-time{shape}. Write it as YYYY-MM-DDTHH:MM:SS."


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (",2012-05-03T10:00:00,True,boolean", "patient_id is empty."),
        ("7,,True,boolean", "prediction_time is empty."),
        ("7,2012-05-03T10:00:00,,boolean", "value is empty."),
        ("S7,2012-05-03T10:00:00,True,boolean", "patient_id is not a whole number."),
        ("7.5,2012-05-03T10:00:00,True,boolean", "patient_id is not a whole number."),
        (f"{2**63},2012-05-03T10:00:00,True,boolean", "patient_id does not fit into 64 bits."),
        ("7,2012-02-30T10:00:00,True,boolean", "prediction_time is a day or a time that no calendar has."),
        ("7,2012-02-03T25:00:00,True,boolean", "prediction_time is a day or a time that no calendar has."),
        ("7,2012-05-03T10:00:00,yes,boolean", "value is neither True nor False."),
        ("7,2012-05-03T10:00:00,2,boolean", "value is neither True nor False."),
        ("7,2012-05-03T10:00:00,True,survival", "label_type is not boolean, integer or categorical."),
        ("7,2012-05-03T10:00:00,True,", "label_type is not boolean, integer or categorical."),
        ("7,2012-05-03T10:00:00,1,categorical", "label_type is another than in row 1."),
        ("", "patient_id is empty."),
    ],
)
def test_bad_row_is_named(tmp_path, line, problem):
    rest = "7,2012-05-03T11:00:00,True,boolean"
    message = refusal_of(write(tmp_path, rest, line, rest))
    if line == "":  # a blank line in the middle: which of its columns is named first does not matter
        assert message.startswith(", row 2: ")
    else:
        assert message.startswith(f", row 2: {problem}")
    assert message.endswith(".")


@pytest.mark.parametrize("value", ["4", "8193", "-1", "mild", "1.5"])
def test_bitmask_of_findings_and_other_classes_are_no_grades(tmp_path, value):
    lines = ["7,2012-05-03T11:00:00,3,categorical", f"7,2012-05-03T12:00:00,{value},categorical"]
    message = refusal_of(write(tmp_path, *lines))
    assert message.startswith(
        ", row 2: value is no grade from 0 (normal) to 3 (severe). Several findings in one number"
    )


def test_chexpert_is_left_out_by_name():
    with pytest.raises(InputError, match="'chexpert' holds 14 findings in one number, and the study leaves it out"):
        load_definition("chexpert")


def test_true_among_numbers_is_refused(tmp_path):
    header = "subject_id,prediction_time,value"
    message = refusal_of(write(tmp_path, "7,2012-05-03T11:00:00,1", "7,2012-05-03T12:00:00,True", header=header))
    assert message.startswith(", row 2: value is neither True or False, as in all rows, nor a whole number.")


@pytest.mark.parametrize("column", ["patient_id", "prediction_time"])
def test_missing_column_is_named(tmp_path, column):
    header = EHRSHOT.replace(column, "other")
    named = {"patient_id": "subject_id"}.get(column, column)
    assert refusal_of(write(tmp_path, header=header)).startswith(f": the column '{named}' is missing.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", " is empty. Write it with its header, or remove it."),
        (b"a,b\n1,2,3\n", " is not a readable CSV file."),
        (b"patient_id,value\n1,\xff\n", ", row 1: this row is not UTF-8 text. Write the file as UTF-8."),
        (b"patient_id,gr\xf6\xdfe\n1,2\n", ": its first line is not UTF-8 text. Write the file as UTF-8."),
    ],
)
def test_what_is_no_csv(tmp_path, content, said):
    file = tmp_path / "labeled_patients.csv"
    file.write_bytes(content)
    assert refusal_of(file).startswith(said)
