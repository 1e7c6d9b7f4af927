"""Leaps of the loss, told from noise and from a training's ordinary course, and traced to their batch."""

from __future__ import annotations

import numpy as np
import pytest

from ehrctx.pretrain.guard import FEWEST, LEVEL, is_spike, remember, suspect


def leaps(losses) -> list[int]:
    recent: list[float] = []
    found = []
    for step, loss in enumerate(losses):
        if is_spike(loss, recent):
            found.append(step)
        recent = remember(loss, recent)
    return found


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.5])
def test_a_training_that_only_falls_and_trembles_has_no_leap(noise):
    steps = np.arange(20_000)
    course = 2 + 6 * np.exp(-steps / 300)
    assert leaps(course + noise * np.random.default_rng(0).normal(size=len(steps))) == []


@pytest.mark.parametrize("at", [FEWEST, 100, 999])
def test_a_planted_leap_is_found_and_nothing_else(at):
    losses = 3 + 0.05 * np.random.default_rng(1).normal(size=1_000)
    losses[at] += 1.5
    assert leaps(losses) == [at]


def test_a_loss_that_stays_high_becomes_the_measure():
    losses = np.concatenate([np.full(100, 2.0), np.full(200, 4.0)])
    found = leaps(losses)
    assert found[0] == 100
    assert found[-1] < 100 + LEVEL


def test_too_few_steps_tell_nothing():
    assert leaps([1.0] * (FEWEST - 1) + [100.0]) == []


def test_the_suspect_is_the_batch_of_the_highest_mean_loss_or_of_one_that_is_not_finite():
    batches = [
        (np.zeros((3, 10), dtype=np.int64), np.array([10, 9, 8])),
        (np.zeros((1, 2_000), dtype=np.int64), np.array([2_000])),
        (np.zeros((2, 5), dtype=np.int64), np.array([5, 5])),
    ]
    assert suspect(batches, np.array([24 * 3.0, 1_999 * 2.0, 8 * 2.0])).startswith(
        "batch 1 of 3 (3 window(s) of up to 10"
    )
    assert suspect(batches, np.array([24 * 3.0, np.nan, 8 * 9.0])) == "batch 2 of 3 (1 window(s) of up to 2,000 tokens)"
    assert suspect(batches, np.array([24 * 3.0, 1.0, np.inf])).startswith("batch 3 of 3")
