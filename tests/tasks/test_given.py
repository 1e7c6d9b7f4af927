"""Labels that somebody else made: where their files lie, what their columns mean, what is refused, and the limit."""

import itertools
import json
from collections import Counter
from datetime import datetime, timedelta

import polars as pl
import pyarrow
import pyarrow.parquet
import pytest

from ehrctx.artifacts import MANIFEST
from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.given import read_given
from ehrctx.tasks.label_files import files_at, label_files
from ehrctx.tasks.label_sets import limit_times, read_labels, write_labels
from ehrctx.tasks.labelers import LABEL_SCHEMA

SODIUM, STAY = "lab_hyponatremia", "guo_los"
START = datetime(2020, 1, 1, 7, 30)
SECRET = 48_151_623  # a subject id that no message may show


def times(n):
    return [START + timedelta(hours=i) for i in range(n)]


def frame(**columns):
    """Labels of one subject at consecutive hours, with these columns beside."""
    n = len(next(iter(columns.values())))
    return pl.DataFrame({"subject_id": [SECRET] * n, "prediction_time": times(n)} | columns)


def put(labels, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    labels.write_parquet(file)
    return file


def values_of(labels):
    assert dict(labels.schema) == LABEL_SCHEMA
    return labels.select("boolean_value", "integer_value").rows()


def refusal_of(read, *arguments):
    """The message of an InputError: one line, no data."""
    with pytest.raises(InputError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(SECRET) not in message
    assert message.endswith(".")
    return message


# --- where the files lie ------------------------------------------------------------------------------------------


PLACES = ["labels.parquet", "labeled_patients.csv"]


@pytest.mark.parametrize("place", [*(f"{STAY}/{name}" for name in PLACES), f"{STAY}.parquet", f"{STAY}.csv"])
def test_one_file_in_each_place(tmp_path, place):
    file = tmp_path / place
    put(frame(boolean_value=[True]), tmp_path / "other" / "labels.parquet")
    put(frame(boolean_value=[True]), file)  # what is in it does not matter yet
    assert label_files(tmp_path, STAY) == (file,)


def test_shards_of_splits_as_meds_dev_and_aces_write_them(tmp_path):
    """ACES keeps its logs beside them, and its configuration beside the folder."""
    shards = [tmp_path / STAY / place for place in ("held_out/0.parquet", "train/0.parquet", "train/1.parquet")]
    for shard in (*reversed(shards), tmp_path / STAY / ".logs" / "0.parquet"):
        put(frame(boolean_value=[True]), shard)
    (tmp_path / f"{STAY}.yaml").write_text("predicates: {}")
    (tmp_path / STAY / "train" / "log.txt").write_text("")
    assert label_files(tmp_path, STAY) == tuple(shards)


def test_shards_without_splits(tmp_path):
    shards = tuple(put(frame(boolean_value=[True]), tmp_path / STAY / f"{i}.parquet") for i in range(3))
    assert label_files(tmp_path, STAY) == shards


def test_logs_alone_do_not_hide_the_only_file(tmp_path):
    """ACES on one shard: <task>.parquet beside <task>/.logs."""
    (tmp_path / STAY / ".logs").mkdir(parents=True)
    flat = put(frame(boolean_value=[True]), tmp_path / f"{STAY}.parquet")
    assert label_files(tmp_path, STAY) == (flat,)


def test_folder_of_the_tasks_name_without_its_file_does_not_hide_the_flat_one(tmp_path):
    (tmp_path / STAY / "labels.parquet").mkdir(parents=True)  # a folder is no label file
    flat = put(frame(boolean_value=[True]), tmp_path / f"{STAY}.parquet")
    assert label_files(tmp_path, STAY) == (flat,)


EVERY_PLACE = [f"{STAY}/labels.parquet", f"{STAY}/labeled_patients.csv", f"{STAY}.parquet", f"{STAY}.csv"]


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations([*EVERY_PLACE, f"{STAY}/train/0.parquet"], 2)), ids=str
)
def test_two_candidates_for_one_task_are_refused_by_name(tmp_path, one, other):
    for place in (one, other):
        put(frame(boolean_value=[True]), tmp_path / place)
    message = refusal_of(label_files, tmp_path, STAY)
    assert (
        message
        == f"the labels of '{STAY}' are there twice: {tmp_path / one} and {tmp_path / other}. Remove one of them."
    )


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_task_without_a_file_names_every_place(tmp_path, folder):
    put(frame(boolean_value=[True]), tmp_path / f"{STAY}.parquet")
    message = refusal_of(label_files, tmp_path / folder, SODIUM)
    assert message.startswith(f"no labels of '{SODIUM}' in {tmp_path / folder}: ")
    for place in ("/labels.parquet", "/labeled_patients.csv", ".parquet", ".csv", "/**/*.parquet"):
        assert f"{SODIUM}{place}" in message


