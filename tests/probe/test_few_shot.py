"""Draws of k labels per class: nested, balanced, of train and tuning alone; and EHRSHOT's own draws in their place."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.probe.few_shot import EVERY, PublishedShot, draw_shots, match_shots, read_shots, shot_files, shots_of
from ehrctx.study import FewShot

T = datetime(2020, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "y": pl.Boolean}
K = (1, 2, 3, 5, 9)
BOTH = ("train", "tuning")


def frame(rows):
    return pl.DataFrame([(s, T + timedelta(hours=h), y) for s, h, y in rows], schema=SCHEMA, orient="row")


def keys(labels: pl.DataFrame, rows) -> list:
    return labels[rows].rows()


# few subjects and few hours, so that a subject has several labels, and some come twice
label_rows = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4), st.booleans()), max_size=25)
choices = st.builds(
    FewShot,
    k=st.just(K),
    replicates=st.integers(1, 3),
    draw=st.sampled_from(["labels", "subjects"]),
    seed=st.integers(0, 5),
)


@hypothesis_settings(max_examples=80)
@given(label_rows, label_rows, choices)
def test_draws_hold_k_of_each_class_and_all_smaller_draws(train, tuning, chosen):
    labels = {"train": frame(train), "tuning": frame(tuning)}
    shots, told = draw_shots("t", labels, chosen)
    assert [(s.replicate, s.k) for s in shots] == [(r, str(k)) for r in range(chosen.replicates) for k in K]
    for split in BOTH:
        own = labels[split]
        y = own["y"].to_numpy()
        distinct = {c: (own.filter(pl.col("y") == c)["subject_id"].n_unique(), int((y == c).sum())) for c in (0, 1)}
        pool = {c: n[0] if chosen.draw == "subjects" else n[1] for c, n in distinct.items()}
        assert told[f"{chosen.draw}_of_the_rarer_class"][split] == min(pool.values())
        smaller: dict[int, list] = {}
        for shot in shots:
            rows = getattr(shot, split)
            for c in (0, 1):
                of_class = rows[y[rows] == c]
                k = int(shot.k)
                assert len(of_class) == (k if pool[c] else 0)
                n_distinct = own[of_class]["subject_id"].n_unique() if chosen.draw == "subjects" else len({*of_class})
                assert n_distinct == min(k, pool[c]), "nothing is drawn again before the class is used up"
            if shot.k != "1":
                left = list(rows)
                for row in smaller[shot.replicate]:
                    left.remove(row)  # each as often as it was there
            smaller[shot.replicate] = list(rows)


@hypothesis_settings(max_examples=40)
@given(label_rows, label_rows, choices, st.randoms(use_true_random=False))
def test_draws_do_not_depend_on_the_order_of_labels_nor_on_other_k(train, tuning, chosen, random):
    first = {"train": frame(train), "tuning": frame(tuning)}
    mixed = {s: frame(random.sample(rows, len(rows))) for s, rows in (("train", train), ("tuning", tuning))}
    fewer = chosen.model_copy(update={"k": (5, 2)})
    wanted = {(s.k, s.replicate): s for s in draw_shots("t", first, chosen)[0]}
    # a class that is filled up is drawn from in the same order
    for shot in draw_shots("t", mixed, fewer)[0]:
        for split in BOTH:
            expected = keys(first[split], getattr(wanted[shot.k, shot.replicate], split))
            assert keys(mixed[split], getattr(shot, split)) == expected


def many(n=400, start=0):
    return frame([(start + i // 2, i % 2, i % 3 == 0) for i in range(n)])


def test_seed_task_and_replicate_give_other_draws():
    labels = {"train": many(), "tuning": many(start=1_000)}
    one = FewShot(k=(16,), replicates=2)
    first, second = draw_shots("a", labels, one)[0]
    (other_task, _), (other_seed, _) = (
        draw_shots(task, labels, one.model_copy(update={"seed": seed}))[0] for task, seed in (("b", 0), ("a", 1))
    )
    drawn = [tuple(sorted(shot.train)) for shot in (first, second, other_task, other_seed)]
    assert len(set(drawn)) == 4


def test_every_label_is_equally_likely():
    """1,000 draws of 5 of 50 positives: 20 subjects with one, 6 with five; within five standard errors."""
    rows = [(i, 0, True) for i in range(20)] + [(100 + i // 5, i % 5, True) for i in range(30)] + [(500, 0, False)]
    labels = {"train": frame(rows), "tuning": frame(rows)}
    shots, _ = draw_shots("t", labels, FewShot(k=(5,), replicates=1_000))
    of_labels = np.bincount(np.concatenate([s.train for s in shots]), minlength=51)[:50] / 1_000
    assert np.abs(of_labels - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / 1_000)
    by_subject, _ = draw_shots("t", labels, FewShot(k=(5,), replicates=1_000, draw="subjects"))
    counted = np.bincount(np.concatenate([s.train for s in by_subject]), minlength=51)[:50] / 1_000
    expected = np.array([1.0] * 20 + [0.2] * 30) * 5 / 26  # 26 subjects, the label of five is drawn among them
    assert np.abs(counted - expected).max() < 5 * np.sqrt(expected.max() / 1_000)


def mixed_by_hand(state: int) -> int:
    """splitmix64 on Python's whole numbers; from 0 its first answer is 0xE220A8397B1DCDAF."""
    whole = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & whole
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & whole
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & whole
    return z ^ (z >> 31)


