"""Shared-prefix embeddings against one window per row, cut by hand; and that nothing later leaks into them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc

import numpy as np
import polars as pl
import pytest
import torch
from embed_by_hand import MODELS, SETTINGS, VOCABULARY, draw_rows, embedded, pooled, window
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.models.model import load_model
from ehrctx.probe.embed import embed, embed_rows, plan_passes
from ehrctx.probe.embeddings import read_embeddings
from ehrctx.study import ARCHITECTURES
from ehrctx.tasks.label_sets import prediction_times, read_labels
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows


class Counter(torch.nn.Module):
    """A causal "model" of which the state is known: the same number in all places, the tokens so far."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.weight = hidden_size, torch.nn.Parameter(torch.ones(1))

    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        so_far = torch.arange(1.0, tokens.shape[1] + 1)[:, None] * self.weight
        return so_far.expand(len(tokens), -1, self.hidden_size)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("context", "batch_tokens"), [(8, 1), (8, 100), (16, 100), (24, 1), (24, 100)])
def test_each_row_is_the_last_state_of_its_own_window(random_timelines, seen_tokens, arch, context, batch_tokens):
    store = random_timelines([0, 3, 12, 20, 45, 1, 23], seed=context)
    subjects, times = draw_rows(store, 25, seed=context)
    rows, passed = embedded(MODELS[arch], Windows(store, context), subjects, times, batch_tokens)
    histories = [seen_tokens(store, s, t) for s, t in zip(subjects, times, strict=True)]
    windows = [window(store, s, seen, context) for s, seen in zip(subjects, histories, strict=True)]
    expected = np.stack([pooled(MODELS[arch], w) for w in windows])
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    # shared: one pass for all histories of a subject that fit, one for each other distinct history
    cost = 0
    for subject in np.unique(subjects):
        lengths = {len(h) for h, s in zip(histories, subjects, strict=True) if s == subject}
        cost += max((1 + n for n in lengths if 1 + n <= context), default=0)
        cost += context * sum(1 + n > context for n in lengths)
    assert passed == cost


