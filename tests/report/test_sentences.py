"""Sentences from tables whose conclusions are known: the verdict follows the paired interval, and nothing else."""

from __future__ import annotations

import polars as pl
import pytest
from planted import HEADS, NAN, curves_of, difference, grid, models_of, position, quarters, score

from ehrctx.probe.suppression import COUNTS
from ehrctx.report.sentences import (
    FEW_POSITIVES,
    against_baseline,
    best_sentence,
    context_sentence,
    difference_sentence,
    excludes_zero,
    few_positives,
    lead_sentence,
    loss_sentence,
    perplexity_sentence,
    quartile_sentence,
    repeats_sentence,
    signed,
    strongest_baseline,
)

TWO = grid(["gpt"], [64, 512])
HELPS, HURTS, OPEN = (0.01, 0.2), (-0.2, -0.01), (-0.1, 0.2)


def longer(arch: str, interval: tuple[float, float], task: str = "t", **more) -> dict:
    return difference(task, f"{arch}-tiny-512", f"{arch}-tiny-64", *interval, **more)


def test_numbers_carry_a_true_sign():
    assert (signed(0.1234), signed(-0.1234), signed(0.0)) == ("+0.123", "−0.123", "+0.000")


@pytest.mark.parametrize(
    ("n", "few"),
    [
        ("0", True),
        ("1", True),
        ("19", True),
        ("20", False),
        ("400", False),
        ("<10", True),
        (19, True),
        (">=10", True),
        (">=20", False),
    ],
)
def test_a_masked_or_small_count_is_few(n, few):
    assert FEW_POSITIVES == 20
    assert few_positives(n) is few


@pytest.mark.parametrize(
    ("lower", "upper", "excluded"),
    [
        (0.1, 0.2, True),
        (-0.2, -0.1, True),
        (-0.1, 0.1, False),
        (0.0, 0.1, False),
        (-0.1, 0.0, False),
        (NAN, NAN, False),
    ],
)
def test_zero_is_excluded_only_by_an_interval_beside_it(lower, upper, excluded):
    assert excludes_zero({"lower": lower, "upper": upper}) is excluded


# --- what a longer context does ---


def test_a_longer_context_helps():
    said = context_sentence(pl.DataFrame([longer("gpt", HELPS)]), TWO, "t")
    assert said == "a longer context helps GPT (512 against 64 tokens: +0.105, interval +0.010 to +0.200)"


def test_a_longer_context_hurts():
    said = context_sentence(pl.DataFrame([longer("gpt", HURTS)]), TWO, "t")
    assert said == "a longer context hurts GPT (512 against 64 tokens: −0.105, interval −0.200 to −0.010)"


@pytest.mark.parametrize("interval", [OPEN, (NAN, NAN), (0.0, 0.1)])
def test_no_difference_is_told_from_an_interval_that_holds_zero_or_is_not_there(interval):
    said = context_sentence(pl.DataFrame([longer("gpt", interval, value=0.05)]), TWO, "t")
    assert said == "no difference by context can be told for GPT"


def test_thousands_are_set_apart():
    models = grid(["mamba"], [1_024, 16_384])
    rows = pl.DataFrame([difference("t", "mamba-tiny-16384", "mamba-tiny-1024", *HELPS)])
    assert "(16,384 against 1,024 tokens:" in context_sentence(rows, models, "t")


@pytest.mark.parametrize("n_positive", ["0", "4", "19", "<10"])
@pytest.mark.parametrize("interval", [HELPS, HURTS])
def test_no_verdict_by_context_on_few_positives(interval, n_positive):
    said = context_sentence(pl.DataFrame([longer("gpt", interval, n_positive_subjects=n_positive)]), TWO, "t")
    assert said == f"too few positive subjects ({n_positive}) to judge context lengths"


def test_architectures_are_grouped_by_verdict():
    models = grid(["hyena", "mamba", "llama", "gpt"], [64, 512])
    rows = pl.DataFrame(
        [longer("gpt", HELPS), longer("llama", HURTS), longer("mamba", HELPS), longer("hyena", OPEN)]
    ).sample(fraction=1, shuffle=True, seed=3)
    helps, hurts, undecided = context_sentence(rows, models, "t").split("; ")
    assert helps.startswith("a longer context helps GPT (")
    assert ") and Mamba (" in helps
    assert hurts.startswith("a longer context hurts Llama (512 against 64 tokens: −0.105")
    assert undecided == "no difference by context can be told for Hyena"


