"""Reading MEDS: both spellings, the total order, units; broken rules by file and row, never by subject."""

from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset, read_codes
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.rules import check_splits, violations_of
from ehrctx.events.shards import read_shard, read_valid
from ehrctx.events.splits import read_splits, subject_splits

SECRET = 987654321  # no message may hold it
PLAIN = DatasetProfile(name="plain")
SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}


def at(day, hour=0, minute=0, second=0, microsecond=0):
    return datetime(2020, 1, day, hour, minute, second, microsecond)


def frame(rows, **more):
    """Rows of (subject_id, time, code[, numeric_value[, text_value]]) and further columns."""
    filled = [(*row, *[None] * (5 - len(row))) for row in rows]
    return pl.DataFrame(filled, schema=SCHEMA, orient="row").with_columns(**{k: pl.Series(v) for k, v in more.items()})


def read_one(write_meds, folder, events, profile=PLAIN):
    dataset = open_dataset(write_meds(folder, {"0": events}))
    return read_shard(dataset, dataset.shards[0], profile)


GOOD = [(SECRET, None, "SEX//F"), (SECRET, at(1), "A"), (SECRET, at(2), "B", 1.5), (7, at(1), "C", None, "text")]


def test_meds_0_3(write_meds, tmp_path):
    events = read_one(write_meds, tmp_path, frame(GOOD).drop("text_value"))
    assert events["subject_id"].to_list() == [SECRET, SECRET, SECRET, 7]
    assert events["time"].to_list() == [None, at(1), at(2), at(1)]
    assert events["code"].to_list() == ["SEX//F", "A", "B", "C"]
    assert events["numeric_value"].to_list() == [None, None, 1.5, None]
    assert events["text_value"].to_list() == [None] * 4
    assert events["event"].to_list() == [0, 1, 2, 0]


def test_meds_0_4_with_large_strings(write_meds, tmp_path):
    folder = write_meds(tmp_path, {"0": frame(GOOD)})
    table = pa.table(
        {
            "subject_id": pa.array([5, 5], pa.int64()),
            "time": pa.array([None, at(3, 4, 5, 6, 7)], pa.timestamp("us")),
            "code": pa.array(["SEX//F", "A"], pa.large_string()),
            "text_value": pa.array([None, "positive"], pa.large_string()),
        }
    )
    pq.write_table(table, folder / "data" / "0.parquet")
    dataset = open_dataset(folder)
    events = read_shard(dataset, dataset.shards[0], PLAIN)
    assert events["time"].to_list() == [None, at(3, 4, 5, 6, 7)]
    assert events["text_value"].to_list() == [None, "positive"]
    assert events["numeric_value"].to_list() == [None, None]
    assert events.schema["numeric_value"] == pl.Float32
    assert check(dataset)[1] == []


def test_both_spellings_give_the_same_columns(write_meds, tmp_path):
    old = read_one(write_meds, tmp_path / "old", frame(GOOD).drop("text_value"))
    new = read_one(write_meds, tmp_path / "new", frame(GOOD).drop("numeric_value"))
    dictionary = frame(GOOD).with_columns(pl.col("code").cast(pl.Categorical), pl.col("subject_id").cast(pl.Int32))
    coarse = read_one(write_meds, tmp_path / "other", dictionary.with_columns(pl.col("time").cast(pl.Datetime("ms"))))
    assert old.schema == new.schema == coarse.schema
    assert coarse.equals(read_one(write_meds, tmp_path / "same", frame(GOOD)))


def broken(rows):
    return frame([*GOOD[:3], *rows, (7, at(1), "C")])


