"""Pooling by the mean, and windows on a grid: against one pass over each row's own window, pooled in float64."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from embed_by_hand import MODELS, draw_rows, embedded, pooled, window
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.probe.embed import embed, plan_passes, running_means
from ehrctx.probe.embeddings import read_embeddings
from ehrctx.study import ARCHITECTURES, Embedding
from ehrctx.tasks.label_sets import read_labels
from ehrctx.timelines.spec import BOS
from ehrctx.timelines.windows import Windows

MEAN = Embedding(pooling="mean")


@pytest.mark.parametrize("windows", ["exact", "grid"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("context", "batch_tokens"), [(8, 1), (16, 100), (24, 1), (24, 100)])
def test_each_row_is_the_mean_over_its_own_window(random_timelines, seen_tokens, arch, context, batch_tokens, windows):
    store = random_timelines([0, 3, 12, 20, 45, 1, 23], seed=context)
    subjects, times = draw_rows(store, 25, seed=context)
    settings = Embedding(pooling="mean", windows=windows)
    rows, _ = embedded(MODELS[arch], Windows(store, context), subjects, times, batch_tokens, settings)
    cut = [window(store, s, seen_tokens(store, s, t), context, windows) for s, t in zip(subjects, times, strict=True)]
    expected = np.stack([pooled(MODELS[arch], w, "mean") for w in cut])
    np.testing.assert_allclose(rows, expected, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_mean_of_an_empty_history_is_the_state_of_bos(random_timelines, arch):
    store = next(s for s in (random_timelines([0, 5], seed) for seed in range(99)) if s.subjects["n_static"][0] == 0)
    times = store.subjects["origin"] + np.timedelta64(100, "s")
    rows, _ = embedded(MODELS[arch], Windows(store, 16), np.array([0, 1]), times, 100, MEAN)
    np.testing.assert_allclose(rows[0], pooled(MODELS[arch], [BOS]), atol=1e-5)


@pytest.mark.parametrize("positions", [[16_383], [0, 0, 9, 5, 16_383, 7_000], list(range(0, 16_384, 37)), [3]])
def test_means_over_16k_positions_keep_their_digits(positions):
    """Around 3, where sums reach 50,000 and float32 has steps of .004 there."""
    states = torch.randn(16_384, 8, generator=torch.Generator().manual_seed(0)) + 3
    expected = np.stack([states[: p + 1].double().numpy().mean(0) for p in positions])
    found = running_means(states, torch.tensor(positions))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@hypothesis_settings(max_examples=20)
@given(
    timed=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    context=st.integers(6, 24),
    pooling=st.sampled_from(["last", "mean"]),
    batch_tokens=st.sampled_from([1, 60, 1_000]),
)
def test_a_row_on_the_grid_is_that_of_its_window_alone(
    random_timelines, seen_tokens, arch, timed, seed, context, pooling, batch_tokens
):
    """And that window holds visible tokens alone, the most recent, at least three quarters of the room of them."""
    store = random_timelines(timed, seed)
    subjects, times = draw_rows(store, 12, seed)
    windows = Windows(store, context)
    settings = Embedding(pooling=pooling, windows="grid")
    rows, _ = embedded(MODELS[arch], windows, subjects, times, batch_tokens, settings)
    passes = plan_passes(windows, subjects, times, on_grid=True)
    for i in range(len(passes.subjects)):
        cut = windows.between(*(int(a[i]) for a in (passes.subjects, passes.starts, passes.visible))).tolist()
        for row in range(passes.bounds[i], passes.bounds[i + 1]):
            seen = seen_tokens(store, int(subjects[row]), times[row])
            n_static = int(store.subjects["n_static"][subjects[row]])
            room, n_timed = context - 1 - n_static, len(seen) - n_static
            own = cut[: passes.positions[row] + 1]
            kept = len(own) - 1 - n_static
            assert own == [BOS, *seen[:n_static], *seen[n_static:][n_timed - kept :]]
            assert min(n_timed, 0.75 * room) <= kept <= room
            np.testing.assert_allclose(rows[row], pooled(MODELS[arch], own, pooling), atol=1e-4)


def test_neighbours_on_the_grid_share_a_pass(random_timelines):
    """A row at each of 400 tokens, room for 20 and 5 static or fewer: one pass for 5 rows, not one for each."""
    store = random_timelines([400], seed=5)
    context = 21 + int(store.subjects["n_static"][0])
    windows = Windows(store, context)
    times = np.unique(store.subjects["origin"][0] + store.seconds.astype("timedelta64[s]") + np.timedelta64(1, "s"))
    subjects = np.zeros(len(times), dtype=np.int64)
    exact, grid = (plan_passes(windows, subjects, times, on_grid) for on_grid in (False, True))
    assert len(exact.subjects) > len(grid.subjects)
    assert (grid.starts % 5 == 0).all()
    assert len(set(grid.starts)) == len(grid.starts)
    assert grid.lengths.max() <= context


def test_the_settings_are_written_down_and_read(cohort, write_model, write_labels_folder, tmp_path):
    model = write_model(tmp_path / "model", "mamba-tiny-64", cohort.timelines)
    frames = {task: f.filter(pl.col("subject_id") <= 10) for task, f in read_labels(cohort.labels).items()}
    labels = write_labels_folder(tmp_path / "labels", frames)
    found, passed = {}, {}
    for name, settings in {"default": Embedding(), "mean": MEAN, "grid": Embedding(windows="grid")}.items():
        facts = embed(model, cohort.timelines, labels, tmp_path / name, threads=1, settings=settings)
        found[name], passed[name] = read_embeddings(tmp_path / name)[1], facts["tokens_passed"]
        written = json.loads((tmp_path / name / "manifest.json").read_text())["settings"]
        assert {k: written[k] for k in ("pooling", "windows")} == settings.model_dump()
    assert passed["grid"] < passed["default"] == passed["mean"]
    assert not np.allclose(found["mean"], found["default"], atol=1e-2)
    assert np.isfinite(np.stack(list(found.values()))).all()