def test_three_of_a_verdict_are_listed():
    models = grid(["gpt", "llama", "mamba", "hyena"], [64, 512])
    rows = pl.DataFrame([longer(arch, OPEN) for arch in ("gpt", "llama", "mamba", "hyena")])
    said = context_sentence(rows, models, "t")
    assert said == "no difference by context can be told for GPT, Llama, Mamba and Hyena"


def test_an_architecture_with_one_context_length_is_not_judged():
    models = pl.concat([TWO, grid(["mamba"], [64])])
    rows = pl.DataFrame([longer("gpt", HELPS), difference("t", "mamba-tiny-64", "gpt-tiny-64", *HURTS)])
    said = context_sentence(rows, models, "t")
    assert "GPT" in said
    assert "Mamba" not in said
    assert context_sentence(rows, grid(["gpt", "mamba"], [64]), "t") is None


def test_only_the_longest_is_held_against_the_shortest():
    models = grid(["gpt"], [64, 512, 128])  # in any order
    rows = pl.DataFrame(
        [
            difference("t", "gpt-tiny-64", "gpt-tiny-512", *HURTS),
            difference("t", "gpt-tiny-128", "gpt-tiny-64", *HURTS),
            difference("t", "gpt-tiny-512", "gpt-tiny-128", *HURTS),
            longer("gpt", HELPS),
        ]
    )
    said = context_sentence(rows, models, "t")
    assert said.startswith("a longer context helps GPT (512 against 64")
    assert "hurts" not in said


def test_the_verdict_is_of_the_task_and_of_the_score_asked_for():
    rows = pl.DataFrame([longer("gpt", HELPS), longer("gpt", HURTS, "u"), longer("gpt", HURTS, score="auprc")])
    assert "helps" in context_sentence(rows, TWO, "t")
    assert "hurts" in context_sentence(rows, TWO, "u")
    assert "hurts" in context_sentence(rows, TWO, "t", "auprc")
    assert context_sentence(rows, TWO, "another task") is None
    assert context_sentence(rows.clear(), TWO, "t") is None


@pytest.mark.parametrize(("interval", "verdict"), [((-0.02, -0.01), "helps"), ((0.01, 0.02), "hurts")])
def test_a_brier_score_that_falls_is_a_help(interval, verdict):
    """For Brier, less is better: a longer context whose Brier score is surely lower helps."""
    said = context_sentence(pl.DataFrame([longer("gpt", interval, score="brier")]), TWO, "t", "brier")
    assert said.startswith(f"a longer context {verdict} GPT")


def test_seeds_are_compared_with_their_own_seed():
    """Both seeds agree with themselves that the context helps; one seed against the other would say the opposite."""
    models = models_of("gpt-tiny-64", "gpt-tiny-64-s1", "gpt-tiny-512", "gpt-tiny-512-s1")
    rows = [
        difference("t", long, short, *(HELPS if long.endswith("s1") == short.endswith("s1") else HURTS))
        for long in ("gpt-tiny-512", "gpt-tiny-512-s1")
        for short in ("gpt-tiny-64", "gpt-tiny-64-s1")
    ]
    said = context_sentence(pl.DataFrame(rows), models, "t")
    assert said.startswith("a longer context helps GPT (512 against 64")


def test_sizes_are_compared_with_their_own_size():
    """A small model with a long context against a tiny one with a short: that would be a comparison of sizes."""
    apart = models_of("gpt-tiny-64", "gpt-small-512")
    assert context_sentence(pl.DataFrame([difference("t", "gpt-small-512", "gpt-tiny-64", *HELPS)]), apart, "t") is None
    both = models_of("gpt-tiny-64", "gpt-tiny-512", "gpt-small-64", "gpt-small-512")
    rows = [
        difference("t", f"gpt-{long}-512", f"gpt-{short}-64", *{"tiny": HURTS, "small": HELPS}[long])
        for long in ("tiny", "small")
        for short in ("tiny", "small")
    ]
    helps, hurts = context_sentence(pl.DataFrame(rows), both, "t").split("; ")
    assert helps.startswith("a longer context helps GPT small (")
    assert hurts.startswith("a longer context hurts GPT tiny (")