# name -> (frame, the rows that break it, words)
VIOLATIONS = {
    "null subject": (broken([(None, at(3), "X")]), (4,), "subject_id is empty"),
    "null code": (broken([(SECRET, at(3), None)]), (4,), "code is empty"),
    "empty code": (broken([(SECRET, at(3), "")]), (4,), "code is empty"),
    "scattered": (broken([(6, at(1), "X"), (SECRET, at(4), "X"), (SECRET, at(5), "X")]), (5,), "not together"),
    "scattered twice": (
        broken([(6, at(1), "X"), (SECRET, at(4), "X"), (6, at(3), "X"), (SECRET, at(5), "X")]),
        (5, 6, 7),
        "not together",
    ),
    "back in time": (broken([(SECRET, at(1, 23), "X")]), (4,), "time goes back"),
    "back by a microsecond": (
        broken([(SECRET, at(3, 0, 0, 0, 2), "X"), (SECRET, at(3, 0, 0, 0, 1), "X")]),
        (5,),
        "time goes back",
    ),
    "late static": (broken([(SECRET, None, "X")]), (4,), "static row"),
    "many": (frame([(SECRET, at(9 - i), "X") for i in range(8)]), (2, 3, 4, 5, 6), "time goes back"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_broken_rows_are_reported_with_file_and_row(write_meds, tmp_path, name):
    events, rows, words = VIOLATIONS[name]
    dataset = open_dataset(write_meds(tmp_path, {"train/0": frame(GOOD[3:]), "train/1": events}))
    found = [v for v in check(dataset)[1] if "earlier file" not in v.problem]
    assert [(v.file, v.rows) for v in found] == [("data/train/1.parquet", rows)]
    assert words in str(found[0])
    shown = ", ".join(str(r) for r in rows)
    assert f"data/train/1.parquet, row{'s' if found[0].n > 1 else ''} {shown}" in str(found[0])
    assert str(SECRET) not in str(found[0])
    with pytest.raises(InputError, match=r"data/train/1\.parquet, row") as caught:
        read_shard(dataset, dataset.shards[1], PLAIN)
    assert shown in str(caught.value)
    assert words in str(caught.value)
    assert str(SECRET) not in str(caught.value)


def test_only_the_first_rows_are_named_and_the_rest_counted():
    (found,) = violations_of(VIOLATIONS["many"][0], "f")
    assert found.n == 7
    assert "rows 2, 3, 4, 5, 6 and 2 more" in str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.drop("time"), "the column 'time' is missing"),
        (lambda f: f.drop("code"), "the column 'code' is missing"),
        (lambda f: f.rename({"subject_id": "patient_id"}), "Rename 'patient_id' to 'subject_id'"),
        (lambda f: f.rename({"time": "timestamp"}), "Rename 'timestamp' to 'time'"),
        (lambda f: f.cast({"subject_id": pl.String}), "the column 'subject_id' is large_string, expected an integer"),
        (lambda f: f.cast({"subject_id": pl.Float64}), "the column 'subject_id' is double, expected an integer"),
        (lambda f: f.cast({"time": pl.String}), "the column 'time' is large_string, expected a date-time"),
        (lambda f: f.cast({"time": pl.Date}), "the column 'time' is date32[day], expected a date-time"),
        (
            lambda f: f.with_columns(pl.col("time").dt.replace_time_zone("UTC")),
            "expected a date-time without time zone",
        ),
        (lambda f: f.with_columns(code=pl.lit(3)), "the column 'code' is int32, expected a string"),
        (
            lambda f: f.cast({"numeric_value": pl.String}),
            "the column 'numeric_value' is large_string, expected a number",
        ),
        (lambda f: f.with_columns(text_value=pl.lit(1.0)), "the column 'text_value' is double, expected a string"),
    ],
)
def test_wrong_columns_are_reported(write_meds, tmp_path, change, words):
    dataset = open_dataset(write_meds(tmp_path, {"0": change(frame(GOOD)), "1": frame([(8, at(1), "A")])}))
    summary, found = check(dataset)
    assert [v.file for v in found] == ["data/0.parquet"]
    assert words in str(found[0])
    assert summary["events"] == 1  # the file that can be read still counts
    with pytest.raises(InputError, match=r"^data/0\.parquet: ") as caught:
        read_shard(dataset, dataset.shards[0], PLAIN)
    assert words in str(caught.value)
    assert str(SECRET) not in str(caught.value) + str(found[0])


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, None]), st.one_of(st.none(), st.integers(1, 4)), st.sampled_from(["A", "", None])
        ),
        max_size=12,
    )
)
def test_violations_against_a_row_by_row_check(rows):
    events = frame([(s, None if d is None else at(d), c) for s, d, c in rows])
    expected = {"subject_id is empty.": [], "code is empty.": [], "time goes back": [], "a static row": []}
    scattered = []
    seen = set()
    for i, (subject, day, code) in enumerate(rows):
        before = rows[i - 1] if i else (None, None, None)
        if subject is None:
            expected["subject_id is empty."].append(i + 1)
        if code in (None, ""):
            expected["code is empty."].append(i + 1)
        if i and subject is not None and subject == before[0] and before[1] is not None:
            if day is None:
                expected["a static row"].append(i + 1)
            elif day < before[1]:
                expected["time goes back"].append(i + 1)
        if subject is not None and subject != before[0] and subject in seen:
            scattered.append(i + 1)
        seen.add(subject)
    found = violations_of(events, "f")
    named = {v.problem: v.rows for v in found}
    for words, numbers in expected.items():
        got = next((r for p, r in named.items() if p.startswith(words)), ())
        assert got == tuple(numbers[:5]), words
    if not any(s is None for s, _, _ in rows):
        got = next((r for p, r in named.items() if "not together" in p), ())
        assert got == tuple(scattered[:5])


