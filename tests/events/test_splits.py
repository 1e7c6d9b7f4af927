"""Splits: the hash is femr's, the shares are as asked, and a table that does not fit is refused."""

import hashlib
import struct
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.splits import hash_splits, read_splits, subject_splits
from ehrctx.study import HashSplits, Privacy

IDS = np.random.default_rng(5).choice(2**40, 20_000, replace=False)
SECRET = 987654321


def events_of(*subjects):
    return pl.DataFrame(
        {"subject_id": subjects, "time": [datetime(2020, 1, 1)] * len(subjects), "code": ["A"] * len(subjects)}
    )


@pytest.mark.parametrize(("seed", "held_out"), [(0, 0.15), (97, 0.3), (3, 0.5)])
def test_held_out_is_femrs_test_split(seed, held_out):
    femr = pytest.importorskip("femr.splits")
    ids = IDS[:3000]
    expected = femr.generate_hash_split(ids.tolist(), seed, frac_test=held_out)
    ours = hash_splits(ids, HashSplits(hash=(0.9 - held_out, 0.1, held_out), seed=seed))
    assert set(ours.filter(split="held_out")["subject_id"]) == set(expected.test_subject_ids)
    assert len(expected.test_subject_ids) > 100


def test_shares_are_roughly_as_asked():
    table = hash_splits(IDS, HashSplits(hash=(0.5, 0.2, 0.3), seed=1))
    for split, share in (("train", 0.5), ("tuning", 0.2), ("held_out", 0.3)):
        found = (table["split"] == split).mean()
        assert abs(found - share) < 4 * (share * (1 - share) / len(IDS)) ** 0.5


def test_independent_of_order_and_company():
    splits = HashSplits(hash=(0.5, 0.2, 0.3), seed=4)
    table = dict(hash_splits(IDS[:500], splits).iter_rows())
    shuffled = dict(hash_splits(IDS[:500][::-1], splits).iter_rows())
    alone = {int(s): hash_splits(np.array([s]), splits)["split"][0] for s in IDS[:50]}
    assert table == shuffled
    assert alone.items() <= table.items()
    assert dict(hash_splits(IDS[:500], HashSplits(hash=(0.5, 0.2, 0.3), seed=5)).iter_rows()) != table


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31))
def test_one_subject_against_the_formula(subject, seed):
    bucket = int(hashlib.sha256(struct.pack(">q", seed) + struct.pack(">q", subject)).hexdigest(), 16) % 65536
    expected = "held_out" if bucket <= 0.3 * 65536 else "tuning" if bucket <= 0.5 * 65536 else "train"
    table = hash_splits(np.array([subject], dtype=np.int64), HashSplits(hash=(0.5, 0.2, 0.3), seed=seed))
    assert table.rows() == [(subject, expected)]


def test_given_splits_are_taken_for_the_subjects_that_have_events(write_meds, tmp_path):
    given_splits = {5: "tuning", 1: "train", 9: "held_out", 77: "train"}
    dataset = open_dataset(write_meds(tmp_path, {"b": events_of(9, 1), "a": events_of(5)}, given_splits))
    assert subject_splits(dataset, None).rows() == [(1, "train"), (5, "tuning"), (9, "held_out")]


def test_hash_replaces_the_given_splits(write_meds, tmp_path):
    ids = [int(i) for i in sorted(IDS[:40])]
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(*ids)}, dict.fromkeys(ids, "train")))
    splits = HashSplits(hash=(0.5, 0.2, 0.3))
    assert subject_splits(dataset, splits).equals(hash_splits(np.array(ids), splits))


def test_subjects_without_a_split_get_femrs(write_meds, tmp_path, capsys):
    femr = pytest.importorskip("femr.splits")
    ids = [int(i) for i in sorted(IDS[:400])]
    given_splits = dict(zip(ids[:40], ["train", "tuning", "held_out", "held_out"] * 10, strict=True))
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(*ids)}, given_splits))
    table = dict(subject_splits(dataset, None).iter_rows())
    assert list(table) == ids
    assert given_splits.items() <= table.items()
    expected = femr.generate_hash_split(ids[40:], 0, frac_test=0.15)
    assert {i for i in ids[40:] if table[i] == "held_out"} == set(expected.test_subject_ids)
    said = capsys.readouterr().err
    assert "360 of 400 subjects have no split in metadata/subject_splits.parquet" in said
    assert not any(str(i) in said for i in ids)


