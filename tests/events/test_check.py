"""`check`: its numbers against a plain count, the rules that span files, and the real demo."""

import statistics
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.splits import read_splits, subject_splits

SECRET = 987654321


def events_of(*subjects, seed=0):
    """Random sorted events of these subjects."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in subjects:
        rows += [(subject, None, "SEX//F", None, None)] * int(rng.integers(0, 2))
        for day in sorted(rng.integers(1, 20_000, int(rng.integers(1, 40))).tolist()):
            number = float(rng.normal()) if rng.random() < 0.3 else None
            text = "text" if rng.random() < 0.2 else None
            time = datetime.fromordinal(datetime(1950, 1, 1).toordinal() + day)
            rows.append((subject, time, f"C{rng.integers(0, 30)}", number, text))
    schema = ["subject_id", "time", "code", "numeric_value", "text_value"]
    return pl.DataFrame(rows, schema=schema, orient="row").cast(
        {"time": pl.Datetime("us"), "numeric_value": pl.Float32}
    )


def plain_count(frames):
    """The summary, by counting rows one by one."""
    rows = [row for f in frames for row in f.iter_rows(named=True)]
    per_subject: dict[int, int] = {}
    for row in rows:
        per_subject[row["subject_id"]] = per_subject.get(row["subject_id"], 0) + 1
    subjects_in = {}
    for row in rows:
        if row["time"] is not None:
            subjects_in.setdefault(row["time"].year, set()).add(row["subject_id"])
    years = [year for year, subjects in subjects_in.items() if len(subjects) >= 10]
    assert min(subjects_in) < min(years), "the first year has few subjects"
    n = sorted(per_subject.values())

    def quantile(share):
        place = share * (len(n) - 1)  # linear interpolation between order statistics
        low, high = n[int(place)], n[min(int(place) + 1, len(n) - 1)]
        return pytest.approx(low + (place - int(place)) * (high - low))

    return {
        "files": len(frames),
        "subjects": len(n),
        "events": len(rows),
        "codes": len({row["code"] for row in rows}),
        "first_year": min(years),
        "last_year": max(years),
        "events_per_subject": {
            "median": statistics.median(n),
            "p90": quantile(0.9),
            "p99": quantile(0.99),
        },
        "with_numeric_value": sum(row.get("numeric_value") is not None for row in rows) / len(rows),
        "with_text_value": sum(row.get("text_value") is not None for row in rows) / len(rows),
        "static": sum(row["time"] is None for row in rows) / len(rows),
    }


def test_summary_against_a_plain_count(write_meds, tmp_path):
    frames = [events_of(*range(1, 9), seed=1), events_of(*range(20, 33), seed=2), events_of(40, seed=3)]
    frames[2] = frames[2].drop("numeric_value", "text_value")
    dataset = open_dataset(write_meds(tmp_path, {"train/0": frames[0], "train/1": frames[1], "tuning/0": frames[2]}))
    summary, found = check(dataset)
    assert found == []
    assert summary == plain_count(frames)


def test_real_demo_breaks_no_rule_and_has_the_known_size(mimic_demo):
    dataset = open_dataset(mimic_demo)
    summary, found = check(dataset)
    assert found == []
    assert (summary["subjects"], summary["events"], summary["codes"]) == (100, 916_166, 7_035)
    ids = [pl.read_parquet(f, columns=["subject_id"])["subject_id"].to_list() for f in dataset.shards]
    lengths = sorted(column.count(s) for column in ids for s in set(column))
    assert summary["events_per_subject"]["p99"] < lengths[-1], "the longest record is one subject's"
    assert summary["events_per_subject"]["median"] == statistics.median(lengths)


def test_subject_in_two_shards(write_meds, tmp_path):
    shards = {"a": events_of(SECRET, 2), "b": events_of(3), "c": events_of(SECRET, 4)}
    _, found = check(open_dataset(write_meds(tmp_path, shards)))
    assert [v.file for v in found] == ["data/c.parquet"]
    assert "1 of its subjects are in an earlier file too" in str(found[0])
    assert str(SECRET) not in str(found[0])


def test_splits_table_is_checked(write_meds, tmp_path):
    table = pl.DataFrame(
        {
            "subject_id": [1, SECRET, 3, SECRET, 4, 5],
            "split": ["train", "train", "test", "tuning", None, "held_out"],
        }
    )
    folder = write_meds(tmp_path, {"0": events_of(1, SECRET, 3)}, table)
    _, found = check(open_dataset(folder))
    assert [(v.file, v.rows) for v in found] == [("metadata/subject_splits.parquet", rows) for rows in ((3, 5), (4,))]
    assert "split is not train, tuning or held_out" in str(found[0])
    assert "a subject is listed twice" in str(found[1])
    assert all(str(SECRET) not in str(v) for v in found)
    with pytest.raises(InputError, match=r"subject_splits\.parquet, rows 3, 5: ") as caught:
        subject_splits(open_dataset(folder), None)
    assert str(SECRET) not in str(caught.value)
    with pytest.raises(InputError, match=r"subject_splits\.parquet, rows 3, 5: "):
        read_splits(folder / "metadata" / "subject_splits.parquet")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pl.DataFrame({"patient": [1], "split": ["train"]}), "the column 'subject_id' is missing"),
        (pl.DataFrame({"subject_id": [1]}), "the column 'split' is missing"),
        (pl.DataFrame({"subject_id": ["1"], "split": ["train"]}), "the column 'subject_id' is String"),
        (pl.DataFrame({"subject_id": [1], "split": [0]}), "the column 'split' is Int64"),
    ],
)
def test_splits_table_with_wrong_columns(write_meds, tmp_path, table, words):
    _, found = check(open_dataset(write_meds(tmp_path, {"0": events_of(1)}, table)))
    assert len(found) == 1
    assert words in str(found[0])


def test_all_violations_of_all_files_are_listed(write_meds, tmp_path):
    day = datetime(2020, 1, 2)
    unsorted = pl.DataFrame(
        {"subject_id": [1, 1, None], "time": [day, datetime(2020, 1, 1), day], "code": ["A", "", "B"]}
    )
    missing = pl.DataFrame({"subject_id": [2], "code": ["A"]})
    _, found = check(open_dataset(write_meds(tmp_path, {"a": unsorted, "b": missing, "c": events_of(3)})))
    assert [(v.file, v.rows) for v in found] == [
        ("data/a.parquet", (3,)),
        ("data/a.parquet", (2,)),
        ("data/a.parquet", (2,)),
        ("data/b.parquet", ()),
    ]