def test_a_place_of_its_own(tmp_path):
    file = put(frame(boolean_value=[True]), tmp_path / "any name.parquet")
    shards = [put(frame(boolean_value=[True]), tmp_path / "shards" / f"{s}.parquet") for s in ("train/0", "tuning/0")]
    deep = put(frame(boolean_value=[True]), tmp_path / "deep" / "labels.parquet")
    assert files_at(file, STAY) == (file,)
    assert files_at(tmp_path / "shards", STAY) == tuple(shards)
    assert files_at(tmp_path / "deep", STAY) == (deep,)
    put(frame(boolean_value=[True]), tmp_path / "deep" / "train" / "0.parquet")
    assert "are there twice" in refusal_of(files_at, tmp_path / "deep", STAY)
    (tmp_path / "empty").mkdir()
    assert refusal_of(files_at, tmp_path / "empty", STAY).startswith(f"{tmp_path / 'empty'} holds no labels: put ")
    assert refusal_of(files_at, tmp_path / "nowhere", STAY) == f"no such label file: {tmp_path / 'nowhere'}."


# --- what the columns mean ----------------------------------------------------------------------------------------


def test_grade_alone_is_positive_above_zero(tmp_path):
    """As EHRSHOT's laboratory tasks come: integer_value 0 to 3, no boolean_value."""
    file = put(frame(integer_value=[0, 1, 2, 3]), tmp_path / "a.parquet")
    assert values_of(read_given(file)) == [(False, 0), (True, 1), (True, 2), (True, 3)]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Int64, pl.Float64])
def test_grade_of_any_number_type(tmp_path, dtype):
    file = put(frame(integer_value=pl.Series([0, 2], dtype=dtype)), tmp_path / "a.parquet")
    assert values_of(read_given(file)) == [(False, 0), (True, 2)]


def test_boolean_alone_has_no_grade(tmp_path):
    assert values_of(read_given(put(frame(boolean_value=[True, False]), tmp_path / "a.parquet"))) == [
        (True, None),
        (False, None),
    ]


def test_boolean_goes_before_the_grade_which_fills_its_gaps(tmp_path):
    labels = frame(boolean_value=[True, False, None, None, True], integer_value=[0, 3, 2, 0, None])
    found = values_of(read_given(put(labels, tmp_path / "a.parquet")))
    assert found == [(True, 0), (False, 3), (True, 2), (False, 0), (True, None)]


def test_empty_boolean_column_of_no_type(tmp_path):
    labels = frame(boolean_value=[None, None], integer_value=[1, 0])
    assert labels.schema["boolean_value"] == pl.Null
    assert values_of(read_given(put(labels, tmp_path / "a.parquet"))) == [(True, 1), (False, 0)]


def test_other_columns_are_ignored_and_order_and_resolution_do_not_matter(tmp_path):
    labels = frame(boolean_value=[True, False, True], float_value=[0.1, 0.2, 0.3], categorical_value=["a", "b", "c"])
    labels = labels.with_columns(pl.col("prediction_time").cast(pl.Datetime("ms")), pl.col("subject_id").cast(pl.Int32))
    file = put(labels.select(reversed(labels.columns)).reverse(), tmp_path / "a.parquet")
    expected = [(SECRET, time, value, None) for time, value in zip(times(3), (True, False, True), strict=True)]
    assert read_given(file).rows() == expected


def test_labels_of_one_time_keep_their_order(tmp_path):
    labels = pl.concat([frame(integer_value=[value]) for value in (3, 0, 1)])
    assert read_given(put(labels, tmp_path / "a.parquet"))["integer_value"].to_list() == [3, 0, 1]


def test_file_without_a_row_has_no_labels(tmp_path):
    assert values_of(read_given(put(frame(boolean_value=[True]).clear(), tmp_path / "a.parquet"))) == []


