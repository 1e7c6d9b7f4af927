"""Reading a shard: what the quick check lets pass is valid, and the other way round; a subject is in one shard."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.pieces import pieces_of
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.rules import LONGEST_CODE, LONGEST_LIFE, subjects_in_two_shards, violations_of
from ehrctx.events.shards import STATIC, read_piece, read_shard

PLAIN = DatasetProfile(name="plain")
DAY = datetime(2020, 3, 1)
DAYS, MICROSECOND = timedelta(days=1), timedelta(microseconds=1)
SECRET = 98765432
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def frame(rows):
    return pl.DataFrame([(*row, None) for row in rows], schema=SCHEMA, orient="row")


def read(write_meds, folder, events, profile=PLAIN):
    dataset = open_dataset(write_meds(folder, {"0": events}))
    return read_shard(dataset, dataset.shards[0], profile)


codes = st.sampled_from(["A", "A", "A", "B", "MEDS_BIRTH", "é" * (LONGEST_CODE // 2), "x" * LONGEST_CODE])
bad_codes = st.sampled_from([None, "", "x" * (LONGEST_CODE + 1), "é" * (LONGEST_CODE // 2 + 1)])
times = st.one_of(
    st.none(),
    st.integers(0, 4).map(lambda n: DAY + timedelta(hours=n)),
    st.sampled_from([-31, -30, 29, 30, 31]).map(lambda n: DAY + timedelta(days=n)),
    st.just(DAY + timedelta(microseconds=1)),
    st.sampled_from([datetime(9999, 12, 31), datetime(1850, 1, 1), datetime(1650, 1, 1), datetime(1300, 1, 1)]),
    st.sampled_from([0, 1, -1]).map(lambda s: DAY - LONGEST_LIFE + timedelta(seconds=s)),
)


@st.composite
def nearly_valid(draw):
    """Rows in order but for a few, so that each rule is broken by itself now and then."""
    rows = []
    for subject in draw(st.lists(st.integers(1, 6), max_size=4, unique=True)):
        own = draw(st.lists(st.tuples(times, codes), min_size=1, max_size=5))
        if draw(st.booleans()):  # a birth that may lie too far back
            own.append((draw(st.sampled_from([datetime(1300, 1, 1), DAY - LONGEST_LIFE, DAY])), "MEDS_BIRTH"))
        own.sort(key=lambda row: (row[0] is not None, row[0] or DAY))
        rows += [(SECRET + subject, *row) for row in own]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        if not rows:
            break
        at = draw(st.integers(0, len(rows) - 1))
        subject, time, code = rows[at]
        rows[at] = draw(
            st.one_of(
                st.tuples(st.just(subject), times, st.just(code)),
                st.tuples(st.just(subject), st.just(time), bad_codes),
                st.tuples(st.sampled_from([None, SECRET + 1, SECRET + 2]), st.just(time), st.just(code)),
            )
        )
    return rows


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nearly_valid())
def test_the_quick_check_agrees_with_the_rules(write_meds, tmp_path, rows):
    events = frame(rows)
    found = violations_of(events, "data/0.parquet")
    if not found:
        ours = read(write_meds, tmp_path, events)
        assert ours.height == len(rows)
        assert ours["code"].to_list().count("A") == [code for _, _, code in rows].count("A")
        return
    with pytest.raises(InputError) as caught:
        read(write_meds, tmp_path, events)
    assert str(caught.value).startswith(str(found[0]))
    assert str(SECRET)[:6] not in str(caught.value)


RULES = {
    "scattered": ([(1, DAY, "A"), (2, DAY, "A"), (1, DAY, "A")], 3, "not together"),
    "back in time": ([(1, DAY, "A"), (1, DAY - timedelta(microseconds=1), "A")], 2, "time goes back"),
    "late static": ([(1, DAY, "A"), (1, None, "A")], 2, "static row"),
    "null code": ([(1, DAY, "A"), (1, DAY, None)], 2, "code is empty"),
    "empty code": ([(1, DAY, "")], 1, "code is empty"),
    "long code": ([(1, DAY, "A"), (1, DAY, "é" * 251)], 2, "longer than 500 bytes"),
    "null subject": ([(1, DAY, "A"), (None, DAY, "A")], 2, "subject_id is empty"),
    "before birth": (
        [(1, DAY - 30 * DAYS - MICROSECOND, "A"), (1, DAY - 30 * DAYS, "A"), (1, DAY, "MEDS_BIRTH")],
        1,
        "more than 30 days before",
    ),
    "an open end": ([(1, DAY, "A"), (1, datetime(9999, 12, 31), "A")], 2, "a placeholder, not a date"),
    "an early placeholder": ([(1, datetime(1600, 1, 1), "A"), (1, DAY, "A")], 1, "a placeholder, not a date"),
    "a birth in year 0": ([(1, np.datetime64("0000-01-01", "us"), "MEDS_BIRTH")], 1, "a placeholder, not a date"),
    "one event too late": (
        [(1, DAY, "A"), (1, DAY, "A"), (1, DAY + LONGEST_LIFE + timedelta(seconds=1), "A")],
        3,
        "136 years away",
    ),
    "one event too early": (
        [(1, DAY - LONGEST_LIFE - timedelta(seconds=1), "A"), (1, DAY, "A"), (1, DAY, "A")],
        1,
        "136 years away",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_each_rule_by_itself(write_meds, tmp_path, name):
    rows, row, words = RULES[name]
    rows = [(subject and subject + SECRET, *rest) for subject, *rest in rows]
    with pytest.raises(InputError, match=rf"^data/0\.parquet, row {row}: .*{words}") as caught:
        read(write_meds, tmp_path, frame(rows))
    assert str(SECRET)[:6] not in str(caught.value)
    assert "2020" not in str(caught.value)


def test_births_are_those_of_the_profile(write_meds, tmp_path):
    rows = [(1, DAY - timedelta(days=31), "A"), (1, DAY, "BORN")]
    assert read(write_meds, tmp_path / "other", frame(rows)).height == 2
    with pytest.raises(InputError, match="more than 30 days before"):
        read(write_meds, tmp_path / "own", frame(rows), DatasetProfile(name="p", birth="BORN"))


def test_a_long_code_that_no_row_has_is_no_error(write_meds, tmp_path):
    """A dictionary may hold more than its column."""
    events = frame([(1, DAY, "A"), (1, DAY, "x" * 501)]).with_columns(pl.col("code").cast(pl.Categorical))
    assert read(write_meds, tmp_path, events.head(1)).height == 1


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt32, pl.UInt64, pl.Int8])
def test_narrow_subject_ids_are_widened(write_meds, tmp_path, dtype):
    assert read(write_meds, tmp_path, frame([(5, DAY, "A")]).cast({"subject_id": dtype}))["subject_id"].to_list() == [5]


def test_a_subject_id_that_does_not_fit_is_refused(write_meds, tmp_path):
    wide = pl.DataFrame({"subject_id": pl.Series([2**63], dtype=pl.UInt64), "time": [DAY], "code": ["A"]})
    with pytest.raises(InputError, match=r"row 1: subject_id does not fit into 64 bits") as caught:
        read(write_meds, tmp_path, wide.cast({"time": pl.Datetime("us")}))
    assert str(2**63) not in str(caught.value)


def test_a_subject_in_two_shards_is_refused(write_meds, tmp_path):
    shards = {name: frame([(subject, DAY, "A")]) for name, subject in (("a", SECRET), ("b", 2), ("c", SECRET))}
    found = [v for v in check(open_dataset(write_meds(tmp_path, shards)))[1] if "earlier file" in v.problem]
    assert [violation.file for violation in found] == ["data/c.parquet"]
    assert str(SECRET) not in str(found[0])


@given(st.lists(st.lists(st.integers(0, 30), max_size=8, unique=True), max_size=6))
def test_subjects_in_two_shards_against_a_count(shards):
    found = subjects_in_two_shards([(f"f{i}", np.array(ids, dtype=np.int64)) for i, ids in enumerate(shards)])
    seen, expected = set(), []
    for number, ids in enumerate(shards):
        if again := len(seen & set(ids)):
            expected.append((f"f{number}", again))
        seen |= set(ids)
    assert [(v.file, int(v.problem.split()[0])) for v in found] == expected


BIRTH = "MEDS_BIRTH"
EARLY = DAY - LONGEST_LIFE - timedelta(seconds=1)
# name -> (rows, how many births are ignored, the birth that is known, the first other event)
LIVES = {
    "a birth as early as can be": ([(1, DAY - LONGEST_LIFE, BIRTH), (1, DAY, "A")], 0, DAY - LONGEST_LIFE, None),
    "a second earlier": ([(1, EARLY, BIRTH), (1, DAY, "A")], 1, None, DAY),
    "written twice": ([(1, EARLY, BIRTH), (1, EARLY, BIRTH), (1, DAY, "A")], 2, None, DAY),
    "another one is believed": (
        [(1, EARLY, BIRTH), (1, DAY - 9 * DAYS, BIRTH), (1, DAY, "A")],
        1,
        DAY - 9 * DAYS,
        None,
    ),
    "after static events": (
        [(1, None, "S"), (1, EARLY, BIRTH), (1, DAY - DAYS, "A"), (1, DAY, "A")],
        1,
        None,
        DAY - DAYS,
    ),
    "a birth alone": ([(1, datetime(1300, 1, 1), BIRTH)], 0, datetime(1300, 1, 1), None),
    "static events alone": ([(1, None, "S")], 0, None, None),
}


@pytest.mark.parametrize("name", LIVES)
def test_births_too_early_are_ignored(write_meds, tmp_path, name):
    rows, n_ignored, born, first = LIVES[name]
    rows = [(0, DAY, "A"), *rows, (9, DAY - DAYS, BIRTH), (9, DAY, "A")]
    dataset = open_dataset(write_meds(tmp_path, {"0": frame(rows)}))
    (piece,) = pieces_of(dataset)
    lives = read_piece(dataset, piece, PLAIN).lives(BIRTH)
    assert lives.n_ignored.tolist() == [0, n_ignored, 0]

    def micros(time):
        return STATIC if time is None else int(np.datetime64(time, "us").astype(np.int64))

    assert lives.born.tolist() == [STATIC, micros(born), micros(DAY - DAYS)]
    assert lives.first.tolist() == [micros(DAY), micros(first or born), micros(DAY - DAYS)]
    told = []
    assert check(dataset, warn=told.append)[1] == []
    assert [sentence[:26] for sentence in told] == ["<10 subjects were born mor"] * bool(n_ignored)


def test_days_that_end_later_are_kept_within_what_a_timeline_holds(write_meds, tmp_path):
    """Events that move to the end of their day may not move beyond 2^32 - 1 seconds."""
    moved = DatasetProfile(name="p", date_only=("A",))
    rows = [(1, DAY - LONGEST_LIFE + timedelta(hours=1), "B"), (1, DAY, "A")]
    dataset = open_dataset(write_meds(tmp_path, {"0": frame(rows)}))
    assert read_shard(dataset, dataset.shards[0], PLAIN).height == 2
    with pytest.raises(InputError, match="136 years away"):
        read_shard(dataset, dataset.shards[0], moved)
    assert check(dataset)[1] == []
    assert [violation.n for violation in check(dataset, moved)[1]] == [1]