def test_a_draw_is_the_same_on_every_machine_and_with_every_library():
    """A function of whole numbers: the k labels of a class whose hashes are the least."""
    assert mixed_by_hand(0) == 0xE220A8397B1DCDAF
    labels = {"train": many(40), "tuning": many(30, start=1_000)}
    (shot,), _ = draw_shots("new_lupus", labels, FewShot(k=(3,), replicates=1, seed=4))

    def place(row):
        subject, time, label = labels["train"].row(row)
        state = int.from_bytes(hashlib.sha256(f"4/new_lupus/0/{label}".encode()).digest()[:8], "big")
        microseconds = (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)
        for number in (subject, microseconds, 0):
            state = mixed_by_hand(state ^ number)
        return state

    y = labels["train"]["y"].to_list()
    expected = [sorted((r for r in range(40) if y[r] is c), key=place)[:3] for c in (False, True)]
    assert shot.train.tolist() == expected[0] + expected[1]


# EHRSHOT's files: its splits are named train and val, and times are ISO


def entry(train, val):
    written = {}
    for split, rows in (("train", train), ("val", val)):
        written[f"patient_ids_{split}_k"] = [s for s, _, _ in rows]
        written[f"label_times_{split}_k"] = [(T + timedelta(hours=h)).isoformat() for _, h, _ in rows]
        written[f"label_values_{split}_k"] = [y for _, _, y in rows]
        written[f"{split}_idxs"] = list(range(len(rows)))
    return written


TRAIN = [(1, 0, True), (1, 1, False), (2, 0, True), (3, 5, False), (3, 5, True)]
TUNING = [(11, 0, False), (12, 0, True)]
LABELS = {"train": frame(TRAIN), "tuning": frame(TUNING), "held_out": frame([(21, 0, True), (22, 0, False)])}
PUBLISHED = {
    "new_lupus": {
        "-1": {"0": entry(TRAIN, TUNING)},
        "1": {"0": entry([TRAIN[0], TRAIN[3]], TUNING), "1": entry([TRAIN[2], TRAIN[1]], TUNING[::-1])},
        "2": {"0": entry([TRAIN[0], TRAIN[2], TRAIN[3], TRAIN[3]], TUNING * 2)},
    }
}


@pytest.fixture
def write_shots(tmp_path):
    def write(held, name="all_shots_data.json"):
        file = tmp_path / "shots" / "new_lupus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(held if isinstance(held, str) else json.dumps(held))
        return file

    return write


def test_published_draws_are_found_among_our_labels(write_shots):
    shots, told = shots_of("new_lupus", LABELS, FewShot(k=(1, 2), replicates=2), write_shots(PUBLISHED))
    assert [(s.k, s.replicate, s.train.tolist(), s.tuning.tolist()) for s in shots] == [
        ("1", 0, [0, 3], [0, 1]),
        ("2", 0, [0, 2, 3, 3], [0, 1, 0, 1]),
        ("1", 1, [2, 1], [1, 0]),
    ]
    assert told == {"unmatched": {}, "draws_not_in_the_file": 1, "draws_of_one_class": 0}