def every_column(**columns):
    """As meds 0.3 has it: all four kinds of values, empty where they are not meant."""
    names = {"boolean_value": pl.Boolean, "integer_value": pl.Int64, "float_value": pl.Float64}
    empty = [pl.lit(None, dtype).alias(c) for c, dtype in (names | {"categorical_value": pl.String}).items()]
    return frame(**columns).with_columns(e for e in empty if e.meta.output_name() not in columns)


def test_labels_as_meds_itself_types_them(tmp_path):
    """0.3's schema from the package; 0.4's is the same with columns left out, float32 and, at times, wide strings."""
    meds = pytest.importorskip("meds", reason="needs meds 0.3 (pip install --editable '.[femr]' brings it)")
    arrow = every_column(boolean_value=[True, False]).to_arrow().cast(meds.label_schema)
    pyarrow.parquet.write_table(arrow, tmp_path / "a.parquet")
    assert values_of(read_given(tmp_path / "a.parquet")) == [(True, None), (False, None)]
    newer = pyarrow.table(
        {
            "subject_id": pyarrow.array([SECRET], pyarrow.int64()),
            "prediction_time": pyarrow.array([START], pyarrow.timestamp("us")),
            "integer_value": pyarrow.array([2], pyarrow.int64()),
            "float_value": pyarrow.array([None], pyarrow.float32()),
            "categorical_value": pyarrow.array([None], pyarrow.large_string()),
        }
    )
    pyarrow.parquet.write_table(newer, tmp_path / "b.parquet")
    assert read_given(tmp_path / "b.parquet").rows() == [(SECRET, START, True, 2)]


def test_labels_of_meds_before_0_3(tmp_path):
    old = every_column(boolean_value=[True, False]).rename({"subject_id": "patient_id"})
    assert values_of(read_given(put(old, tmp_path / "a.parquet"))) == [(True, None), (False, None)]


def test_the_newer_name_goes_first(tmp_path):
    both = frame(boolean_value=[True]).with_columns(patient_id=pl.lit("P1"), index_timestamp=pl.lit("now"))
    assert read_given(put(both, tmp_path / "a.parquet")).rows() == [(SECRET, START, True, None)]


def test_labels_of_aces_with_summaries_of_windows(tmp_path):
    summary = [{"window_name": "input.end", "timestamp_at_start": START, "admission": 1}] * 2
    more = {"trigger": times(2), "input.end_summary": summary}
    meds = frame(boolean_value=[True, False], **more)
    assert values_of(read_given(put(meds, tmp_path / "a.parquet"))) == [(True, None), (False, None)]
    direct = frame(label=[2, 0], **more).rename({"prediction_time": "index_timestamp"})
    assert values_of(read_given(put(direct, tmp_path / "b.parquet"))) == [(True, 2), (False, 0)]


def test_a_shard_without_labels_may_lack_types(tmp_path):
    empty = pl.DataFrame(schema=dict.fromkeys(("subject_id", "prediction_time", "boolean_value"), pl.Null))
    assert values_of(read_given(put(empty, tmp_path / "0.parquet"))) == []


@pytest.mark.parametrize("column", ["float_value", "categorical_value"])
def test_numbers_and_classes_are_no_answers(tmp_path, column):
    value = {"float_value": 0.5, "categorical_value": "ICU"}[column]
    labels = every_column(boolean_value=[True, None], **{column: [value, value]})
    message = refusal_of(read_given, put(labels, tmp_path / "a.parquet"))
    assert message.startswith(f"{tmp_path / 'a.parquet'}, row 2: {column} alone is filled. Only boolean_value and")
    alone = refusal_of(read_given, put(frame(**{column: [value]}), tmp_path / "b.parquet"))
    assert f"neither boolean_value nor integer_value is there ({column} is)." in alone
    nothing = every_column(boolean_value=[True, None])
    assert ", row 2: boolean_value is empty." in refusal_of(read_given, put(nothing, tmp_path / "c.parquet"))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["subject_id", "prediction_time"])
def test_missing_column_is_named(tmp_path, column):
    file = put(frame(boolean_value=[True]).drop(column), tmp_path / "a.parquet")
    assert refusal_of(read_given, file).startswith(f"{file}: the column '{column}' is missing.")