def test_a_seed_that_has_one_context_alone_is_not_held_against_another():
    models = models_of("gpt-tiny-64", "gpt-tiny-64-s1", "gpt-tiny-512-s1")
    rows = [
        difference("t", "gpt-tiny-512-s1", "gpt-tiny-64", *HELPS),
        difference("t", "gpt-tiny-512-s1", "gpt-tiny-64-s1", *HURTS),
    ]
    assert "hurts GPT" in context_sentence(pl.DataFrame(rows), models, "t")


# --- the best model, against the strongest head on counts ---


def scored(n_positive: str = "40", **changes: float) -> pl.DataFrame:
    """Two models; random forest is the strongest head."""
    values = {
        "gpt-tiny-64": 0.7, "gpt-tiny-512": 0.8,
        "counts/logistic_regression": 0.65, "counts/random_forest": 0.75, "counts/lightgbm": 0.6,
    } | changes  # fmt: skip
    rows = [score("t", model, value, n_positive_subjects=n_positive) for model, value in values.items()]
    return pl.DataFrame([*rows, score("t", "counts/lightgbm", 0.99, score="auprc"), score("u", "counts/lightgbm", 0.9)])


def against(**intervals: tuple[float, float]) -> pl.DataFrame:
    """Paired differences of gpt-tiny-512 to the heads."""
    return pl.DataFrame([difference("t", "gpt-tiny-512", f"counts/{h}", *i) for h, i in intervals.items()])


EVERY_HEAD = {"logistic_regression": (0.1, 0.2), "random_forest": (-0.05, 0.15), "lightgbm": (0.15, 0.25)}


def test_the_best_model_is_held_against_the_strongest_head():
    said = best_sentence(scored(), against(**EVERY_HEAD), "t")
    assert said == (
        "best model gpt-tiny-512 at 0.800 (0.750 to 0.850); against counts, random forest +0.050, "
        "interval −0.050 to +0.150, not surely different"
    )


@pytest.mark.parametrize(
    ("head", "name"),
    list(zip(HEADS, ("counts, logistic regression", "counts, random forest", "counts, LightGBM"), strict=True)),
)
def test_the_strongest_head_is_the_one_with_the_highest_auroc(head, name):
    table = scored(**{f"counts/{head}": 0.95})
    assert strongest_baseline(table, "t") == head
    said = best_sentence(table, against(**dict.fromkeys(HEADS, (-0.2, -0.1))), "t")
    assert f"against {name} −0.150, interval −0.200 to −0.100, surely different" in said


def test_the_best_model_is_not_the_baseline():
    said = best_sentence(scored(**{"counts/random_forest": 0.99}), against(**EVERY_HEAD), "t")
    assert said.startswith("best model gpt-tiny-512 at 0.800")


@pytest.mark.parametrize("n_positive", ["0", "19", "<10"])
def test_the_best_model_is_not_judged_on_few_positives(n_positive):
    sure = against(**dict.fromkeys(HEADS, (0.1, 0.2)))
    said = best_sentence(scored(n_positive), sure, "t")
    assert said.endswith(f", with {n_positive} positive subjects: too few to judge")
    assert "surely" not in said


def test_an_interval_that_is_not_there_is_not_shown_and_gives_no_verdict():
    table = scored().with_columns(lower=pl.lit(NAN), upper=pl.lit(NAN))
    rows = against(**dict.fromkeys(HEADS, (NAN, NAN))).with_columns(value=pl.lit(0.05))
    said = best_sentence(table, rows, "t")
    assert said == "best model gpt-tiny-512 at 0.800; against counts, random forest +0.050, it has no interval"
    assert "nan" not in said


def test_without_the_baselines_nothing_is_compared():
    table = scored().filter(pl.col("model") != "counts")
    assert strongest_baseline(table, "t") is None
    assert against_baseline(table, against(**EVERY_HEAD), "t", "gpt-tiny-512") is None
    said = best_sentence(table, against(**EVERY_HEAD), "t")
    assert said == "best model gpt-tiny-512 at 0.800 (0.750 to 0.850)"


def test_a_task_without_scores_has_no_best_model():
    assert best_sentence(scored(), against(**EVERY_HEAD), "another task") is None
    assert best_sentence(scored(), against(**EVERY_HEAD), "u") is None  # the baseline alone