def test_truncated_parquet_is_an_input_error(write_meds, tmp_path):
    folder = write_meds(tmp_path, {"0": frame(GOOD * 50).sort("subject_id", "time", maintain_order=True)})
    file = folder / "data" / "0.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    dataset = open_dataset(folder)
    with pytest.raises(InputError, match=r"^data/0\.parquet is not a readable parquet file"):
        read_valid(dataset, dataset.shards[0])
    file.write_bytes(b"")
    (violation,) = check(dataset)[1]
    assert str(violation).startswith("data/0.parquet: not a readable parquet file")


@pytest.mark.parametrize("name", ["codes", "subject_splits"])
def test_truncated_metadata_is_an_input_error(write_meds, tmp_path, name):
    codes = pl.DataFrame({"code": ["A"], "description": ["a"]})
    folder = write_meds(tmp_path, {"0": frame(GOOD)}, {SECRET: "train", 7: "tuning"}, codes)
    file = folder / "metadata" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    dataset = open_dataset(folder)
    (violation,) = check(dataset)[1]
    assert str(violation).startswith(f"metadata/{name}.parquet: not a readable parquet file")
    readers = {
        "codes": [lambda: read_codes(dataset)],
        "subject_splits": [lambda: subject_splits(dataset, None), lambda: read_splits(file)],
    }
    for read in readers[name]:
        with pytest.raises(InputError, match=rf"{name}\.parquet is not a readable parquet file"):
            read()