def test_no_value_at_all(tmp_path):
    file = put(frame(float_value=[1.0]), tmp_path / "a.parquet")
    assert refusal_of(read_given, file).startswith(f"{file}: neither boolean_value nor integer_value is there")


@pytest.mark.parametrize("column", ["subject_id", "prediction_time", "boolean_value"])
@pytest.mark.parametrize("row", [1, 3, 1_234])
def test_empty_value_names_its_row_as_the_file_has_it(tmp_path, column, row):
    """Counted from 1, before any sorting: the file lies in reverse order."""
    labels = frame(boolean_value=[True] * 1_300).reverse()
    emptied = [None if i + 1 == row else value for i, value in enumerate(labels[column])]
    file = put(labels.with_columns(pl.Series(column, emptied, labels.schema[column])), tmp_path / "a.parquet")
    assert refusal_of(read_given, file).startswith(f"{file}, row {row:,}: {column} is empty.")


def test_first_of_several_empty_values(tmp_path):
    file = put(frame(boolean_value=[True, None, None]), tmp_path / "a.parquet")
    assert ", row 2: boolean_value is empty." in refusal_of(read_given, file)


def test_empty_grade_where_there_is_no_boolean(tmp_path):
    file = put(frame(integer_value=[3, 0, None]), tmp_path / "a.parquet")
    assert ", row 3: " in refusal_of(read_given, file)


def test_empty_grade_is_named_where_there_is_no_boolean(tmp_path):
    file = put(frame(integer_value=[3, 0, None]), tmp_path / "a.parquet")
    assert "integer_value is empty" in refusal_of(read_given, file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject_id": [f"S{SECRET}"]},
        {"subject_id": pl.Series([2**63], dtype=pl.UInt64)},
        {"prediction_time": ["2020-01-01 07:30"]},
        {"boolean_value": ["True"]},
        {"integer_value": ["1"]},
        {"integer_value": [float("nan")]},
    ],
)
def test_column_of_a_wrong_type_is_refused(tmp_path, wrong):
    file = put(frame(boolean_value=[True]).with_columns(**{k: pl.Series(v) for k, v in wrong.items()}), tmp_path / "a")
    message = refusal_of(read_given, file)
    assert str(file) in message
    assert next(iter(wrong)) in message


@pytest.mark.parametrize(
    "grades",
    [
        pl.Series([0.0, 1e30]), pl.Series([0.0, float("inf")]), pl.Series([0.0, float("nan")]), pl.Series([0.0, 0.5]),
        pl.Series([0, 2**63], dtype=pl.UInt64),
    ],
)  # fmt: skip
def test_grades_that_are_no_whole_numbers_are_refused_by_row(tmp_path, grades):
    said = refusal_of(read_given, put(frame(integer_value=grades), tmp_path / "labels.parquet"))
    assert "row 2: integer_value is not a whole number" in said


def test_file_that_is_no_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"subject_id,prediction_time,boolean_value\n")
    assert refusal_of(read_given, file).startswith(f"{file} is not a readable parquet file")


# --- write_labels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(write_meds, tmp_path_factory):
    """A data set of no use for labeling: given labels are taken, whatever happened to its subjects."""
    subjects = [1, 4, 7, 9, SECRET]
    events = pl.DataFrame(
        {"subject_id": subjects, "time": [START] * 5, "code": ["A"] * 5, "numeric_value": [None] * 5},
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
    )
    return write_meds(tmp_path_factory.mktemp("given") / "events", {"0": events}, dict.fromkeys(subjects, "train"))


def given_folder(folder):
    """Four subjects with twelve grades each in EHRSHOT's layout, and stays in the flat one."""
    grades = pl.concat(
        [
            frame(integer_value=[i % 4 for i in range(12)]).with_columns(subject_id=pl.lit(s, pl.Int64))
            for s in (7, 1, 9, 4)
        ]
    )
    put(grades, folder / SODIUM / "labels.parquet")
    put(frame(boolean_value=[True, False, False] * 4), folder / f"{STAY}.parquet")
    return folder


PROFILE = "name: bare\n"  # neither visits nor units: nothing of it is used


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("profile") / "bare.yaml"
    file.write_text(PROFILE)
    return str(file)


