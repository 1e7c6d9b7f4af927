"""Bins, weighted medians and perplexity by position, against counting, sorting and loops over resampled subjects."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from by_hand import expanded
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.robustness import progression as module
from ehrctx.robustness.progression import (
    KIND,
    KINDS,
    SCHEMA,
    bootstrap_medians,
    perplexity_by_position,
    perplexity_table,
    position_bins,
    read_token_losses,
)
from ehrctx.study import Perplexity, Statistics

STATISTICS = Statistics(replicates=60, level=0.8, seed=3)
ANY_BIN = Perplexity(minimum_tokens=1, minimum_subjects=1, bins_per_octave=1)


@pytest.mark.parametrize("per_octave", [1, 2, 4])
@hypothesis_settings(max_examples=60)
@given(longest=st.integers(1, 200_000))
def test_bins_cover_every_position_once(per_octave, longest):
    edges = position_bins(longest, per_octave)
    assert edges.dtype == np.int64
    assert edges[0] == 1
    assert (np.diff(edges) >= 1).all()
    assert edges[-2] <= longest < edges[-1], "the last bin holds the longest timeline's end"
    allowed = {round(2 ** (i / per_octave)) for i in range(20 * per_octave)}
    assert set(edges.tolist()) <= allowed
    assert {e for e in allowed if e <= longest} <= set(edges.tolist()), "no edge is left out"


def test_bins_of_one_two_and_four_to_the_octave():
    assert position_bins(20, 1).tolist() == [1, 2, 4, 8, 16, 32]
    assert position_bins(16, 1).tolist() == [1, 2, 4, 8, 16, 32]
    assert position_bins(15, 1).tolist() == [1, 2, 4, 8, 16]
    assert position_bins(20, 2).tolist() == [1, 2, 3, 4, 6, 8, 11, 16, 23]
    assert position_bins(12, 4).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13]
    assert position_bins(1, 2).tolist()[:2] == [1, 2]


def median_of_repeated(values: list[float], weights: list[int]) -> float:
    """Each value as often as its weight says, sorted, the lower of the two in the middle."""
    repeated = sorted(v for v, w in zip(values, weights, strict=True) for _ in range(w))
    return repeated[(len(repeated) - 1) // 2] if repeated else np.nan


@hypothesis_settings(max_examples=150)
@given(data=st.data(), n=st.integers(1, 25), replicates=st.integers(1, 5), cells=st.sampled_from([1, 30, 8_000_000]))
def test_bootstrap_medians_are_lower_medians_of_repeated_values(data, n, replicates, cells):
    number = st.sampled_from([1.0, 2.0, 2.5]) | st.floats(0, 1e6)  # ties among them
    values = data.draw(st.lists(number, min_size=n, max_size=n))
    subject = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    draws = data.draw(
        st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=replicates, max_size=replicates)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CELLS", cells)
        found = bootstrap_medians(np.array(values), np.array(subject), np.array(draws))
    expected = [median_of_repeated(values, [row[s] for s in subject]) for row in draws]
    np.testing.assert_array_equal(found, expected)


def test_bootstrap_medians_at_exact_halves():
    values, draws = np.array([3.0, 1.0, 2.0]), np.array([[1, 1, 0], [1, 1, 2], [2, 1, 1], [0, 0, 0], [4, 2, 2]])
    np.testing.assert_array_equal(bootstrap_medians(values, np.arange(3), draws), [1.0, 2.0, 2.0, np.nan, 2.0])


def test_small_types_of_draws_do_not_overflow():
    """Draws are small numbers, but their sums are not."""
    values = np.arange(1_000.0)
    draws = np.full((2, 10), 200, dtype=np.uint8)
    assert bootstrap_medians(values, np.arange(1_000) % 10, draws).tolist() == [499.0, 499.0]


def losses_frame(subjects: int = 15, seed: int = 0, longest: int = 70) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for subject in rng.permutation(np.arange(500, 500 + subjects)).tolist():
        n = int(rng.integers(1, longest))
        parts.append(
            pl.DataFrame(
                {
                    "subject_id": [subject] * n,
                    "position": np.arange(1, n + 1),
                    "repeat": rng.random(n) < 0.6,
                    # rounded: ties; subjects differ, so that resampling them matters
                    "loss": (rng.exponential(2.0, n) + subject % 3).round(1).astype(np.float32),
                }
            )
        )
    return pl.concat(parts)


@pytest.mark.parametrize("per_octave", [1, 2])
def test_rows_against_a_loop_over_resampled_subjects(per_octave):
    losses = losses_frame()
    settings = ANY_BIN.model_copy(update={"bins_per_octave": per_octave})
    table = perplexity_by_position(losses, settings, STATISTICS)
    ids = sorted(set(losses["subject_id"]))
    draws = np.random.default_rng(3).multinomial(len(ids), [1 / len(ids)] * len(ids), size=60)
    edges = position_bins(losses["position"].max(), per_octave)
    expected = []
    for low, high in itertools.pairwise(edges.tolist()):
        for kind in KINDS:
            rows = [
                (s, float(np.exp(np.float64(np.float32(loss)))))
                for s, position, repeat, loss in losses.rows()
                if low <= position < high and (kind == "all" or repeat == (kind == "repeat"))
            ]
            if not rows:
                continue
            medians = []
            for times in draws:
                weights = [int(times[ids.index(s)]) for s, _ in rows]
                medians.append(median_of_repeated([p for _, p in rows], weights))
            defined = [m for m in medians if not np.isnan(m)]
            n = len({s for s, _ in rows})
            limits = (np.nan, np.nan) if len(defined) < 30 or n < 2 else expanded(defined, 0.8, n)
            median = float(np.median([p for _, p in rows]))
            expected.append((low, high - 1, kind, median, *limits, len(rows), n))
    assert table.columns == [c for c in SCHEMA if c != "model"]
    assert table.height == len(expected) > 10
    for found, wanted in zip(table.rows(), expected, strict=True):
        assert found[:3] == wanted[:3]
        assert found[3:] == pytest.approx(wanted[3:], nan_ok=True)
    assert table.filter(pl.col("kind") == "all")["n"].sum() == losses.height


def test_first_and_repeated_tokens_make_up_all():
    table = perplexity_by_position(losses_frame(), ANY_BIN, STATISTICS)
    for _, part in table.group_by("position_from"):
        n = dict(part.select("kind", "n").rows())
        assert n["all"] == n.get("first", 0) + n.get("repeat", 0)


@pytest.mark.parametrize(("minimum_tokens", "minimum_subjects"), [(1, 1), (30, 1), (1, 10), (50, 12), (10_000, 1)])
def test_bins_of_few_tokens_or_subjects_are_left_out(minimum_tokens, minimum_subjects):
    losses = losses_frame()
    everything = perplexity_by_position(losses, ANY_BIN, STATISTICS)
    few = Perplexity(minimum_tokens=minimum_tokens, minimum_subjects=minimum_subjects, bins_per_octave=1)
    found = perplexity_by_position(losses, few, STATISTICS)
    kept = everything.filter((pl.col("n") >= minimum_tokens) & (pl.col("n_subjects") >= minimum_subjects))
    assert found.equals(kept, null_equal=True)
    assert found.schema == everything.schema


def test_the_order_of_rows_does_not_matter():
    losses = losses_frame()
    shuffled = losses.sample(fraction=1, shuffle=True, seed=1)
    args = (ANY_BIN, STATISTICS)
    assert perplexity_by_position(losses, *args).equals(perplexity_by_position(shuffled, *args))


def test_the_seed_decides_the_interval_alone():
    losses = losses_frame()
    other = STATISTICS.model_copy(update={"seed": 4})
    first, again = (perplexity_by_position(losses, ANY_BIN, STATISTICS) for _ in range(2))
    changed = perplexity_by_position(losses, ANY_BIN, other)
    assert first.equals(again)
    limits = ["lower", "upper"]
    assert changed.drop(limits).equals(first.drop(limits))
    assert not changed.select(limits).equals(first.select(limits))


def test_a_planted_rise_is_found():
    """Perplexity 2 + log2 of the position's bin where a token is new, 1.5 where it repeats one."""
    rng = np.random.default_rng(0)
    position = np.tile(np.arange(1, 256), 40)
    repeat = rng.random(len(position)) < 0.5
    truth = np.where(repeat, 1.5, 2.0 + np.floor(np.log2(position)))
    noise = np.exp(0.3 * rng.standard_normal(len(position)))
    losses = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(40), 255),
            "position": position,
            "repeat": repeat,
            "loss": np.log(truth * noise).astype(np.float32),
        }
    )
    table = perplexity_by_position(losses, Perplexity(bins_per_octave=1), STATISTICS)
    first, repeated = (table.filter(pl.col("kind") == kind) for kind in ("first", "repeat"))
    assert first["position_from"].to_list() == repeated["position_from"].to_list()[-first.height :]
    for low, _, _, median, lower, upper, *_ in first.filter(pl.col("position_from") >= 8).iter_rows():
        assert median == pytest.approx(2 + np.log2(low), rel=0.1)
        assert lower <= median <= upper
        assert upper - lower < 1
    assert first["median"].is_sorted()
    assert repeated.filter(pl.col("position_from") >= 8)["median"].to_list() == pytest.approx([1.5] * 5, rel=0.1)