@pytest.mark.parametrize("arch", ARCHITECTURES)
@hypothesis_settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 10_000), context=st.integers(6, 24), settings=st.sampled_from(SETTINGS))
def test_nothing_after_the_prediction_time_leaks(random_timelines, arch, data, seed, context, settings):
    """Other tokens, other times, more and fewer events after a time: the same embeddings up to it."""
    timed = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    store = random_timelines(timed, seed)
    cut = data.draw(st.integers(0, 50))
    subjects, times = draw_rows(store, 12, seed)
    rng = np.random.default_rng(seed)
    parts = {"tokens": [], "seconds": []}
    offsets = [0]
    for i in range(len(store)):
        lo, hi = int(store.offsets[i]), int(store.offsets[i + 1])
        n_static = int(store.subjects["n_static"][i])
        kept = n_static + int((store.seconds[lo + n_static : hi] <= cut).sum())
        new = int(rng.integers(0, 20))
        parts["tokens"].append(np.append(store.tokens[lo : lo + kept], rng.integers(7, VOCABULARY, size=new)))
        later = np.sort(rng.integers(cut + 1, 60, size=new)) if cut < 59 else np.zeros(0, dtype=np.int64)
        parts["seconds"].append(np.append(store.seconds[lo : lo + kept], later))
        offsets.append(offsets[-1] + len(parts["tokens"][-1]))
    changed = dataclasses.replace(
        store,
        offsets=np.array(offsets),
        **{name: np.concatenate(arrays).astype(store.seconds.dtype) for name, arrays in parts.items()},
    )
    before, _ = embedded(MODELS[arch], Windows(store, context), subjects, times, 200, settings)
    after, _ = embedded(MODELS[arch], Windows(changed, context), subjects, times, 200, settings)
    early = times < store.subjects["origin"][subjects] + np.timedelta64(cut + 1, "s")
    np.testing.assert_allclose(after[early], before[early], atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_visible_token_that_fits_matters(random_timelines, arch):
    """The opposite of leakage: each token of the window changes the embedding, those before it do not."""
    store = random_timelines([20], seed=3)
    context = 12
    n_static = int(store.subjects["n_static"][0])
    times = store.subjects["origin"][[0]] + np.timedelta64(100, "s")
    before, _ = embedded(MODELS[arch], Windows(store, context), np.array([0]), times, 100)
    for i in range(len(store.tokens)):
        tokens = store.tokens.copy()
        tokens[i] = 7 + (tokens[i] - 6) % (VOCABULARY - 7)
        assert tokens[i] != store.tokens[i]
        altered = dataclasses.replace(store, tokens=tokens)
        after, _ = embedded(MODELS[arch], Windows(altered, context), np.array([0]), times, 100)
        in_window = i < n_static or i >= len(tokens) - (context - 1 - n_static)
        assert np.array_equal(before, after) != in_window, i


def test_passes_read_every_row_once(random_timelines, seen_tokens):
    store = random_timelines([0, 3, 12, 20, 45, 1, 23], seed=2)
    subjects, times = draw_rows(store, 60, seed=2)
    windows = Windows(store, 16)
    passes = plan_passes(windows, subjects, times)
    assert passes.bounds[0] == 0
    assert passes.bounds[-1] == 60 == len(passes.positions)
    assert len(passes.subjects) < 60
    keys = list(zip(passes.subjects, passes.starts, strict=True))
    assert len(set(keys)) == len(keys)
    for i, (subject, start) in enumerate(keys):
        rows = np.arange(passes.bounds[i], passes.bounds[i + 1])
        cut = windows.between(int(subject), int(start), int(passes.visible[i])).tolist()
        assert len(cut) == passes.lengths[i] == passes.positions[rows].max() + 1 <= 16
        for row in rows:
            assert subjects[row] == subject
            history = seen_tokens(store, int(subjects[row]), times[row])
            assert cut[: passes.positions[row] + 1] == window(store, int(subject), history, 16)


def test_no_rows_are_no_passes(random_timelines):
    windows = Windows(random_timelines([3]), 16)
    rows, passed = embedded(MODELS["gpt"], windows, np.zeros(0, np.int64), np.zeros(0, "datetime64[us]"), 100)
    assert (rows.shape, passed) == ((0, 128), 0)


def test_what_is_held_grows_by_a_few_numbers_per_row(random_timelines, tmp_path):
    """10,000 rows of 4 KiB go to disk; of what is held for each, 1,000 windows of up to 200 tokens, next to nothing."""
    store = random_timelines([400] * 50, seed=4)
    subjects, times = draw_rows(store, 10_000, seed=4)
    windows = Windows(store, 200)
    peaks = []
    for n in (100, 10_000):
        out = np.lib.format.open_memmap(tmp_path / f"{n}.npy", mode="w+", dtype=np.float32, shape=(n, 1_024))
        tracemalloc.start()
        embed_rows(Counter(1_024), windows, subjects[:n], times[:n], 400, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        visible = [int(store.visible(int(s), times[i : i + 1])[0]) for i, s in enumerate(subjects[:n])]
        n_static = store.subjects["n_static"][subjects[:n]]
        expected = np.minimum(1 + np.array(visible), 200)
        assert (expected > n_static).all()
        np.testing.assert_array_equal(out, np.broadcast_to(expected[:, None], out.shape))
    assert (peaks[1] - peaks[0]) / 9_900 < 200


def test_prediction_times_are_distinct_and_in_order():
    def frame(*rows: tuple[int, int]) -> pl.DataFrame:
        times = pl.Series([t * 1_000_000 for _, t in rows]).cast(pl.Datetime("us"))
        return pl.DataFrame({"subject_id": [s for s, _ in rows], "prediction_time": times, "boolean_value": True})

    keys = prediction_times({"a": frame((2, 5), (1, 9), (1, 9)), "b": frame((1, 3), (2, 5), (3, 1))})
    found = keys.select("subject_id", pl.col("prediction_time").dt.epoch("s")).rows()
    assert found == [(1, 3), (1, 9), (2, 5), (3, 1)]


@pytest.fixture(scope="module")
def some_labels(cohort, write_labels_folder, tmp_path_factory):
    """Three tasks' labels of 25 subjects, and two labels of a subject that has no timeline."""
    frames = {task: f.filter(pl.col("subject_id") <= 25) for task, f in read_labels(cohort.labels).items()}
    first = next(iter(frames))
    stranger = frames[first].head(2).with_columns(subject_id=pl.lit(10**9, pl.Int64))
    frames[first] = pl.concat([frames[first], stranger])
    return write_labels_folder(tmp_path_factory.mktemp("some") / "labels", frames)


@pytest.fixture(scope="module", params=["gpt", "hyena"])
def model_folder(request, cohort, write_model, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("untrained") / "model", f"{request.param}-tiny-64", cohort.timelines)


def test_embeddings_of_the_cohort(cohort, model_folder, some_labels, seen_tokens, tmp_path):
    out = tmp_path / "embeddings"
    facts = embed(model_folder, cohort.timelines, some_labels, out, threads=1)
    index, rows = read_embeddings(out)
    labels = pl.concat([f.select("subject_id", "prediction_time") for f in read_labels(some_labels).values()])
    wanted = {row for row in labels.rows() if row[0] != 10**9}
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    assert len(index.rows()) == len(wanted)
    assert set(index.rows()) == {(*row, split[row[0]]) for row in wanted}
    assert index.rows() == sorted(index.rows())
    without = {row for row in labels.rows() if row[0] == 10**9}
    assert facts["without_timeline"] == len(without) > 0
    assert facts["rows"] == len(wanted) == len(rows)
    assert rows.dtype == np.float32
    assert facts["context"] == 64
    model, store = load_model(model_folder).eval(), Timelines.open(cohort.timelines)
    place = {int(s): i for i, s in enumerate(store.subjects["subject_id"])}
    lengths = []
    for i in range(0, index.height, 7):
        subject, time, _ = index.row(i)
        seen = seen_tokens(store, place[subject], np.datetime64(time, "us"))
        lengths.append(len(seen))
        expected = pooled(model, window(store, place[subject], seen, 64))
        np.testing.assert_allclose(rows[i], expected, atol=1e-4)
    assert max(lengths) > 64, "histories beyond the window must be among them"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["facts"] == facts
    assert manifest["settings"]["context"] == 64


def test_a_context_beyond_the_positions_is_refused(cohort, write_model, some_labels, tmp_path):
    gpt = write_model(tmp_path / "gpt", "gpt-tiny-64", cohort.timelines)
    with pytest.raises(InputError, match="64 positions"):
        embed(gpt, cohort.timelines, some_labels, tmp_path / "out", context=65, threads=1)
    assert not (tmp_path / "out").exists()
    mamba = write_model(tmp_path / "mamba", "mamba-tiny-64", cohort.timelines)
    facts = embed(mamba, cohort.timelines, some_labels, tmp_path / "out", context=96, threads=1)
    assert facts["context"] == 96


def test_other_timelines_than_the_models_are_refused(cohort, model_folder, some_labels, tmp_path):
    copy = shutil.copytree(cohort.timelines, tmp_path / "timelines")
    embed(model_folder, copy, some_labels, tmp_path / "same", context=16, threads=1)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["tokens.npy"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other timelines"):
        embed(model_folder, copy, some_labels, tmp_path / "other", context=16, threads=1)
    assert not (tmp_path / "other").exists()