def test_given_labels_are_written_as_made_ones_are(data, profile_file, tmp_path):
    folder = given_folder(tmp_path / "given")
    facts = write_labels(data, profile_file, [SODIUM, STAY], Labels(given=str(folder)), tmp_path / "labels")
    written = read_labels(tmp_path / "labels")
    assert list(written) == [SODIUM, STAY]
    assert written[SODIUM].equals(read_given(folder / SODIUM / "labels.parquet"))
    assert written[SODIUM]["subject_id"].unique(maintain_order=True).to_list() == [1, 4, 7, 9]
    assert written[STAY].equals(read_given(folder / f"{STAY}.parquet"))
    assert {task: (f["labels"], f["positive"], +Counter(f["left_out"])) for task, f in facts.items()} == {
        SODIUM: (48, 36, {}),
        STAY: (12, 4, {}),
    }


def test_shards_are_one_task(data, profile_file, tmp_path):
    folder = given_folder(tmp_path / "given")
    whole = pl.read_parquet(folder / SODIUM / "labels.parquet")
    (folder / SODIUM / "labels.parquet").unlink()
    for shard, subjects in {"train/0": [9], "train/1": [], "held_out/0": [1, 4, 7]}.items():
        put(whole.filter(pl.col("subject_id").is_in(subjects)), folder / SODIUM / f"{shard}.parquet")
    choices = Labels(given=str(folder))
    write_labels(data, profile_file, [SODIUM, STAY], choices, tmp_path / "sharded")
    write_labels(
        data, profile_file, [SODIUM, STAY], Labels(given=str(given_folder(tmp_path / "one"))), tmp_path / "whole"
    )
    assert read_labels(tmp_path / "sharded")[SODIUM].equals(read_labels(tmp_path / "whole")[SODIUM])
    inputs = json.loads((tmp_path / "sharded" / MANIFEST).read_text())["inputs"]
    assert [name for name in inputs if SODIUM in name] == [f"labels of {SODIUM}, part {i}" for i in (1, 2, 3)]


def test_limit_of_times_applies_to_given_laboratory_labels(data, profile_file, tmp_path):
    folder = given_folder(tmp_path / "given")
    choices = Labels(given=str(folder), max_times_per_subject=3, seed=5)
    facts = write_labels(data, profile_file, [SODIUM, STAY], choices, tmp_path / "labels")
    written = read_labels(tmp_path / "labels")
    assert Counter(written[SODIUM]["subject_id"]) == {1: 3, 4: 3, 7: 3, 9: 3}
    assert written[SODIUM].equals(limit_times(read_given(folder / SODIUM / "labels.parquet"), 3, 5))
    assert written[STAY].height == 12
    assert +Counter(facts[SODIUM]["left_out"]) == {"beyond max_times_per_subject": 36}
    assert not +Counter(facts[STAY]["left_out"])


def test_manifest_knows_the_files_and_not_the_profile(data, profile_file, tmp_path):
    """Other given labels make another folder; another profile does not."""
    manifests = []
    for name in ("a", "b"):
        folder = given_folder(tmp_path / name)
        if name == "b":
            put(frame(boolean_value=[True]), folder / f"{STAY}.parquet")
        write_labels(data, profile_file, [SODIUM, STAY], Labels(given=str(folder)), tmp_path / f"{name}_labels")
        manifests.append(json.loads((tmp_path / f"{name}_labels" / MANIFEST).read_text()))
    one, other = (m["inputs"] for m in manifests)
    assert one.keys() == {"events", f"labels of {SODIUM}", f"labels of {STAY}"}
    assert [key for key in one if one[key] != other[key]] == [f"labels of {STAY}"]
    assert "profile" not in manifests[0]["settings"]


def test_refused_label_file_leaves_nothing_behind(data, profile_file, tmp_path):
    folder = given_folder(tmp_path / "given")
    put(frame(boolean_value=[True, None]), folder / f"{STAY}.parquet")
    out = tmp_path / "labels"
    choices = Labels(given=str(folder))
    message = refusal_of(write_labels, data, profile_file, [SODIUM, STAY], choices, out)
    assert message.startswith(f"{folder / STAY}.parquet, row 2: boolean_value is empty.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]


def test_task_without_given_labels_leaves_nothing_behind(data, profile_file, tmp_path):
    folder = given_folder(tmp_path / "given")
    choices = Labels(given=str(folder))
    message = refusal_of(write_labels, data, profile_file, [SODIUM, "new_lupus"], choices, tmp_path / "labels")
    assert "no labels of 'new_lupus'" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given"]
