"""What a head may not learn from: held-out rows change nothing that is fitted, tuning rows nothing but the choice."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from ehrctx.probe.few_shot import draw_shots
from ehrctx.probe.heads import LINEAR, fit_head
from ehrctx.probe.predict import LINEAR_ALONE, _task_predictions
from ehrctx.study import FewShot, Probe

T = datetime(2020, 1, 1)
GRID = (1e-3, 0.1, 10.0)
PROBE = Probe(regularization=GRID, few_shot=FewShot(k=(1, 3), replicates=2))
SIZES = {"train": 24, "tuning": 16, "held_out": 12}
seeds = st.integers(0, 10_000)


def task(seed: int) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Labels, the index of their features, and the features: float32[n, 5], of different scales."""
    rng = np.random.default_rng(seed)
    splits = np.repeat(list(SIZES), list(SIZES.values()))
    keys = {"subject_id": np.arange(len(splits)) // 2, "prediction_time": [T + timedelta(hours=i) for i in range(52)]}
    x = (rng.standard_normal((len(splits), 5)) * np.logspace(-2, 3, 5)).astype(np.float32)
    y = x[:, 2] / 3 + rng.standard_normal(len(splits)) > 0
    for first in (0, 24, 40):  # both classes in every split
        y[first : first + 6] = [True, False] * 3
    return pl.DataFrame(keys | {"boolean_value": y}), pl.DataFrame(keys | {"split": splits}), x


def probed(labels, index, x, make=np.asarray):
    predictions, fitted, facts = _task_predictions("t", "m", labels, index, make(x), LINEAR_ALONE, PROBE, None)
    return predictions, fitted, facts


@hypothesis_settings(max_examples=8)
@given(seeds, seeds, st.sampled_from([np.asarray, csr_matrix]))
def test_held_out_rows_change_neither_heads_nor_draws(seed, other, make):
    """Half of the held-out rows get other features, a thousand times as large, and other labels."""
    labels, index, x = task(seed)
    altered = np.arange(46, 52)
    changed_x, changed_y = x.copy(), labels["boolean_value"].to_numpy().copy()
    changed_x[altered] = 1_000 * np.random.default_rng(other).standard_normal((6, 5))
    changed_y[altered] ^= np.random.default_rng(other).random(6) < 0.7
    before = probed(labels, index, x, make)
    after = probed(labels.with_columns(boolean_value=pl.Series(changed_y)), index, changed_x, make)
    assert after[1].equals(before[1])  # what each head chose, and by which AUROC
    assert after[2] == before[2]  # how many labels the draws had
    same = ~pl.col("subject_id").is_in(labels["subject_id"].to_numpy()[altered].tolist())
    assert before[0].filter(same).height == (16 + 6) + 4 * 6
    assert after[0].filter(same).equals(before[0].filter(same))


@hypothesis_settings(max_examples=25)
@given(seeds, seeds, st.sampled_from([np.asarray, csr_matrix]))
def test_tuning_rows_change_neither_the_scaler_nor_the_weights_of_a_candidate(seed, other, make):
    labels, _, x = task(seed)
    y = labels["boolean_value"].to_numpy()
    rng = np.random.default_rng(other)
    x_other, y_other = 1_000 * rng.standard_normal((9, 5)).astype(np.float32), np.arange(9) % 2 == 0
    for settings in (PROBE, *(Probe(regularization=(c,)) for c in GRID)):
        fits = [
            fit_head(LINEAR, make(x[:24]), y[:24], make(tuning), y_tuning, settings)
            for tuning, y_tuning in ((x[24:40], y[24:40]), (x_other, y_other))
        ]
        scales, weights = zip(*((fit.classifier[0].scale_, fit.classifier[1]) for fit in fits), strict=True)
        np.testing.assert_array_equal(scales[0], np.abs(x[:24]).max(axis=0))
        np.testing.assert_array_equal(scales[1], scales[0])
        if fits[0].chosen == fits[1].chosen:
            np.testing.assert_array_equal(weights[0].coef_, weights[1].coef_)
            np.testing.assert_array_equal(weights[0].intercept_, weights[1].intercept_)
        else:
            assert settings is PROBE


@hypothesis_settings(max_examples=15)
@given(seeds, seeds)
def test_tuning_rows_only_choose(seed, other):
    """Where another tuning split chooses the same C, whatever is predicted for held-out labels is the same."""
    labels, index, x = task(seed)
    changed = x.copy()
    changed[24:40] = 1_000 * np.random.default_rng(other).standard_normal((16, 5))
    before, after = probed(labels, index, x), probed(labels, index, changed)
    draw = ["k", "replicate"]
    chosen = before[1].select(*draw, "chosen").join(after[1].select(*draw, now="chosen"), on=draw)
    assert chosen.height == 5
    held_out = pl.col("split") == "held_out"
    for k, replicate, was, now in chosen.iter_rows():
        assert json.loads(was)["C"] in GRID
        of = held_out & (pl.col("k") == k) & (pl.col("replicate") == replicate)
        assert was != now or after[0].filter(of).equals(before[0].filter(of))


@hypothesis_settings(max_examples=15)
@given(seeds, seeds)
def test_train_labels_outside_a_draw_do_not_matter_to_it(seed, other):
    """The head of a draw, its scaler included, knows the features of its own k rows of each class alone."""
    labels, index, x = task(seed)
    y = labels["boolean_value"].to_numpy()
    frames = {
        s: labels.filter(pl.Series(index["split"] == s)).rename({"boolean_value": "y"}) for s in ("train", "tuning")
    }
    shots, _ = draw_shots("t", frames, PROBE.few_shot)
    largest = next(shot for shot in shots if shot.k == "3" and shot.replicate == 0)
    outside = np.setdiff1d(np.arange(24), largest.train)
    assert len(outside) >= 24 - 6
    assert sorted(y[largest.train]) == [False] * 3 + [True] * 3
    changed = x.copy()
    changed[outside] = 1_000 * np.random.default_rng(other).standard_normal((len(outside), 5))
    before, after = probed(labels, index, x), probed(labels, index, changed)
    of = (pl.col("replicate") == 0) & pl.col("k").is_in(["1", "3"])
    assert before[0].filter(of).height == 2 * 12
    assert after[0].filter(of).equals(before[0].filter(of))
    assert after[1].filter(of).equals(before[1].filter(of))