def test_files_are_those_that_the_content_depends_on(write_meds, tmp_path):
    codes = pl.DataFrame({"code": ["A"], "description": ["a"]})
    folder = write_meds(tmp_path, {"a/0": frame(GOOD), "b": frame([(8, at(1), "A")])}, {SECRET: "train"}, codes)
    for name in (
        "data/._0.parquet",
        "data/1.csv",
        "metadata/dataset.json",
        "metadata/a.parquet",
        "README",
        "c/x.parquet",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    dataset = open_dataset(folder)
    assert [dataset.name_of(file) for file in dataset.files()] == [
        "data/a/0.parquet", "data/b.parquet", "metadata/subject_splits.parquet", "metadata/codes.parquet",
    ]  # fmt: skip
    assert sorted(dataset.files()) == sorted(dataset.inventory.read)
    assert [dataset.name_of(file) for file in dataset.inventory.unknown] == ["data/1.csv", "metadata/a.parquet"]
    assert {dataset.name_of(file) for file, _ in dataset.inventory.ignored} == {
        "README", "c", "data/._0.parquet", "metadata/dataset.json",
    }  # fmt: skip


def test_no_such_folder_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no data/\*\*/\*\.parquet"):
        open_dataset(tmp_path)


def test_profile_that_names_a_missing_column(write_meds, tmp_path):
    for key in ("visit_column", "unit_column"):
        with pytest.raises(InputError, match=f"no column 'hadm_id', which the profile 'plain' names as {key}"):
            read_one(write_meds, tmp_path, frame(GOOD), DatasetProfile(name="plain", **{key: "hadm_id"}))


def test_date_only_codes_move_to_the_days_end_and_are_sorted_again(write_meds, tmp_path):
    profile = DatasetProfile(name="p", date_only=("DX//*", "WEIGHT"))
    events = frame(
        [
            (1, None, "DX//STATIC"),
            (1, at(1), "DX//A"),
            (1, at(1), "LAB"),
            (1, at(1), "WEIGHT"),
            (1, at(1), "WEIGHT//OTHER"),
            (1, at(1, 8), "DX//B"),
            (1, at(1, 23, 59), "NOTE"),
            (1, at(1, 23, 59, 30), "LATE"),
            (1, at(2), "DX//C"),
            (2, at(1), "DX//A"),
        ]
    )
    read = read_one(write_meds, tmp_path, events, profile)
    end = at(1, 23, 59)
    assert list(zip(*(read[c].to_list() for c in ("subject_id", "time", "code", "event")), strict=True)) == [
        (1, None, "DX//STATIC", 0),
        (1, at(1), "LAB", 1),
        (1, at(1), "WEIGHT//OTHER", 2),
        (1, at(1, 8), "DX//B", 3),
        (1, end, "DX//A", 4),
        (1, end, "WEIGHT", 5),
        (1, end, "NOTE", 6),
        (1, at(1, 23, 59, 30), "LATE", 7),
        (1, at(2, 23, 59), "DX//C", 8),
        (2, end, "DX//A", 0),
    ]


def test_date_only_of_all_codes_leaves_births_where_they_are(write_meds, tmp_path):
    """A birth at the day's end would come after what is known of that day's hours."""
    rows = [
        (1, None, "SEX//F"),
        (1, at(1), "BORN"),
        (1, at(1), "WEIGHT"),
        (1, at(1, 8), "LAB"),
        (1, at(2), "BORN//NOT"),
    ]
    read = read_one(write_meds, tmp_path, frame(rows), DatasetProfile(name="p", birth="BORN", date_only=("*",)))
    assert read.select("code", "time").rows() == [
        ("SEX//F", None),
        ("BORN", at(1)),
        ("LAB", at(1, 8)),
        ("WEIGHT", at(1, 23, 59)),
        ("BORN//NOT", at(2, 23, 59)),
    ]


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.one_of(st.none(), st.integers(0, 60)), st.sampled_from(["A", "DATE", "C"])),
        min_size=1,
        max_size=25,
    )
)
def test_total_order_against_a_stable_sort(write_meds, tmp_path_factory, rows):
    def key(row):
        return (row[0], row[1] is not None, row[1] or 0)

    rows = sorted(rows, key=key)  # as MEDS asks for; hours since the first day
    events = frame(
        [(s, None if h is None else at(1) + timedelta(hours=h), c, float(i)) for i, (s, h, c) in enumerate(rows)]
    )
    read = read_one(write_meds, tmp_path_factory.mktemp("order"), events, DatasetProfile(name="p", date_only=("DATE",)))
    known = []
    for i, (subject, hour, code) in enumerate(rows):
        time = None if hour is None else at(1) + timedelta(hours=hour)
        if code == "DATE" and time is not None and time.hour == 0:
            time += timedelta(hours=23, minutes=59)
        known.append((subject, time is not None, time or at(1), i))
    known.sort()  # by subject, static first, time, file order
    assert read["numeric_value"].to_list() == [float(i) for *_, i in known]
    assert read["time"].to_list() == [t if timed else None for _, timed, t, _ in known]


