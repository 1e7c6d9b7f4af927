"""Steps as a pure function of (seed, step), traced back to the store token by token."""

from __future__ import annotations

import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.pretrain.batches import Step, TrainingBatches, validation_batches
from ehrctx.study import Pretraining
from ehrctx.timelines.spec import BOS, EOS, PAD
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

SPECIAL = 7
TIMED = [5, 80, 0, 33, 12, 200, 47, 1, 60, 25, 18, 90, 3]
PLAN = Pretraining(tokens=6_000, tokens_per_step=500, batch_tokens=160, pool_windows=6)


def training(store: Timelines, context: int = 40, seed: int = 0, plan: Pretraining = PLAN) -> TrainingBatches:
    return TrainingBatches(Windows(store, context), np.arange(len(store)), plan, seed)


def assert_same(found: list[Step], expected: list[Step]) -> None:
    assert [(s.index, len(s.batches)) for s in found] == [(s.index, len(s.batches)) for s in expected]
    for a, b in zip(found, expected, strict=True):
        for (tokens_a, lengths_a), (tokens_b, lengths_b) in zip(a.batches, b.batches, strict=True):
            np.testing.assert_array_equal(tokens_a, tokens_b)
            np.testing.assert_array_equal(lengths_a, lengths_b)


def rows_of(steps: list[Step]) -> list[np.ndarray]:
    """All windows, without their padding, which is checked."""
    rows = []
    for step in steps:
        for tokens, lengths in step.batches:
            assert tokens.shape == (len(lengths), lengths.max())
            for row, length in zip(tokens, lengths, strict=True):
                assert (row[length:] == PAD).all()
                assert not (row[:length] == PAD).any()
                rows.append(row[:length])
    return rows


def subject_of(store: Timelines, row: np.ndarray) -> int:
    """Whose window it is: the second token, static here, is unique."""
    return int(np.searchsorted(store.offsets, row[1] - SPECIAL, side="right") - 1)


@pytest.fixture(scope="module")
def store(numbered_timelines) -> Timelines:
    return numbered_timelines(TIMED)


@pytest.mark.parametrize("first", [1, 5, 11, 12])
def test_a_resumed_stream_is_the_tail_of_the_whole(store, first):
    whole = list(training(store).steps())
    assert len(whole) == training(store).n_steps == 12
    assert_same(list(training(store).steps(first)), whole[first:])


def test_steps_are_a_function_of_the_seed(store):
    whole = list(training(store).steps())
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert_same(list(training(store).steps()), whole)
    other = list(training(store, seed=1).steps())
    assert [r.tolist() for r in rows_of(other)] != [r.tolist() for r in rows_of(whole)]


def test_nothing_about_a_model_enters():
    assert list(inspect.signature(TrainingBatches).parameters) == ["windows", "subjects", "settings", "seed"]


@pytest.mark.parametrize(
    ("tokens", "per_step", "steps"), [(6_000, 500, 12), (499, 500, 1), (10, 500, 1), (1_249, 500, 2), (1_251, 500, 3)]
)
def test_number_of_steps(store, tokens, per_step, steps):
    plan = PLAN.model_copy(update={"tokens": tokens, "tokens_per_step": per_step})
    assert training(store, plan=plan).n_steps == steps
    assert len(list(training(store, plan=plan).steps())) == steps


@hypothesis_settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 99), context=st.integers(8, 60), pool=st.integers(1, 30))
def test_amounts(numbered_timelines, data, seed, context, pool):
    """No batch beyond its budget, and after every step the tokens seen are within half a batch of the plan's."""
    timed = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=15))
    batch_tokens = data.draw(st.integers(20, 300))
    largest = max(batch_tokens, context)
    per_step = data.draw(st.integers(largest, 600))
    plan = Pretraining(tokens=per_step * 6, tokens_per_step=per_step, batch_tokens=batch_tokens, pool_windows=pool)
    seen = 0
    steps = list(training(numbered_timelines(timed), context, seed, plan).steps())
    assert [s.index for s in steps] == list(range(6))
    for step in steps:
        rows_of([step])
        for tokens, lengths in step.batches:
            assert tokens.size <= batch_tokens or len(tokens) == 1
            assert lengths.max() <= context
        assert step.tokens == sum(int((tokens != PAD).sum()) for tokens, _ in step.batches)
        assert step.padded_tokens == sum(tokens.size for tokens, _ in step.batches)
        assert step.predicted == step.tokens - sum(len(tokens) for tokens, _ in step.batches)
        seen += step.tokens
        assert abs(seen - (step.index + 1) * per_step) <= largest / 2


