"""`check`: its numbers against a plain count, the rules that span files, and the real demo."""

import statistics
from datetime import datetime
from functools import partial

import numpy as np
import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.pieces import shard_pieces
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.shards import read_shard
from ehrctx.events.splits import read_splits, subject_splits
from ehrctx.study import Privacy

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


def test_all_unreadable_files_are_named(write_meds, tmp_path):
    folder = write_meds(tmp_path, {name: events_of(subject) for name, subject in (("a", 1), ("b", 2), ("c", 3))})
    for name in "ac":
        file = folder / "data" / f"{name}.parquet"
        file.write_bytes(file.read_bytes()[:-9])
    (folder / "metadata" / "codes.parquet").write_bytes(b"")
    summary, found = check(open_dataset(folder))
    assert [v.file for v in found] == ["data/a.parquet", "data/c.parquet", "metadata/codes.parquet"]
    assert all("not a readable parquet file" in v.problem for v in found)
    assert summary["subjects"] == 1  # of the file that can be read


def test_what_a_profile_names_is_checked(write_meds, tmp_path):
    folder = write_meds(tmp_path, {"a": events_of(1).with_columns(unit=pl.lit("mg")), "b": events_of(2)})
    profile = DatasetProfile(name="own", unit_column="unit", visit_column="stay")
    assert check(open_dataset(folder))[1] == []
    _, found = check(open_dataset(folder), profile)
    assert [(v.file, v.problem) for v in found] == [
        ("data/a.parquet", "no column 'stay', which the profile 'own' names as visit_column."),
        ("data/b.parquet", "no column 'stay', which the profile 'own' names as visit_column."),
        ("data/b.parquet", "no column 'unit', which the profile 'own' names as unit_column."),
    ]


def test_birth_is_the_profiles(write_meds, tmp_path):
    """`tokenize` and `check --profile` agree on what is an event before birth."""
    rows = pl.DataFrame(
        {"subject_id": [1, 1], "time": [datetime(1960, 1, 1), datetime(1990, 1, 1)], "code": ["A", "BORN"]}
    )
    dataset = open_dataset(write_meds(tmp_path, {"0": rows.cast({"time": pl.Datetime("us")})}))
    assert check(dataset)[1] == []
    (violation,) = check(dataset, DatasetProfile(name="p", birth="BORN"))[1]
    assert (violation.rows, violation.problem) == ((1,), "time is more than 30 days before the subject's birth.")
    with pytest.raises(InputError, match="row 1: time is more than 30 days before"):
        read_shard(dataset, dataset.shards[0], DatasetProfile(name="p", birth="BORN"))


def test_patterns_that_no_event_has_are_warned_of_by_key(write_meds, tmp_path):
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(1, 2, 3)}))
    profile = DatasetProfile(
        name="p", birth="SEX//F", admission=("C2", "ADMISSION//*"), death=("C*",), date_only=("X", "Y//*"),
        groups={"sex": {"female": ("SEX//F",), "male": ("SEX//M",)}},
    )  # fmt: skip
    told = []
    assert check(dataset, profile, warn=told.append)[1] == []
    assert told == [
        "profile 'p': no event has a code of `date_only` ('X', 'Y//*').",
        "profile 'p': no event has a code of `groups.sex.male` ('SEX//M').",
        "profile 'p': no event has 'ADMISSION//*' of `admission`; other codes of the same keys are there.",
    ]


def test_another_table_of_splits(write_meds, tmp_path):
    dataset = open_dataset(write_meds(tmp_path / "data", {"0": events_of(1, 2, SECRET)}, {1: "train"}))
    file = tmp_path / "mine.parquet"
    pl.DataFrame({"subject_id": [1, 2], "split": ["train", "tuning"]}).write_parquet(file)
    (violation,) = check(dataset, splits=file)[1]
    assert str(violation) == f"{file}: <10 subjects with events have no split. Make the splits again."
    (violation,) = check(dataset, splits=file, privacy=Privacy(minimum_count=1))[1]
    assert "1 subjects with events have no split" in str(violation)
    with pytest.raises(InputError, match=r"no such file: .*gone"):
        check(dataset, splits=tmp_path / "gone.parquet")


def test_pieces_of_a_large_file_are_checked_one_by_one(write_meds, tmp_path, monkeypatch):
    """The same violations and the same summary, whatever is held at a time."""
    subjects = [events_of(subject, seed=subject) for subject in range(1, 31)]
    broken = pl.concat([*subjects, events_of(99, seed=1).with_columns(code=pl.lit(""))])
    folder = write_meds(tmp_path, {"0": broken})
    broken.write_parquet(folder / "data" / "0.parquet", row_group_size=10)
    dataset = open_dataset(folder)
    whole = check(dataset)
    monkeypatch.setattr("ehrctx.events.check.shard_pieces", partial(shard_pieces, rows=20))
    assert len(shard_pieces(dataset, dataset.shards[0], 20)) > 10
    assert check(dataset) == whole
    assert whole[1][0].rows[0] == broken.height - events_of(99, seed=1).height + 1


def test_the_command_line(run, write_meds, tmp_path):
    folder = write_meds(tmp_path, {"0": events_of(1, 2, 3)})
    (folder / "data" / "1.csv").touch()
    (folder / "data" / "._0.parquet").touch()
    (folder / "README").touch()
    (tmp_path / "own.yaml").write_text("{name: own, admission: ['Visit/IP']}")
    code, out, said = run("check", folder, "--profile", tmp_path / "own.yaml")
    assert code == 0
    assert '"events": ' in out
    assert f"warning: {folder}: not read: data/1.csv. Write events as parquet" in said
    assert "warning: profile 'own': no event has a code of `admission` ('Visit/IP')." in said
    assert "ignored" not in said
    code, _, said = run("check", folder, "--verbose")
    assert code == 0
    assert "ignored: README (outside data/ and metadata/)" in said
    assert "ignored: data/._0.parquet (hidden" in said
    assert "profile" not in said
