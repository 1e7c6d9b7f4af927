"""The learning rate against the closed form of a linear warm-up and a linear decay."""

from __future__ import annotations

import inspect
import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.pretrain.schedule import learning_rate
from ehrctx.study import Pretraining

PLAN = Pretraining(tokens=10_000, learning_rate=1e-3, final_learning_rate=1e-4, warmup_share=0.1)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (500, 0.5e-3),
        (1_000, 1e-3),
        (3_250, 1e-3 - 0.25 * 9e-4),
        (5_500, 0.55e-3),
        (10_000, 1e-4),
        (10_001, 1e-4),
        (50_000, 1e-4),
    ],
)
def test_closed_form(tokens, expected):
    assert learning_rate(tokens, PLAN) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_without_warm_up_it_starts_at_the_top():
    plan = PLAN.model_copy(update={"warmup_share": 0.0})
    assert learning_rate(0, plan) == pytest.approx(1e-3)
    assert learning_rate(5_000, plan) == pytest.approx(0.55e-3)


PLANS = st.builds(
    Pretraining,
    tokens=st.integers(1, 10**9),
    learning_rate=st.floats(1e-6, 1.0),
    final_learning_rate=st.just(0.0),
    warmup_share=st.floats(0, 0.9),
)


@hypothesis_settings(max_examples=100)
@given(plan=PLANS, shares=st.lists(st.floats(0, 1.5), min_size=2, max_size=8))
def test_it_rises_then_falls_between_zero_and_the_top(plan, shares):
    shares = sorted(shares)
    rates = [learning_rate(share * plan.tokens, plan) for share in shares]
    top = plan.learning_rate
    assert all(0 <= rate <= top * (1 + 1e-9) for rate in rates)
    for (a, rate_a), (b, rate_b) in itertools.pairwise(zip(shares, rates, strict=True)):
        if b < plan.warmup_share:
            assert rate_b >= rate_a - 1e-12 * top
        if a > plan.warmup_share:
            assert rate_b <= rate_a + 1e-12 * top


@hypothesis_settings(max_examples=50)
@given(share=st.floats(0, 1.2), factor=st.integers(2, 1000))
def test_it_depends_on_the_share_of_the_budget_alone(share, factor):
    larger = PLAN.model_copy(update={"tokens": PLAN.tokens * factor})
    assert learning_rate(share * larger.tokens, larger) == pytest.approx(
        learning_rate(share * PLAN.tokens, PLAN), abs=1e-15
    )


def test_neither_context_length_nor_batch_size_enters():
    assert list(inspect.signature(learning_rate).parameters) == ["tokens_seen", "settings"]
    other = PLAN.model_copy(update={"tokens_per_step": 7, "batch_tokens": 13, "seed": 5})
    assert [learning_rate(t, other) for t in range(0, 12_000, 700)] == [
        learning_rate(t, PLAN) for t in range(0, 12_000, 700)
    ]