# --- which architecture: the best model against the others ---


def led_by(**intervals: tuple[float, float]) -> pl.DataFrame:
    """Paired differences of gpt-tiny-512 to the longest model of other architectures, and back."""
    rows = []
    for arch, (lower, upper) in intervals.items():
        other = f"{arch}-tiny-512"
        rows += [
            difference("t", "gpt-tiny-512", other, lower, upper),
            difference("t", other, "gpt-tiny-512", -upper, -lower),
            difference("t", "gpt-tiny-512", other, -0.2, -0.1, score="brier"),
            difference("u", "gpt-tiny-512", other, -0.2, -0.1),
        ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({"mamba": HELPS}, "surely ahead of the other model"),
        ({"mamba": OPEN}, "mamba-tiny-512 may be as good"),
        ({"mamba": HELPS, "llama": HELPS}, "surely ahead of all 2 other models"),
        ({"mamba": HELPS, "llama": HELPS, "hyena": HELPS}, "surely ahead of all 3 other models"),
        ({"mamba": OPEN, "llama": HELPS}, "mamba-tiny-512 may be as good"),
        (
            {"mamba": OPEN, "llama": (0.0, 0.1), "hyena": (NAN, NAN)},
            "hyena-tiny-512, llama-tiny-512 and mamba-tiny-512 may be as good",
        ),
    ],
)
def test_the_best_model_leads_only_where_every_interval_says_so(intervals, expected):
    rows = led_by(**intervals).sample(fraction=1, shuffle=True, seed=1)
    assert lead_sentence(rows, "t", "gpt-tiny-512") == expected


def test_more_than_three_equals_are_counted_and_not_listed():
    rows = pl.DataFrame([difference("t", "a", name, *(HELPS if name == "b" else OPEN)) for name in "bcdef"])
    assert lead_sentence(rows, "t", "a") == "4 of the 5 other models may be as good"
    rows = rows.filter(pl.col("reference") != "b")
    assert lead_sentence(rows, "t", "a") == "all 4 other models may be as good"


def test_heads_on_counts_are_no_other_models():
    assert lead_sentence(against(**EVERY_HEAD), "t", "gpt-tiny-512") is None
    both = pl.concat([against(**EVERY_HEAD), led_by(mamba=HELPS)])
    assert lead_sentence(both, "t", "gpt-tiny-512") == "surely ahead of the other model"


def test_the_lead_stands_beside_the_best_model():
    rows = pl.concat([against(**EVERY_HEAD), led_by(mamba=HELPS)])
    said = best_sentence(scored(), rows, "t")
    assert said.startswith(
        "best model gpt-tiny-512 at 0.800 (0.750 to 0.850); surely ahead of the other model; against"
    )


def test_no_lead_is_claimed_on_few_positives():
    rows = pl.concat([against(**EVERY_HEAD), led_by(mamba=HELPS)])
    said = best_sentence(scored("19"), rows, "t")
    assert "ahead" not in said
    assert "as good" not in said


# --- quartiles ---

RISES = [0.10, 0.11, 0.12, 0.15]
FALLS = [0.15, 0.12, 0.11, 0.14]
WORSE, BETTER = (0.02, 0.08), (-0.03, -0.01)


def strata_of(task: str = "macro", of: str = "rr_1", **more) -> pl.DataFrame:
    """The best on average is gpt-tiny-64, although counts are better and gpt-tiny-512 is better in one quarter."""
    rows = [
        *quarters(task, "gpt-tiny-64", RISES, WORSE, of, **more),
        *quarters(task, "gpt-tiny-512", FALLS, (-0.04, 0.02), of, **more),
        *quarters(task, "counts/lightgbm", [0.01] * 4, (-0.5, -0.4), of, **more),
    ]
    return pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=1)


def test_the_quartile_sentence_speaks_of_the_model_with_the_lowest_brier_score():
    said = quartile_sentence(strata_of(), "rr_1")
    assert said == (
        "The model with the lowest Brier score, gpt-tiny-64, has 0.100 on the quarter of labels whose history is "
        "least repetitive and 0.150 on the quarter that is most repetitive (+0.050, interval +0.020 to +0.080, the "
        "mean over tasks); the interval excludes 0 for 1 of 2 models"
    )