def test_units_come_from_the_column_and_from_the_code(write_meds, tmp_path):
    rows = [
        (1, at(1), code, 1.0) for code in ("LAB//5//mEq/L", "LAB//5//UNK", "LAB//5", "VITAL//5//mmHg", "LAB//6//g/dL")
    ]
    events = frame(rows, unit=[None, None, None, None, "mg/dL"])
    column = DatasetProfile(name="p", unit_column="unit")
    suffix = DatasetProfile(name="p", unit_in_code=("LAB//*",))
    both = DatasetProfile(name="p", unit_column="unit", unit_in_code=("LAB//*",))
    assert read_one(write_meds, tmp_path, events)["unit"].to_list() == [None] * 5
    assert read_one(write_meds, tmp_path, events, column)["unit"].to_list() == [None, None, None, None, "mg/dL"]
    assert read_one(write_meds, tmp_path, events, suffix)["unit"].to_list() == ["mEq/L", None, None, None, "g/dL"]
    assert read_one(write_meds, tmp_path, events, both)["unit"].to_list() == ["mEq/L", None, None, None, "mg/dL"]


def test_visit_column_is_kept(write_meds, tmp_path):
    events = frame(GOOD, hadm_id=[None, 4, 4, 5])
    assert read_one(write_meds, tmp_path, events)["visit"].to_list() == [None] * 4
    named = DatasetProfile(name="p", visit_column="hadm_id")
    assert read_one(write_meds, tmp_path, events, named)["visit"].to_list() == [None, 4, 4, 5]


def test_codes_table(write_meds, tmp_path):
    dataset = open_dataset(write_meds(tmp_path / "none", {"0": frame(GOOD)}))
    assert read_codes(dataset).is_empty()
    partial = pl.DataFrame({"code": ["A", "B"]})
    dataset = open_dataset(write_meds(tmp_path / "partial", {"0": frame(GOOD)}, codes=partial))
    assert read_codes(dataset).rows() == [("A", None, None), ("B", None, None)]
    dataset = open_dataset(write_meds(tmp_path / "wrong", {"0": frame(GOOD)}, codes=pl.DataFrame({"concept": ["A"]})))
    with pytest.raises(InputError, match=r"codes\.parquet: the column 'code' is missing"):
        read_codes(dataset)


def test_folder_names_are_no_patterns(write_meds, tmp_path):
    rows = pl.DataFrame({"subject_id": [1], "time": [None], "code": ["A"]}).cast({"time": pl.Datetime("us")})
    dataset = open_dataset(write_meds(tmp_path / "meds [v1] *", {"0": rows}))
    assert read_valid(dataset, dataset.shards[0]).height == 1


def test_subject_ids_beyond_64_bits_are_refused_without_being_named(write_meds, tmp_path):
    """Hashes often are unsigned."""
    ids = pl.Series([7, 2**63 + SECRET], dtype=pl.UInt64)
    rows = pl.DataFrame({"subject_id": ids, "time": [None, None], "code": ["A", "B"]}).cast({"time": pl.Datetime("us")})
    dataset = open_dataset(write_meds(tmp_path, {"0": rows}))
    with pytest.raises(InputError, match=r"0\.parquet, row 2: subject_id does not fit into 64 bits") as caught:
        read_shard(dataset, dataset.shards[0], DatasetProfile(name="any"))
    assert str(2**63 + SECRET) not in str(caught.value)
    small = pl.DataFrame({"subject_id": ids.head(1), "split": ["train"]})
    large = pl.DataFrame({"subject_id": ids, "split": ["train", "tuning"]})
    assert check_splits(small, "splits") == []
    (violation,) = check_splits(large, "splits")
    assert violation.rows == (2,)