@pytest.mark.parametrize("context", [10, 40, 400])
def test_every_window_is_cut_from_one_timeline(store, context):
    for row in rows_of(list(training(store, context).steps())):
        subject = subject_of(store, row)
        lo, hi = store.offsets[subject], store.offsets[subject + 1]
        body = row[2:]
        assert row[0] == BOS
        assert row[1] == store.tokens[lo]
        if body[-1] == EOS:
            body = body[:-1]
            assert len(body) == 0 or body[-1] == store.tokens[hi - 1], "[EOS] only where the timeline ends"
        else:
            assert len(row) == context, "a window is cut short only by the timeline's end"
        assert (np.diff(body) == 1).all(), "consecutive tokens"
        assert len(body) == 0 or lo < body[0] - SPECIAL < hi
        assert len(row) == min(context, hi - lo + 2), "[BOS], the timeline, [EOS]"


def test_all_starts_of_a_long_timeline_are_drawn_alike(numbered_timelines):
    store = numbered_timelines([13])  # with [EOS] 14 tokens, 8 of them beside [BOS] and the prefix: starts 0 to 6
    plan = Pretraining(tokens=70_000, tokens_per_step=1_000, batch_tokens=100)
    rows = rows_of(list(training(store, 10, plan=plan).steps()))
    starts = Counter(int(row[2] - SPECIAL - 1) for row in rows)
    assert sorted(starts) == list(range(7))
    expected = len(rows) / 7
    chi_square = sum((n - expected) ** 2 / expected for n in starts.values())
    assert chi_square < 22.5, "beyond the 99.9th percentile of chi-square with 6 degrees of freedom"


@pytest.mark.parametrize("pool_windows", [1, 4, 6, 13, 1000])
def test_every_subject_appears_once_per_pass(store, pool_windows):
    batches = training(store, plan=PLAN.model_copy(update={"pool_windows": pool_windows}))
    size = min(pool_windows, len(store))
    assert batches.pool_windows == size
    drawn: Counter[int] = Counter()
    for index in range(3 * len(store)):
        for subjects, _, _ in batches.pool(index):
            drawn.update(subjects.tolist())
        counts = [drawn[s] for s in range(len(store))]
        assert sum(counts) == (index + 1) * size
        assert max(counts) - min(counts) <= 1, "nobody comes twice before everybody came once"
    assert len(set(counts)) == 1
    assert counts[0] == 3 * size


def test_passes_differ_in_order(store):
    batches = training(store, plan=PLAN.model_copy(update={"pool_windows": 1}))
    order = [int(batches.pool(i)[0][0][0]) for i in range(2 * len(store))]
    assert sorted(order[: len(store)]) == sorted(order[len(store) :])
    assert order[: len(store)] != order[len(store) :]


def test_all_contexts_see_the_same_stream_of_subjects(store):
    short, long = training(store, context=16), training(store, context=300)
    for index in range(9):
        streams = [sorted(s for subjects, _, _ in b.pool(index) for s in subjects.tolist()) for b in (short, long)]
        assert streams[0] == streams[1]


def test_only_the_subjects_given_are_drawn(store):
    chosen = np.array([1, 4, 8])
    batches = TrainingBatches(Windows(store, 40), chosen, PLAN, 0)
    assert {subject_of(store, row) for row in rows_of(list(batches.steps()))} == set(chosen.tolist())