def test_our_own_draws_written_as_ehrshot_does_are_read_back(write_shots):
    labels = {"train": many(60), "tuning": many(40, start=1_000), "held_out": many(10, start=2_000)}
    chosen = FewShot(k=(2, 30), replicates=2)
    drawn, _ = draw_shots("new_lupus", labels, chosen)
    held: dict = {"new_lupus": {}}
    for shot in drawn:
        rows = [
            [(s, int((t - T).total_seconds() // 3600), y) for s, t, y in keys(labels[split], getattr(shot, split))]
            for split in BOTH
        ]
        held["new_lupus"].setdefault(shot.k, {})[str(shot.replicate)] = entry(*rows)
    found, told = shots_of("new_lupus", labels, chosen, write_shots(held))
    assert told["unmatched"] == {}
    for shot, expected in zip(found, drawn, strict=True):
        for split in BOTH:
            np.testing.assert_array_equal(getattr(shot, split), getattr(expected, split))


def test_what_cannot_be_matched_is_told_by_reason(write_shots):
    train = [TRAIN[0], (99, 0, True), (21, 0, True), (2, 0, False), (11, 0, False), TRAIN[1], (99, 0, True)]
    held = {"new_lupus": {"1": {"0": entry(train, TUNING), "1": entry([TRAIN[0], (98, 0, False)], TUNING)}}}
    shots, told = shots_of("new_lupus", LABELS, FewShot(k=(1,), replicates=2), write_shots(held))
    assert [shot.train.tolist() for shot in shots] == [[0, 1]]
    assert told == {
        "unmatched": {"not among the labels here": 2, "in another split here": 2, "with another value here": 1},
        "draws_not_in_the_file": 0,
        "draws_of_one_class": 1,
    }


def broken(change):
    held = json.loads(json.dumps(PUBLISHED))
    change(held["new_lupus"]["1"]["0"])
    return held


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("{", "cannot be read as JSON"),
        ([], "no draws of 'new_lupus' are in it"),
        ({"new_celiac": {}}, "no draws of 'new_lupus' are in it"),
        ({"new_lupus": {"1": []}}, "k 1: replicates are expected"),
        (broken(lambda e: e.pop("patient_ids_val_k")), "replicate 0: lists patient_ids_val_k, label_times_val_k"),
        (broken(lambda e: e["label_times_train_k"].pop()), "have 2, 1 and 2 entries"),
        (broken(lambda e: e["label_times_train_k"].__setitem__(1, "31/12/2019")), "replicate 0, entry 2 of train"),
        (broken(lambda e: e["label_times_val_k"].__setitem__(0, "2020-01-01T00:00:00Z")), "entry 1 of val"),
        (broken(lambda e: e["label_values_train_k"].__setitem__(0, "yes")), "entry 1 of train"),
        (broken(lambda e: e["label_values_train_k"].__setitem__(0, 7)), "entry 1 of train"),
        (broken(lambda e: e["patient_ids_train_k"].__setitem__(0, "48151623")), "entry 1 of train"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_without_a_value(write_shots, held, words):
    file = write_shots(held)
    with pytest.raises(InputError) as refused:
        read_shots(file, "new_lupus", FewShot(k=(1,)))
    said = str(refused.value)
    assert said.startswith(str(file))
    assert words in said
    for value in ("31/12/2019", "48151623", "yes"):
        assert value not in said


def test_files_of_tasks_are_found_or_refused_by_name(write_shots):
    file = write_shots(PUBLISHED, "few_shots_data.json")
    folder = file.parents[1]
    assert shot_files(folder, ["new_lupus"]) == {"new_lupus": file}
    assert shot_files(folder, ["new_lupus"]) != {"new_lupus": write_shots(PUBLISHED)}, "made below"
    assert shot_files(folder, ["new_lupus"]) == {"new_lupus": file.parent / "all_shots_data.json"}
    with pytest.raises(InputError, match=r"no draws of 'new_celiac' in .*shots: put new_celiac/all_shots_data\.json"):
        shot_files(folder, ["new_lupus", "new_celiac"])


@hypothesis_settings(max_examples=40)
@given(label_rows, label_rows, label_rows, label_rows, choices)
def test_held_out_labels_change_no_draw(train, tuning, held_out, others, chosen):
    first, second = (
        shots_of("t", {"train": frame(train), "tuning": frame(tuning), "held_out": frame(rows)}, chosen, None)
        for rows in (held_out, others)
    )
    assert first[1] == second[1]
    for a, b in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(np.concatenate([a.train, a.tuning]), np.concatenate([b.train, b.tuning]))


@hypothesis_settings(max_examples=40)
@given(label_rows, label_rows, label_rows, choices)
def test_tuning_labels_change_no_draw_from_train(train, tuning, others, chosen):
    first, second = (draw_shots("t", {"train": frame(train), "tuning": frame(t)}, chosen)[0] for t in (tuning, others))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.train, b.train)


def test_without_a_draw_every_label_is_used():
    rows = np.arange(7)
    np.testing.assert_array_equal(rows[EVERY.train], rows)
    np.testing.assert_array_equal(rows[EVERY.tuning], rows)
    assert (EVERY.k, EVERY.replicate) == ("all", 0)


def test_matching_takes_the_first_of_equal_labels():
    twice = {"train": frame([(1, 0, True), (1, 0, True)]), "tuning": frame([])}
    file_rows = [(1, T, True)] * 2
    shots, unmatched = match_shots([PublishedShot(1, 0, {"train": file_rows, "tuning": []})], twice)
    assert shots[0].train.tolist() == [0, 0]
    assert not unmatched