def test_few_subjects_without_a_split_are_not_counted_aloud(write_meds, tmp_path, capsys):
    given_splits = {1: "train", 2: "tuning", 3: "held_out"}
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(1, 2, 3, SECRET)}, given_splits))
    assert given_splits.items() <= dict(subject_splits(dataset, None).iter_rows()).items()
    assert "<10 of <10 subjects" in capsys.readouterr().err


def test_empty_split(write_meds, tmp_path):
    given_splits = {1: "train", 2: "held_out", 3: "train"}
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(1, 2, 3)}, given_splits))
    with pytest.raises(InputError, match=r"the split 'tuning' is empty: .* lists no subject of it.*hash"):
        subject_splits(dataset, None)
    few = open_dataset(write_meds(tmp_path / "few", {"0": events_of(1, 2, 3)}))
    with pytest.raises(InputError, match=r"the split '\w+' is empty: the hash puts none .*another seed"):
        subject_splits(few, HashSplits(hash=(0.98, 0.01, 0.01)))


def test_a_split_whose_subjects_have_no_events(write_meds, tmp_path, capsys):
    """The files of a whole split are missing."""
    given_splits = {1: "train", 2: "held_out", SECRET: "tuning", SECRET + 1: "tuning"}
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(1, 2)}, given_splits))
    words = r"the split 'tuning' is empty: \S+ lists <10 subjects of it, and none has events in data/\. Restore"
    with pytest.raises(InputError, match=words):
        subject_splits(dataset, None)
    with pytest.raises(InputError, match="lists 2 subjects of it"):
        subject_splits(dataset, None, Privacy(minimum_count=1))
    warned = capsys.readouterr().err
    assert "without events in data/: <10 in tuning." in warned
    assert "without events in data/: 2 in tuning." in warned
    assert str(SECRET) not in warned


def test_some_train_files_are_missing(write_meds, tmp_path, capsys):
    given_splits = {1: "train", 2: "held_out", 3: "tuning", **dict.fromkeys(range(100, 130), "train")}
    dataset = open_dataset(write_meds(tmp_path, {"0": events_of(1, 2, 3)}, given_splits))
    assert subject_splits(dataset, None).height == 3
    said = "subjects of metadata/subject_splits.parquet without events in data/: 30 in train."
    assert said in capsys.readouterr().err
    warnings = []
    check(dataset, warn=warnings.append)
    assert [warning for warning in warnings if warning.startswith(said)]


def test_no_events_and_too_few_subjects(write_meds, tmp_path):
    """The true reason, not the advice to do what has just failed."""
    nobody = open_dataset(write_meds(tmp_path / "nobody", {"0": events_of()}))
    alone = open_dataset(write_meds(tmp_path / "alone", {"0": events_of(1)}))
    for splits in (None, HashSplits(hash=(0.5, 0.2, 0.3))):
        with pytest.raises(InputError, match=r"data/: no file in it has rows\. Give a data set with events"):
            subject_splits(nobody, splits)
        with pytest.raises(InputError, match="alone has events of fewer than 3 subjects"):
            subject_splits(alone, splits)
    assert [str(v) for v in check(nobody)[1]] == ["data/: no file in it has rows. Give a data set with events."]


def test_no_table_of_splits(write_meds, tmp_path):
    many = open_dataset(write_meds(tmp_path / "many", {"0": events_of(*sorted(IDS[:300]))}))
    assert subject_splits(many, None).equals(hash_splits(np.sort(IDS[:300]), HashSplits(hash=(0.7, 0.15, 0.15))))
    with pytest.raises(InputError, match="no such file"):
        read_splits(tmp_path / "absent.parquet")


def test_broken_shard_is_refused_with_its_row(write_meds, tmp_path):
    events = events_of(SECRET, SECRET).with_columns(time=pl.Series([datetime(2020, 1, 2), datetime(2020, 1, 1)]))
    dataset = open_dataset(write_meds(tmp_path, {"0": events}, {SECRET: "train"}))
    with pytest.raises(InputError, match=r"data/0\.parquet, row 2: time goes back") as caught:
        subject_splits(dataset, None)
    assert str(SECRET) not in str(caught.value)


def test_other_columns_of_a_table_of_splits_are_left_out(tmp_path):
    table = pl.DataFrame({"subject_id": [1, 2], "split": ["train", "tuning"], "token": [0, 1]})
    table.write_parquet(tmp_path / "splits.parquet")
    assert read_splits(tmp_path / "splits.parquet").equals(table.drop("token"))
