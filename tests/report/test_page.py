"""The page and its sentences, from tables whose conclusions are known."""

import polars as pl
import pytest

from ehrctx.report.figures import score_by_context
from ehrctx.report.page import read_tables
from ehrctx.report.sentences import best_sentence, context_sentence

MODELS = pl.DataFrame(
    {
        "model": ["gpt-tiny-64", "gpt-tiny-512", "mamba-tiny-64"],
        "arch": ["gpt", "gpt", "mamba"],
        "context": [64, 512, 64],
    }
)


def scores(n_positive="40", **values):
    rows = [
        {"task": "t", "model": m, "score": s, "value": v, "lower": v - 0.05, "upper": v + 0.05}
        | {"n": "40", "n_positive": n_positive, "n_subjects": "30"}
        for m, v in values.items()
        for s in ("auroc", "auprc", "brier")
    ]
    return pl.DataFrame(rows).with_columns(pl.col("model").str.replace_all("_", "-"))


def difference(lower, upper, model="gpt-tiny-512", reference="gpt-tiny-64", n_positive="40"):
    value = (lower + upper) / 2
    row = {"task": "t", "score": "auroc", "model": model, "reference": reference, "n_positive": n_positive}
    return pl.DataFrame([row | {"value": value, "lower": lower, "upper": upper}])


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [(0.01, 0.2, "a longer context helps"), (-0.2, -0.01, "hurts"), (-0.1, 0.2, "no difference can be told")],
)
def test_the_verdict_follows_the_paired_interval(lower, upper, verdict):
    sentences = context_sentence(difference(lower, upper), MODELS, "t")
    assert len(sentences) == 1  # mamba has one context length only
    assert sentences[0].startswith("gpt:")
    assert verdict in sentences[0]
    assert "512 against 64" in sentences[0]


@pytest.mark.parametrize("n_positive", ["4", "<10", "19"])
def test_no_verdict_on_few_positives(n_positive):
    (sentence,) = context_sentence(difference(0.2, 0.3, n_positive=n_positive), MODELS, "t")
    assert "too few positive labels" in sentence
    assert "helps" not in sentence
    table = scores(n_positive, gpt_tiny_64=0.7, counts=0.5)
    assert "too few to judge" in best_sentence(table, difference(0.1, 0.3, reference="counts"), "t")


def test_the_best_model_is_not_the_baseline():
    table = scores(gpt_tiny_64=0.7, gpt_tiny_512=0.8, counts=0.9)
    against = difference(-0.15, -0.05, reference="counts")
    sentence = best_sentence(table, against, "t")
    assert "gpt-tiny-512 at 0.800" in sentence
    assert "its interval excludes 0" in sentence
    assert best_sentence(table, against, "another task") is None


def test_the_figure_shows_every_model_its_interval_and_the_counts():
    table = scores("<10", gpt_tiny_64=0.7, gpt_tiny_512=0.8, mamba_tiny_64=0.6, counts=0.65)
    figure = score_by_context(table, MODELS)
    axes = figure.axes[0]
    drawn = {tuple(y) for line in axes.get_lines() for y in [line.get_ydata()] if len(y) in (1, 2)}
    assert (0.7, 0.8) in drawn
    assert any(0.65 in y for y in drawn)
    assert "positive <10" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "context length (tokens)"
    spans = [collection for container in axes.containers for collection in container[2]]
    assert len(spans) == 2  # an interval per architecture


def test_masked_counts_are_read_as_text(tmp_path):
    masked = scores("<10", gpt_tiny_64=0.7)
    for name in ("scores", "differences", "labels", "models"):
        masked.write_csv(tmp_path / f"{name}.csv")
    assert read_tables(tmp_path)["scores"]["n_positive"][0] == "<10"