@pytest.mark.parametrize(
    ("of", "low", "high"),
    [
        ("rr_1", "least repetitive", "most repetitive"),
        ("rr", "least repetitive", "most repetitive"),
        ("gap_sd", "most regular", "least regular"),
        ("gap_sd_with_birth", "most regular", "least regular"),
        ("gap_mean", "densest", "sparsest"),
        ("gap_iqr", "most regular", "least regular"),
        ("n_tokens", "shortest", "longest"),
    ],
)
def test_the_ends_of_a_property_are_named_in_its_words(of, low, high):
    said = quartile_sentence(strata_of(of=of), of)
    assert f"0.100 on the quarter of labels whose history is {low} and 0.150 on the quarter that is {high} (" in said


def test_quartiles_of_one_task_alone():
    table = pl.concat([strata_of(), strata_of("stay").with_columns(value=pl.col("value") + 0.2)])
    said = quartile_sentence(table, "rr_1", "stay")
    assert "has 0.300 on the quarter" in said
    assert ", stay);" in said
    assert quartile_sentence(table, "gap_sd") is None
    assert quartile_sentence(table, "rr_1", "another task") is None
    assert quartile_sentence(table.filter(pl.col("model") == "counts"), "rr_1") is None


def test_an_undefined_interval_of_a_quartile_gives_no_verdict_and_no_nan():
    table = strata_of().with_columns(
        pl.when(pl.col("stratum") == "Q4-Q1").then(NAN).otherwise(c).alias(c) for c in ("lower", "upper")
    )
    said = quartile_sentence(table, "rr_1")
    assert said.endswith("the interval excludes 0 for 0 of 2 models")
    assert "nan" not in said


def test_masked_counts_do_not_disturb_the_quartile_sentences():
    masked = dict.fromkeys(COUNTS, "<10")
    assert quartile_sentence(strata_of(**masked), "rr_1") == quartile_sentence(strata_of(), "rr_1")
    models = grid(["gpt"], [64, 512])
    assert difference_sentence(strata_of("stay", **masked), models, "rr_1") is not None


def test_the_difference_sentence_counts_the_tasks_of_the_longest_contexts():
    models = grid(["gpt", "mamba"], [64, 512])
    intervals = {
        "gpt-tiny-512": [WORSE, WORSE, BETTER, (-0.1, 0.1)],
        "mamba-tiny-512": [(-0.1, 0.1), BETTER, (-0.1, 0.1), (-0.1, 0.1)],
        "gpt-tiny-64": [WORSE] * 4,
        "counts/lightgbm": [BETTER] * 4,
    }
    rows = [
        row
        for model, of_tasks in intervals.items()
        for i, interval in enumerate(of_tasks)
        for row in quarters(f"task_{i}", model, RISES, interval)
    ]
    rows += [row for model in intervals for row in quarters("macro", model, RISES, WORSE)]
    rows += [row for model in intervals for row in quarters("task_0", model, RISES, WORSE, "gap_sd")]
    said = difference_sentence(pl.DataFrame(rows), models, "rr_1")
    assert said == (
        "On the quarter that is most repetitive, against the one that is least repetitive (by intervals that "
        "exclude 0, in tasks with at least 20 positive subjects in these quarters): gpt-tiny-512 is worse "
        "in 2 and better in 1 of 4 tasks; mamba-tiny-512 is worse in 0 and better in 1 of 4 tasks"
    )
    assert difference_sentence(pl.DataFrame(rows), models, "n_tokens") is None


def test_an_undefined_difference_is_neither_worse_nor_better():
    rows = quarters("t", "gpt-tiny-512", RISES, (NAN, NAN))
    said = difference_sentence(pl.DataFrame(rows), TWO, "rr_1")
    assert "gpt-tiny-512 is worse in 0 and better in 0 of 1 task" in said


@pytest.mark.parametrize("n_positive", ["3", "19", "<10"])
def test_the_difference_sentence_draws_no_verdict_from_few_positives(n_positive):
    rows = quarters("rare", "gpt-tiny-512", RISES, WORSE, n_positive_subjects=n_positive)
    rows += quarters("common", "gpt-tiny-512", RISES, WORSE)
    said = difference_sentence(pl.DataFrame(rows), TWO, "rr_1")
    assert "worse in 1 " in said


# --- losses and perplexities ---