@pytest.mark.parametrize("tokens", [200, 500, 1_500, 6_000])
@pytest.mark.parametrize("context", [16, 40, 300])
def test_coverage_is_that_of_the_windows_that_were_cut(store, tokens, context):
    batches = training(store, context, plan=PLAN.model_copy(update={"tokens": tokens}))
    for steps in {1, batches.n_steps // 2 or 1, batches.n_steps}:
        windows = rows_of(list(batches.steps())[:steps])
        subjects = {subject_of(store, row) for row in windows}
        assert batches.coverage(steps) == (len(subjects), len(windows) / len(TIMED))


def test_a_budget_below_one_pass_does_not_see_everybody(store):
    subjects, passes = training(store, plan=PLAN.model_copy(update={"tokens": 100, "tokens_per_step": 100})).coverage(1)
    assert subjects < len(TIMED)
    assert passes < 1


@hypothesis_settings(max_examples=40)
@given(data=st.data(), context=st.integers(8, 50), budget=st.integers(1, 300))
def test_validation_holds_every_token_once(numbered_timelines, data, context, budget):
    timed = data.draw(st.lists(st.integers(0, 120), min_size=1, max_size=10))
    n_static = data.draw(st.lists(st.integers(0, 3), min_size=len(timed), max_size=len(timed)))
    store = numbered_timelines(timed, n_static)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, len(timed) - 1), min_size=1))))
    found: Counter[int] = Counter()
    windows = 0
    for tokens, lengths in validation_batches(Windows(store, context), chosen, budget):
        assert tokens.size <= budget or len(tokens) == 1
        assert tokens.shape[1] == lengths.max() <= context
        assert (lengths == (tokens != PAD).sum(1)).all()
        assert (tokens[:, 0] == BOS).all()
        windows += len(tokens)
        found.update(tokens[tokens != PAD].tolist())
    expected = Counter({EOS: len(chosen), BOS: windows})
    static: Counter[int] = Counter()
    for subject in chosen:
        own = store.tokens[store.offsets[subject] : store.offsets[subject + 1]].tolist()
        expected.update(own[n_static[subject] :])
        n_windows = -(-(timed[subject] + 1) // (context - 1 - n_static[subject]))
        static.update(dict.fromkeys(own[: n_static[subject]], n_windows))
    assert found == expected + static


def test_the_cohort_leaves_little_padding(cohort):
    store = Timelines.open(cohort.timelines)
    plan = Pretraining(tokens=60_000, tokens_per_step=8_000, batch_tokens=4_000)
    for context, least in ((64, 0.98), (512, 0.93)):
        steps = list(TrainingBatches(Windows(store, context), store.in_split("train"), plan, 0).steps())
        share = sum(s.tokens for s in steps) / sum(s.padded_tokens for s in steps)
        unsorted_share = np.mean([len(r) for r in rows_of(steps)]) / context
        assert share >= least
        assert share >= unsorted_share


def test_validation_covers_the_cohorts_tuning_split(cohort):
    store = Timelines.open(cohort.timelines)
    tuning = np.flatnonzero(store.subjects["split"] == "tuning")
    found = np.zeros(store.vocabulary_size, dtype=np.int64)
    for tokens, _ in validation_batches(Windows(store, 96), tuning, 4_000):
        found += np.bincount(tokens[tokens != PAD], minlength=len(found))
    expected = np.zeros_like(found)
    for subject in tuning:
        timed = store.tokens[store.offsets[subject] + store.subjects["n_static"][subject] : store.offsets[subject + 1]]
        expected += np.bincount(timed, minlength=len(found))
    static = np.unique(store.tokens[store.offsets[tuning]])
    timed_only = np.setdiff1d(np.arange(SPECIAL, len(found)), static)
    np.testing.assert_array_equal(found[timed_only], expected[timed_only])
    assert found[EOS] == len(tuning)


def test_a_batch_larger_than_a_step_does_not_multiply_the_budget(store):
    plan = Pretraining(tokens=2_000, tokens_per_step=100, batch_tokens=600)
    seen = sum(step.tokens for step in training(store, plan=plan).steps())
    assert seen == pytest.approx(2_000, rel=0.1)
