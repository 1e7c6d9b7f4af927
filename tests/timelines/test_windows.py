"""Windows: each kind against its definition, on a store made in memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.timelines.spec import BOS, EOS, PAD
from ehrctx.timelines.store import SUBJECT, Timelines
from ehrctx.timelines.windows import Windows, batches_by_budget, pad


def store_of(sizes, ages=None):
    """A store of subjects with (n_static, n_timed) tokens; all tokens differ, beginning with 100.

    With `ages` it has the bands up to 18, 65, and above, tokens 7, 8, 9; of each subject they are the years of its
    timed tokens, or None where it has no birth.
    """
    offsets = np.cumsum([0] + [s + t for s, t in sizes]).astype(np.int64)
    subjects = np.zeros(len(sizes), dtype=SUBJECT)
    subjects["subject_id"] = np.arange(len(sizes))
    subjects["n_static"] = [s for s, _ in sizes]
    n = int(offsets[-1])
    tokens = np.arange(100, 100 + n).astype(np.uint16)
    seconds, bands = np.zeros(n, np.uint32), {}
    if ages is not None:
        bands = {"age_bands": (18, 65), "first_age_token": 7}
        subjects["born"] = [own is not None for own in ages]
        for end, own in zip(offsets[1:], ages, strict=True):
            seconds[end - len(own or ()) : end] = np.ceil(np.array(own or ()) * 365.25 * 86_400)
    return Timelines(None, tokens, seconds, np.zeros(n, np.uint32), offsets, subjects, {}, **bands)


def parts_of(timelines, subject):
    """(static tokens, timed tokens) of a subject as lists."""
    own = timelines.tokens[timelines.offsets[subject] : timelines.offsets[subject + 1]].tolist()
    n = int(timelines.subjects["n_static"][subject])
    return own[:n], own[n:]


sizes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=6)
contexts = st.integers(6, 40)


@given(sizes, contexts)
def test_history_is_bos_prefix_and_the_most_recent(shape, context):
    timelines = store_of(shape)
    windows = Windows(timelines, context)
    for subject in range(len(shape)):
        static, timed = parts_of(timelines, subject)
        room = context - 1 - len(static)
        for seen in range(len(timed) + 1):
            window = windows.history(subject, len(static) + seen).tolist()
            recent = timed[:seen][-room:] if seen else []
            assert window == [BOS, *static, *recent]
            assert len(window) <= context
            start = windows.starts(np.array([subject]), np.array([len(static) + seen]))
            assert start.tolist() == [max(0, seen - room)]


@given(sizes, contexts)
def test_a_start_on_the_grid_is_the_first_from_which_the_history_fits(shape, context):
    windows = Windows(store_of(shape), context)
    for subject, (n_static, n_timed) in enumerate(shape):
        room = context - 1 - n_static
        seen = np.arange(n_timed + 1)
        starts = windows.starts(np.full(len(seen), subject), n_static + seen, on_grid=True)
        for end, start in zip(seen, starts, strict=True):
            grid = range(0, n_timed + 1, max(1, room // 4))
            assert start == next(g for g in grid if end - g <= room)
            assert end - start >= min(end, 0.75 * room)


@given(sizes, contexts)
def test_training_windows_end_with_eos_only_at_the_real_end(shape, context):
    timelines = store_of(shape)
    windows = Windows(timelines, context)
    lengths = windows.training_lengths(np.arange(len(shape)))
    rooms = windows.room(np.arange(len(shape)))
    for subject in range(len(shape)):
        static, timed = parts_of(timelines, subject)
        body = [*timed, EOS]
        room = context - 1 - len(static)
        assert rooms[subject] == room
        for start in range(max(len(body) - room, 0) + 1):
            window = windows.training(subject, start).tolist()
            assert window == [BOS, *static, *body[start : start + room]]
            assert len(window) == lengths[subject] <= context
            assert (window[-1] == EOS) == (start + room >= len(body))
            assert window.count(EOS) <= 1


@given(sizes, contexts)
def test_consecutive_windows_cover_each_token_and_eos_exactly_once(shape, context):
    timelines = store_of(shape)
    windows = Windows(timelines, context)
    asked = np.arange(len(shape))[::-1]
    subjects, starts = windows.consecutive(asked)
    covered = {int(s): [] for s in asked}
    for subject, start in zip(subjects, starts, strict=True):
        window = windows.training(int(subject), int(start)).tolist()
        static, _ = parts_of(timelines, int(subject))
        assert window[: 1 + len(static)] == [BOS, *static]
        assert 1 + len(static) < len(window) <= context
        covered[int(subject)] += window[1 + len(static) :]
    assert covered == {int(s): [*parts_of(timelines, int(s))[1], EOS] for s in asked}


@given(st.integers(0, 3), st.integers(0, 60), contexts)
def test_every_valid_start_is_drawn_equally_often(n_static, n_timed, context):
    windows = Windows(store_of([(n_static, n_timed)]), context)
    valid = max(n_timed + 1 - (context - 1 - n_static), 0) + 1
    draws = 50 * valid
    uniform = (np.arange(draws) + 0.5) / draws
    starts = windows.training_starts(np.zeros(draws, dtype=np.int64), uniform)
    assert np.bincount(starts, minlength=valid).tolist() == [50] * valid
    assert windows.training_starts(np.array([0, 0]), np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, valid - 1]


def test_the_same_tokens_are_seen_in_training_and_at_prediction():
    """Nothing differs but [EOS]: a training window from the start is a history and [EOS]."""
    windows = Windows(store_of([(2, 5)]), 20)
    assert windows.training(0, 0)[:-1].tolist() == windows.history(0, 7).tolist()


def test_context_without_room_is_refused():
    timelines = store_of([(0, 4), (5, 4)])
    with pytest.raises(InputError, match="a context length of 7 leaves no room beside a prefix of 5 tokens"):
        Windows(timelines, 7)
    assert len(Windows(timelines, 8).history(1, 9)) == 8


@pytest.mark.parametrize(("years", "token"), [(0, 7), (17.999, 7), (18, 8), (64.9, 8), (65, 9), (110, 9)])
def test_the_age_band_of_a_windows_first_event_opens_it(years, token):
    windows = Windows(store_of([(2, 3)], [[years, years + 50, years + 60]]), 20)
    assert windows.history(0, 5).tolist() == [BOS, 100, 101, token, 102, 103, 104]
    assert windows.training(0, 0).tolist() == [BOS, 100, 101, token, 102, 103, 104, EOS]


def test_age_is_told_of_a_birth_alone_and_of_events_that_are_seen():
    windows = Windows(store_of([(1, 2), (1, 2), (1, 0)], [None, [30, 40], []]), 20)
    assert windows.history(0, 3).tolist() == [BOS, 100, 101, 102]
    assert windows.history(1, 1).tolist() == [BOS, 103]  # its age would tell of an event to come
    assert windows.history(1, 2).tolist() == [BOS, 103, 8, 104]
    assert windows.history(2, 1).tolist() == [BOS, 106]
    assert windows.training(2, 0).tolist() == [BOS, 106, EOS]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.one_of(st.none(), st.lists(st.integers(0, 99), max_size=30))),
        min_size=1,
        max_size=5,
    ),
    contexts,
)
def test_windows_with_ages_against_their_definition(people, context):
    shape = [(n_static, 4 if own is None else len(own)) for n_static, own in people]
    timelines = store_of(shape, [own if own is None else sorted(own) for _, own in people])
    windows = Windows(timelines, context + 1)
    lengths, rooms = (f(np.arange(len(shape))) for f in (windows.training_lengths, windows.room))
    for subject, (_, own) in enumerate(people):
        static, timed = parts_of(timelines, subject)
        ages = [7 + (year >= 18) + (year >= 65) for year in sorted(own or ())]
        room = context - len(static) - bool(ages)
        assert rooms[subject] == room
        for seen in range(len(timed) + 1):
            start = max(0, seen - room)
            age = ages[start : start + 1] if seen else []
            window = windows.history(subject, len(static) + seen).tolist()
            assert window == [BOS, *static, *age, *timed[start:seen]]
            (place,) = windows.positions(np.array([subject]), np.array([start]), np.array([len(static) + seen]))
            assert place == len(window) - 1
        body = [*timed, EOS]
        for start in range(max(len(body) - room, 0) + 1):
            # before [EOS] alone stands the age at the last event
            age = ages[min(start, len(ages) - 1) :][:1]
            window = windows.training(subject, start).tolist()
            assert window == [BOS, *static, *age, *body[start : start + room]]
            assert len(window) == lengths[subject] <= context + 1


@given(st.lists(st.lists(st.integers(7, 99), min_size=1, max_size=9), min_size=1, max_size=8))
def test_padding_is_on_the_right(rows):
    tokens, lengths = pad([np.array(r, dtype=np.int64) for r in rows])
    assert lengths.tolist() == [len(r) for r in rows]
    longest = max(len(r) for r in rows)
    assert tokens.tolist() == [r + [PAD] * (longest - len(r)) for r in rows]


@settings(max_examples=200)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_partition_the_windows_within_the_budget(lengths, budget):
    lengths = np.array(lengths)
    batches = batches_by_budget(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(b) > 0 for b in batches)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    flat = lengths[np.concatenate(batches)]
    assert (np.diff(flat) >= 0).all()
    for batch, following in pairwise(batches):  # no batch could have taken one more
        assert (len(batch) + 1) * lengths[following[0]] > budget
