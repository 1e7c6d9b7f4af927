"""Figures draw every number of the tables, in styles that can be told apart, with texts that can be read."""

from __future__ import annotations

import io
import itertools
from functools import cache

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from planted import (
    ARCHITECTURES,
    FOURTEEN,
    HEADS,
    NAN,
    STRATA,
    curves_of,
    cut_off,
    grid,
    models_of,
    overlapping,
    position,
    quarters,
    score,
    study_tables,
    visible_texts,
)

from ehrctx.report.figures import (
    BASELINES,
    STYLES,
    perplexity_by_position,
    perplexity_of_repeats,
    quartile_differences,
    score_by_context,
    score_by_quartile,
    validation_curves,
)

FIGURES = {
    "scores": lambda t: score_by_context(t["scores"], t["models"]),
    "quartiles": lambda t: score_by_quartile(t["strata"], t["models"], "gap_sd_with_birth"),
    "differences": lambda t: quartile_differences(t["strata"], t["models"], "gap_sd"),
    "positions": lambda t: perplexity_by_position(t["perplexity"], t["models"]),
    "repeats": lambda t: perplexity_of_repeats(t["perplexity"], t["models"]),
    "curves": lambda t: validation_curves(t["curves"]),
}
# The study's sixteen models.
PUBLISHED = models_of(
    *[f"{arch}-paper-{n}" for arch in ("gpt", "llama") for n in (512, 1024, 2048, 4096)],
    *[f"{arch}-paper-{n}" for arch in ("mamba", "hyena") for n in (1024, 4096, 8192, 16384)],
)


def bars(axes, label, vertical=True):
    """What one call of errorbar drew: its (x, y) points, its intervals, its line."""
    (container,) = [c for c in axes.containers if c.get_label() == label]
    line, _, (segments,) = container
    ends = [tuple(segment[:, 1 if vertical else 0]) for segment in segments.get_segments()]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True)), ends, line