def test_the_loss_sentence_reads_the_last_validation():
    curves = curves_of(models_of("mamba-tiny-64", "gpt-tiny-512", "gpt-tiny-64"))
    curves = curves.with_columns(  # the best of the last validations was the worst of the first
        loss=pl.when((pl.col("model") == "gpt-tiny-512") & (pl.col("tokens") == 12_000)).then(4.1).otherwise("loss")
    )
    said = loss_sentence(curves.sample(fraction=1, shuffle=True, seed=4))
    assert said == (
        "The lowest validation loss is 4.100 nats per token (gpt-tiny-512), the highest 4.520 (gpt-tiny-64)"
    )


def test_the_perplexity_sentence_compares_early_with_late_tokens():
    """Early begins at the 64th token, where two bins or more lie behind it; else at the first bin there is."""
    models = grid(["gpt", "mamba", "hyena"], [64, 512])
    rows = [
        position("gpt-tiny-512", 1_024, 1_447, 25.25), position("gpt-tiny-512", 2, 3, 3.0),
        position("gpt-tiny-512", 64, 90, 248.4), position("gpt-tiny-512", 91, 127, 9.0),
        position("gpt-tiny-64", 64, 90, 999.0), position("gpt-tiny-64", 91, 127, 9.0),
        position("gpt-tiny-512", 1_448, 2_047, 1.0, "first"), position("gpt-tiny-512", 64, 90, 1.0, "repeat"),
        position("mamba-tiny-512", 2, 3, 100.0), position("mamba-tiny-512", 64, 90, 95.0),
        position("hyena-tiny-512", 4, 5, 10.0), position("hyena-tiny-512", 6, 7, 20.0),
    ]  # fmt: skip
    said = perplexity_sentence(pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=2), models)
    assert said == (
        "Median perplexity goes: gpt-tiny-512 from 248 at tokens 64 to 90 to 25.2 at tokens 1,024 to 1,447; "
        "mamba-tiny-512 from 100 at tokens 2 to 3 to 95 at tokens 64 to 90 (intervals overlap); "
        "hyena-tiny-512 from 10 at tokens 4 to 5 to 20 at tokens 6 to 7"
    )


def test_one_bin_of_positions_is_no_course():
    models = grid(["gpt"], [64])
    assert perplexity_sentence(pl.DataFrame([position("gpt-tiny-64", 1, 1, 248.4)]), models) is None
    assert perplexity_sentence(pl.DataFrame([position("gpt-tiny-64", 1, 1, 248.4)]).clear(), models) is None


def test_new_tokens_are_compared_with_repeats_where_both_are():
    models = grid(["gpt", "llama"], [64, 512])
    rows = [
        position("gpt-tiny-512", 2, 2, 50.0, "first"), position("gpt-tiny-512", 2, 2, 20.0, "repeat"),
        position("gpt-tiny-512", 1_024, 1_447, 213.4, "first"), position("gpt-tiny-512", 1_024, 1_447, 14.92, "repeat"),
        position("gpt-tiny-512", 1_448, 2_047, 7.0, "repeat"),  # no bin of new tokens here
        position("gpt-tiny-64", 1_448, 2_047, 7.0, "repeat"), position("gpt-tiny-64", 1_448, 2_047, 8.0, "first"),
        position("llama-tiny-512", 2, 2, 50.0, "first"),
    ]  # fmt: skip
    said = repeats_sentence(pl.DataFrame(rows), models)
    assert said == (
        "Median perplexity of new against repeated tokens: gpt-tiny-512 213 against 14.9 (tokens 1,024 to 1,447)"
    )
    assert repeats_sentence(pl.DataFrame(rows[-1:]), models) is None
    assert repeats_sentence(pl.DataFrame(rows).clear(), models) is None


def test_masked_counts_do_not_disturb_the_perplexity_sentences():
    spans = [(1, 1, 100.0), (2, 3, 50.0)]
    models = grid(["gpt"], [64])

    def table(**counts):
        return pl.DataFrame(
            [position("gpt-tiny-64", *s, k, **counts) for s in spans for k in ("all", "first", "repeat")]
        )

    masked = table(n="<50", n_subjects="<10")
    assert perplexity_sentence(masked, models) == perplexity_sentence(table(), models)
    assert repeats_sentence(masked, models) == repeats_sentence(table(), models)