def test_intervals_resample_subjects_and_not_tokens():
    """Two kinds of subjects, each of one loss throughout: however many tokens, the median stays unsure."""
    losses = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(10), 500),
            "position": np.tile(np.arange(500) % 2 + 2, 10),
            "repeat": False,
            "loss": np.repeat(np.where(np.arange(10) < 5, 0.0, 1.0), 500).astype(np.float32),
        }
    )
    table = perplexity_by_position(losses, ANY_BIN, STATISTICS)
    (row,) = table.filter(pl.col("kind") == "all").rows(named=True)
    assert (row["lower"], row["upper"]) == pytest.approx((1.0, np.e))
    assert (row["n"], row["n_subjects"]) == (5_000, 10)


def test_no_losses_give_no_rows():
    schema = {"subject_id": pl.Int64, "position": pl.Int64, "repeat": pl.Boolean, "loss": pl.Float32}
    table = perplexity_by_position(pl.DataFrame(schema=schema), ANY_BIN, STATISTICS)
    assert table.height == 0
    assert table.columns == [c for c in SCHEMA if c != "model"]


def test_the_table_holds_all_models(tmp_path):
    frames = {"gpt-tiny-16": losses_frame(seed=0), "hyena-tiny-16": losses_frame(seed=1)}
    for model, frame in frames.items():
        with new_artifact(tmp_path / model, KIND, {"model": model}, {}, {"window": 16}) as partial:
            frame.write_parquet(partial / "losses.parquet")
    model, facts, losses = read_token_losses(tmp_path / "gpt-tiny-16")
    assert (model, facts) == ("gpt-tiny-16", {"window": 16})
    assert losses.equals(frames["gpt-tiny-16"])
    table = perplexity_table([tmp_path / m for m in frames], ANY_BIN, STATISTICS)
    assert dict(table.schema) == SCHEMA
    assert table["model"].unique(maintain_order=True).to_list() == list(frames)
    for model, frame in frames.items():
        expected = perplexity_by_position(frame, ANY_BIN, STATISTICS)
        assert table.filter(pl.col("model") == model).drop("model").equals(expected, null_equal=True)


def test_no_models_give_an_empty_table():
    table = perplexity_table([], ANY_BIN, STATISTICS)
    assert dict(table.schema) == SCHEMA
    assert table.height == 0


def test_another_kind_of_folder_is_refused(tmp_path):
    with new_artifact(tmp_path / "other", "predictions", {}, {}) as partial:
        (partial / "x").touch()
    with pytest.raises(InputError, match="'token losses' is expected"):
        read_token_losses(tmp_path / "other")