def line_of(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return line


def panel(figure, title):
    (axes,) = [a for a in figure.axes if a.get_title(loc="left") == title]
    return axes


def band_of(axes, number):
    """(x, lower, upper) of the fill that was drawn as the `number`th."""
    vertices = np.unique(axes.collections[number].get_paths()[0].vertices, axis=0)
    x = np.unique(vertices[:, 0])
    return [(at, vertices[vertices[:, 0] == at, 1].min(), vertices[vertices[:, 0] == at, 1].max()) for at in x]


# --- scores by context length ---


@pytest.fixture
def scores():
    """Two architectures, two tasks; every value and interval is distinct, and the intervals are not symmetric."""
    models = pl.concat([grid(["mamba"], [512, 64]), grid(["gpt"], [64, 4_096])])
    rows = []
    for t, task in enumerate(("macro", "stay")):
        for m, name in enumerate([*models["model"], *[f"counts/{h}" for h in HEADS]]):
            value = 0.6 + 0.1 * t + 0.02 * m
            counted = {"n": f"{400 + t}", "n_positive": "<10" if t else "40", "n_subjects": "300"}
            rows.append(score(task, name, value, value - 0.01 * (m + 1), value + 0.02 * (m + 1), **counted))
            rows.append(score(task, name, 0.1, score="brier", **counted))
    return pl.DataFrame(rows), models


def test_every_model_is_drawn_with_its_value_and_interval(scores):
    table, models = scores
    figure = score_by_context(table, models)
    assert [a.get_title(loc="left") for a in figure.axes] == ["mean over tasks", "stay"]
    drawn = 0
    for title, task in (("mean over tasks", "macro"), ("stay", "stay")):
        for arch, label in (("gpt", "GPT"), ("mamba", "Mamba")):
            of_arch = models.filter(pl.col("arch") == arch).sort("context")
            of_task = table.filter((pl.col("task") == task) & (pl.col("score") == "auroc"))
            wanted = [of_task.row(by_predicate=pl.col("model") == m, named=True) for m in of_arch["model"]]
            points, intervals, line = bars(panel(figure, title), label)
            assert [y for _, y in points] == [w["value"] for w in wanted]
            assert intervals == [pytest.approx((w["lower"], w["upper"])) for w in wanted]
            # beside its context length, nearer to it than to any other, in the architecture's style
            assert [x for x, _ in points] == pytest.approx(of_arch["context"].to_list(), rel=0.15)
            assert (line.get_color(), line.get_marker()) == STYLES[arch][:2]
            drawn += len(points)
    assert drawn == 8
    # side by side, so that no interval hides another
    (first, _, _), (second, _, _) = (bars(panel(figure, "stay"), label) for label in ("GPT", "Mamba"))
    assert not {x for x, _ in first} & {x for x, _ in second}


def test_every_head_on_counts_is_a_line_across(scores):
    table, models = scores
    figure = score_by_context(table, models)
    for title, shift in (("mean over tasks", 0.0), ("stay", 0.1)):
        for h, head in enumerate(HEADS):
            line = line_of(panel(figure, title), BASELINES[head][2])
            assert list(line.get_ydata()) == pytest.approx([0.68 + shift + 0.02 * h] * 2)
            assert list(line.get_xdata()) == [0, 1]  # from edge to edge
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(["GPT", "Mamba", *[style[2] for style in BASELINES.values()]])


def test_counts_and_units_are_shown(scores):
    table, models = scores
    figure = score_by_context(table, models)
    assert [t.get_text() for t in panel(figure, "mean over tasks").texts] == ["n = 400, positive 40, subjects 300"]
    large = table.with_columns(n=pl.lit("1234567"))
    assert score_by_context(large, models).axes[0].texts[0].get_text() == "n = 1,234,567, positive 40, subjects 300"
    assert [t.get_text() for t in panel(figure, "stay").texts] == ["n = 401, positive <10, subjects 300"]
    assert figure.axes[0].get_ylabel() == "AUROC"
    for axes in figure.axes:
        assert axes.get_xlabel() == "context length (tokens)"
        assert [t.get_text() for t in axes.get_xticklabels()] == ["64", "512", "4k"]
        assert list(axes.get_xticks()) == [64, 512, 4_096]


def test_chance_is_drawn_for_auroc_alone(scores):
    table, models = scores
    chance = [list(line.get_ydata()) for line in score_by_context(table, models).axes[0].get_lines()]
    assert [0.5, 0.5] in chance
    figure = score_by_context(table, models, "brier")
    assert [0.5, 0.5] not in [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert figure.axes[0].get_ylabel() == "Brier score"


def test_an_interval_that_is_not_there_is_not_drawn(scores):
    table, models = scores
    table = table.with_columns(lower=pl.lit(NAN), upper=pl.lit(NAN))
    points, intervals, _ = bars(panel(score_by_context(table, models), "stay"), "GPT")
    assert len(points) == 2
    assert all(low == high for low, high in intervals)


def test_a_model_without_a_score_on_one_task_is_left_out_of_its_panel_alone(scores):
    table, models = scores
    table = table.filter((pl.col("task") != "stay") | (pl.col("model") != "gpt-tiny-64"))
    figure = score_by_context(table, models)
    assert len(bars(panel(figure, "stay"), "GPT")[0]) == 1
    assert len(bars(panel(figure, "mean over tasks"), "GPT")[0]) == 2


def test_an_interval_beside_its_value_is_drawn():
    """A percentile interval need not hold the value: with few replicates or a low level, it often does not."""
    models = grid(["gpt"], [64])
    table = pl.DataFrame([score("stay", "gpt-tiny-64", 0.7, 0.71, 0.8)])
    points, _, _ = bars(score_by_context(table, models).axes[0], "GPT")
    assert [y for _, y in points] == [0.7]


# --- quartiles ---


def strata_table(models, tasks=("macro",), of="rr_1", **more):
    rows = []
    for t, task in enumerate(tasks):
        for m, name in enumerate([*models["model"], *[f"counts/{h}" for h in HEADS]]):
            values = [0.1 + 0.1 * t + 0.003 * m + 0.01 * q for q in range(4)]
            rows += quarters(task, name, values, (-0.01 * (m + 1), 0.05 + 0.01 * m), of, **more)
    return pl.DataFrame(rows)


def test_quartiles_of_every_model_are_drawn_with_their_intervals():
    models = grid(["mamba", "gpt"], [64, 512])
    table = strata_table(models, ("macro", "stay"), n="400", n_positive="40")
    figure = score_by_quartile(table, models, "rr_1")
    for axes, arch in zip(figure.axes, ("gpt", "mamba"), strict=True):
        assert axes.get_title(loc="left") == STYLES[arch][3]
        for context in (64, 512):
            points, intervals, line = bars(axes, f"{context} tokens")
            m = models["model"].to_list().index(f"{arch}-tiny-{context}")
            values = [0.1 + 0.003 * m + 0.01 * q for q in range(4)]
            assert [y for _, y in points] == pytest.approx(values)
            assert [round(x) for x, _ in points] == [0, 1, 2, 3]
            assert intervals == [pytest.approx((v - 0.01, v + 0.01)) for v in values]
            assert line.get_color() == STYLES[arch][0]
        (counts,) = [line for line in axes.get_lines() if line.get_color() == BASELINES["lightgbm"][0]]
        assert list(counts.get_ydata()) == pytest.approx([0.1 + 0.003 * 6 + 0.01 * q for q in range(4)])
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"{q}\n10%" for q in STRATA[:4]]
        assert axes.get_xlabel() == "least repetitive → most repetitive"
    assert figure.axes[0].get_ylabel() == "Brier score\nmean over tasks"
    heading = figure._suptitle.get_text()
    assert "grey: counts, LightGBM" in heading
    assert "repetition rate RR₁" in heading
    assert "n = 400 labels" in heading


def test_quartiles_of_one_task():
    models = grid(["gpt"], [64])
    figure = score_by_quartile(strata_table(models, ("macro", "stay")), models, "rr_1", "stay")
    assert figure.axes[0].get_ylabel() == "Brier score\nstay"
    assert bars(figure.axes[0], "64 tokens")[0][0][1] == pytest.approx(0.2)


@pytest.mark.parametrize("counts", [("<10", "<10"), ("40", "<10"), ("40", ">=31")])
def test_masked_counts_show_no_share_of_positives(counts):
    models = grid(["gpt"], [64])
    n, n_positive = counts
    figure = score_by_quartile(strata_table(models, ("stay",), n=n, n_positive=n_positive), models, "rr_1")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == list(STRATA[:4])
    assert f"n = {n} labels" in figure._suptitle.get_text()


def test_the_share_below_a_mean_of_scores_is_a_mean_of_shares():
    """One task of 1,000 labels with 1 % positive and one of 10 with half: 25.5 %, and not the pooled 1.5 %."""
    models = grid(["gpt"], [64])
    tasks = (
        strata_table(models, ("large",), n="1000", n_positive="10"),
        strata_table(models, ("rare",), n="10", n_positive="5"),
    )
    mean = strata_table(models, ("macro",), n="1010", n_positive="15")
    figure = score_by_quartile(pl.concat([mean, *tasks]), models, "rr_1")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [f"{q}\n26%" for q in STRATA[:4]]


def test_a_study_of_one_task_shows_its_quarters():
    models = grid(["gpt"], [64])
    figure = score_by_quartile(strata_table(models, ("stay",)), models, "rr_1")
    assert figure.axes[0].get_ylabel() == "Brier score\nstay"


def test_without_lightgbm_no_grey_line_is_announced():
    models = grid(["gpt"], [64])
    table = strata_table(models, ("stay",)).filter(pl.col("head") != "lightgbm")
    assert "grey" not in score_by_quartile(table, models, "rr_1")._suptitle.get_text()


def test_sizes_and_seeds_have_lines_of_their_own():
    models = models_of("gpt-tiny-64", "gpt-tiny-512", "gpt-small-64", "gpt-small-512", "gpt-small-64-s1")
    table = pl.DataFrame([score("stay", m, 0.6 + 0.01 * i) for i, m in enumerate(models["model"])])
    figure = score_by_context(table, models)
    tiny, small = (bars(figure.axes[0], f"GPT {size}") for size in ("tiny", "small"))
    assert [y for _, y in tiny[0]] == pytest.approx([0.60, 0.61])
    assert [y for _, y in small[0]] == pytest.approx([0.62, 0.63]), "the other seed is not joined to this one"
    assert tiny[2].get_markerfacecolor() != small[2].get_markerfacecolor()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["GPT tiny", "GPT small"]


def test_the_sizes_of_all_quarters_are_shown():
    """150 labels fall into quarters of 38, 37, 37 and 38."""
    models = grid(["gpt"], [64])
    sizes = pl.DataFrame({"stratum": STRATA, "n": ["38", "37", "37", "38", "76"]})
    table = strata_table(models).drop("n").join(sizes, on="stratum", maintain_order="left")
    assert "37" in score_by_quartile(table, models, "rr_1")._suptitle.get_text()


def test_differences_are_drawn_task_by_task_for_the_longest_contexts():
    models = grid(["gpt", "hyena"], [64, 512])
    table = strata_table(models, ("macro", "a_task", "b_task"))
    figure = quartile_differences(table, models, "rr_1")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["b_task", "a_task", "mean over tasks"]
    assert "most repetitive minus least repetitive" in axes.get_xlabel()
    assert sorted(t.get_text() for t in figure.legends[0].get_texts()) == ["GPT, 512 tokens", "Hyena, 512 tokens"]
    for label, m in (("GPT, 512 tokens", 1), ("Hyena, 512 tokens", 3)):
        points, intervals, _ = bars(axes, label, vertical=False)
        assert sorted(round(y) for _, y in points) == [0, 1, 2]
        assert [x for x, _ in points] == pytest.approx([0.03] * 3)
        assert intervals == [pytest.approx((-0.01 * (m + 1), 0.05 + 0.01 * m))] * 3
    assert [0, 0] in [list(line.get_xdata()) for line in axes.get_lines()]


# --- perplexity and losses ---


def test_perplexity_of_too_few_subjects_is_drawn_empty():
    """A study whose held-out subjects are fewer than a bin takes has a table without rows."""
    models = grid(["llama", "mamba"], [64, 512])
    none = pl.DataFrame([position(models["model"][0], 64, 90, 50.0)]).clear()
    for draw in (perplexity_by_position, perplexity_of_repeats):
        figure = draw(none, models)
        figure.canvas.draw()
        assert len(figure.axes) == 2


def test_perplexity_is_drawn_with_its_band_and_the_context_lengths():
    models = grid(["llama"], [64, 512])
    spans = [(64, 90), (1, 1), (2, 3)]  # in any order
    rows = [position(m, *s, 100 / (i + 1) + 7 * j) for j, m in enumerate(models["model"]) for i, s in enumerate(spans)]
    rows += [position(m, *s, 1.0, "first") for m in models["model"] for s in spans]
    counted = pl.DataFrame(rows).with_columns(
        n_subjects=pl.when(pl.col("position_from") == 64).then(pl.lit("<10")).otherwise(pl.lit("321"))
    )
    figure = perplexity_by_position(counted, models)
    (axes,) = figure.axes
    for j, context in enumerate((64, 512)):
        line = line_of(axes, f"{context} tokens")
        medians = [50 + 7 * j, 100 / 3 + 7 * j, 100 + 7 * j]
        assert list(line.get_ydata()) == pytest.approx(medians)
        x = list(line.get_xdata())
        assert all(low <= at <= high for at, (low, high) in zip(x, sorted(spans), strict=True))
        band = [(at, 0.9 * median, 1.1 * median) for at, median in zip(x, medians, strict=True)]
        assert band_of(axes, j) == [pytest.approx(b) for b in band]
    across = [list(line.get_xdata()) for line in axes.get_lines()]
    assert [64, 64] in across
    assert [512, 512] in across
    assert axes.get_xlabel() == "position in the timeline (tokens)"
    assert axes.get_ylabel() == "median perplexity per token"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "n = 321 subjects at the first position, <10 at the last" in figure._suptitle.get_text()


def test_new_and_repeated_tokens_are_drawn_for_the_longest_context():
    models = grid(["gpt", "mamba"], [64, 512])
    rows = [
        position(m, *s, median, kind)
        for i, m in enumerate(models["model"])
        for kind, median in (("all", 1.0), ("first", 90.0 + i), ("repeat", 20.0 + i))
        for s in ((2, 3), (4, 5))
    ]
    figure = perplexity_of_repeats(pl.DataFrame(rows), models)
    for axes, title, i in zip(figure.axes, ("GPT, 512 tokens", "Mamba, 512 tokens"), (1, 3), strict=True):
        assert axes.get_title(loc="left") == title
        assert list(line_of(axes, "first of its kind").get_ydata()) == [90.0 + i] * 2
        assert list(line_of(axes, "repeated").get_ydata()) == [20.0 + i] * 2
        assert [b[1:] for b in band_of(axes, 1)] == [pytest.approx((0.9 * (20 + i), 1.1 * (20 + i)))] * 2
        assert axes.get_xlabel() == "position in the timeline (tokens)"


def test_every_validation_is_drawn():
    models = grid(["gpt", "mamba"], [64, 512])
    (axes,) = validation_curves(curves_of(models)).axes
    for i, name in enumerate(models["model"]):
        line = line_of(axes, name)
        assert list(line.get_xdata()) == pytest.approx([0.006, 0.012])
        assert list(line.get_ydata()) == pytest.approx([5.0 + i / 100, 4.5 + i / 100])
    assert axes.get_xlabel() == "training tokens (millions)"
    assert axes.get_ylabel().replace("\n", " ") == "validation loss (nats per token)"
    assert axes.get_xlim()[0] == 0


def test_a_single_validation_is_not_cut_off_by_the_frame():
    curves = curves_of(grid(["gpt"], [64]))
    (axes,) = validation_curves(curves.filter(pl.col("tokens") == curves["tokens"].max())).axes
    last = float(line_of(axes, "gpt-tiny-64").get_xdata()[-1])
    assert axes.get_xlim() == pytest.approx((0, 1.05 * last))


# --- how it looks ---


def test_no_two_architectures_share_colour_marker_or_dash():
    for part in zip(*STYLES.values(), strict=True):
        assert len(set(map(str, part))) == len(STYLES)
    assert len({str(style[:2]) for style in BASELINES.values()}) == len(BASELINES)
    assert set(STYLES) == set(ARCHITECTURES)
    assert set(BASELINES) == set(HEADS)


def test_the_drawn_architectures_differ_in_colour_marker_and_dash():
    tables = study_tables(grid(ARCHITECTURES, [64, 512]), ["stay"])
    axes = score_by_context(tables["scores"], tables["models"]).axes[0]
    lines = [bars(axes, style[3])[2] for style in STYLES.values()]
    assert len({line.get_color() for line in lines}) == len(ARCHITECTURES)
    assert len({line.get_marker() for line in lines}) == len(ARCHITECTURES)
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(ARCHITECTURES)


# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
JUST_NOTICEABLE = 2.3  # CIE76


def lab(colour, deficiency):
    """CIELAB (D65) of an sRGB colour as an eye with this deficiency sees it."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ seen / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_colours_of_the_architectures_can_be_told_apart(deficiency):
    seen = {arch: lab(style[0], deficiency) for arch, style in STYLES.items()}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    # measured: 53.6 (none), 22.7 (protanopia), 17.9 (deuteranopia), 17.0 (tritanopia)
    assert min(distances.values()) > 7 * JUST_NOTICEABLE


def test_the_greys_of_the_baselines_can_be_told_apart():
    lightness = sorted(lab(style[0], "none")[0] for style in BASELINES.values())
    assert min(np.diff(lightness)) > 5 * JUST_NOTICEABLE


def test_colours_stand_out_from_the_paper():
    for style in (*STYLES.values(), *BASELINES.values()):
        assert lab(style[0], "none")[0] < 65


@cache
def large_study(published=False):
    """Fourteen tasks and their mean, counts of a hospital: ten tiny models, or the published sixteen."""
    models, octaves = (PUBLISHED, 14) if published else (grid(ARCHITECTURES, [64, 512]), 12)
    large = {"n": "123456", "n_positive": "12345", "n_subjects": "23456"}
    tables = study_tables(models, ["macro", *FOURTEEN], **large)
    spans = [(2**i, 2 ** (i + 1) - 1) for i in range(octaves)]
    tables["perplexity"] = pl.DataFrame(
        [
            position(model, *span, 100 / (i + 1), kind, n_subjects="345678")
            for model in models["model"]
            for i, span in enumerate(spans)
            for kind in ("all", "first", "repeat")
        ]
    )
    return tables


@pytest.mark.parametrize("figure", FIGURES)
def test_no_text_hides_another_or_is_cut_off(figure):
    drawn = FIGURES[figure](large_study())
    assert drawn.get_figwidth() <= 12.4  # the page's width: what is wider is scaled down
    texts = visible_texts(drawn)
    assert len(texts) > 10
    assert overlapping(texts) == []
    assert cut_off(drawn, texts) == []


def test_counts_of_a_large_hospital_fit_their_panel():
    tables = large_study()
    large = {"n": pl.lit("1234567"), "n_positive": pl.lit("234567"), "n_subjects": pl.lit("345678")}
    drawn = FIGURES["scores"](tables | {"scores": tables["scores"].with_columns(**large)})
    texts = visible_texts(drawn)
    assert overlapping(texts) == []
    assert cut_off(drawn, texts) == []


@pytest.mark.parametrize(
    "figure",
    list(FIGURES),
)
def test_no_text_hides_another_in_the_published_grid(figure):
    """Sixteen models with contexts of 512 to 16,384 tokens, on timelines as long."""
    drawn = FIGURES[figure](large_study(published=True))
    texts = visible_texts(drawn)
    assert overlapping(texts) == []
    assert cut_off(drawn, texts) == []


def test_an_overlap_would_be_seen():
    figure, axes = plt.subplots()
    axes.text(0.5, 0.5, "one text")
    axes.text(0.51, 0.5, "another")
    axes.text(0.99, 0.9, "a text that leaves the figure")
    texts = visible_texts(figure)
    assert overlapping(texts) == [("one text", "another")]
    assert cut_off(figure, texts) == ["a text that leaves the figure"]


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_legend_fits_the_figure_of_few_tasks(tasks):
    tables = study_tables(grid(ARCHITECTURES, [64, 512]), FOURTEEN[:tasks])
    figure = FIGURES["scores"](tables)
    assert cut_off(figure, visible_texts(figure)) == []


@pytest.mark.parametrize("figure", ["quartiles", "positions", "repeats"])
def test_the_heading_fits_the_figure_of_one_architecture(figure):
    drawn = FIGURES[figure](study_tables(grid(["gpt"], [64, 512]), ["macro", *FOURTEEN[:2]]))
    assert cut_off(drawn, visible_texts(drawn)) == []


@pytest.mark.parametrize("figure", ["quartiles", "positions"])
def test_the_context_lengths_of_an_architecture_can_be_told_apart(figure):
    drawn = FIGURES[figure](study_tables(grid(["gpt"], [512, 1_024, 2_048, 4_096]), ["macro", *FOURTEEN[:2]]))
    labels = [f"{name} tokens" for name in ("512", "1k", "2k", "4k")]
    found = (lambda axes, label: bars(axes, label)[2]) if figure == "quartiles" else line_of
    lines = [found(drawn.axes[0], label) for label in labels]
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor(), line.get_linestyle()) for line in lines}
    assert len(looks) == 4


@pytest.mark.parametrize(("architectures", "contexts"), [(1, 1), (1, 4), (2, 2), (3, 1), (4, 4), (5, 2)])
def test_any_number_of_architectures_and_contexts_is_drawn(architectures, contexts):
    models = grid(ARCHITECTURES[:architectures], [64, 128, 512, 4_096][:contexts])
    tables = study_tables(models, ["macro", "stay"])
    for name, make in FIGURES.items():
        figure = make(tables)
        shown = [axes for axes in figure.axes if axes.axison]
        panels = {"scores": 2, "differences": 1, "curves": 1}.get(name, architectures)
        assert len(shown) == panels
        drawn = [c for a in shown for c in a.containers] or [line for a in shown for line in a.get_lines()]
        if name in ("scores", "quartiles", "differences"):
            wanted = {"scores": 2 * architectures, "quartiles": architectures * contexts, "differences": architectures}
            assert len(drawn) == wanted[name]
        plt.close(figure)


def svg(figure, **options):
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", **options)
    plt.close(figure)
    return stream.getvalue()


@pytest.mark.parametrize("figure", ["scores", "positions"])
def test_the_same_table_gives_the_same_drawing(figure):
    tables = study_tables(grid(["gpt", "mamba"], [64, 512]), ["macro", "stay"])
    assert matplotlib.rcParams["svg.hashsalt"]
    first, second = (svg(FIGURES[figure](tables), metadata={"Date": None}) for _ in range(2))
    assert first == second
    tables["scores"] = tables["scores"].with_columns(value=pl.col("value") + 0.001)
    tables["perplexity"] = tables["perplexity"].with_columns(median=pl.col("median") + 1)
    assert svg(FIGURES[figure](tables), metadata={"Date": None}) != first
