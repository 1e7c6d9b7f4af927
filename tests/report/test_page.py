"""The page, from planted tables: every number at its place, nothing fetched, nothing leaked, nothing half-written."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from matplotlib import pyplot as plt
from planted import HEADS, NAN, difference, grid, study_tables, write_study

from ehrctx.errors import InputError
from ehrctx.probe.suppression import COUNTS
from ehrctx.report import page
from ehrctx.report.figures import validation_curves
from ehrctx.report.page import TABLES, read_tables, task_sentences, write_report

STUDY = {"name": "planted", "simulate": None, "statistics": {"level": 0.9, "replicates": 1_234}}
NAMES = {
    "logistic_regression": "counts, logistic regression",
    "random_forest": "counts, random forest",
    "lightgbm": "counts, LightGBM",
}


FIGURES = (
    "score_by_context",
    "score_by_quartile",
    "perplexity_by_position",
    "perplexity_of_repeats",
    "validation_curves",
)


class Page(HTMLParser):
    """What a browser would read: tables as rows of cells, addresses, images, tags, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.tags, self.words, self.verdicts = [], [], [], [], []
        self._cell = False
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.addresses += [values[key] for key in ("src", "href", "srcset", "action", "data") if key in values]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "span" and values.get("class") in ("better", "worse"):
            self.verdicts.append((self.tables[-1][-1][0], len(self.tables[-1][-1]) - 1, values["class"]))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.words.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += " ".join(data.split())


def written(folder, tables, minimum_count=1, **changes):
    """(the page as text, as a browser reads it) from these tables; `changes` are of the study."""
    paths = write_study(folder / "study", tables)
    out = folder / "out" / "index.html"
    write_report(**paths, study=STUDY | {"privacy": {"minimum_count": minimum_count}} | changes, out=out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["index.html", "page.json"]
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty figures in place of the real ones, which take seconds."""
    for name in FIGURES:
        monkeypatch.setattr(page, name, lambda *_: plt.figure(figsize=(1, 1)))


@pytest.fixture
def make(tmp_path, undrawn):
    """A function (tables, changes of the study) -> the page as text and as a browser reads it, without figures."""

    def of(tables, **changes):
        return written(tmp_path, tables, **changes)

    return of


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    """The page of `tables` with its figures: (text, as a browser reads it)."""
    return written(tmp_path_factory.mktemp("page"), tables)


@pytest.fixture(scope="module")
def tables():
    """Two architectures, three tasks one of which is not estimable, and the mean over the two that are."""
    found = study_tables(grid(["gpt", "mamba"], [64, 512]), ["macro", "stay", "a<b>c&d"])
    never = pl.DataFrame(
        [
            {"task": "never", "split": s, "n": "70", "n_positive": "0", "n_subjects": "60", "n_positive_subjects": "0"}
            | {"note": "one class only in train and held_out", "left_out": "1,234 given twice; <10 in an unknown unit"}
            for s in ("train", "tuning", "held_out")
        ]
    )
    return found | {"labels": pl.concat([found["labels"], never])}


def table_of(parsed, first):
    """The table whose first cell is `first`, as (header, rows)."""
    (found,) = [t for t in parsed.tables if t[0][0] == first]
    return found[0], found[1:]


def test_every_score_is_at_its_place(whole, tables):
    _, parsed = whole
    for name, key in (("AUROC", "auroc"), ("AUPRC", "auprc"), ("Brier score", "brier")):
        header, rows = table_of(parsed, name)
        assert header[-2:] == ["labelssubjects", "positive"]
        assert header[1:-2] == [*tables["models"]["model"], *NAMES.values()]
        assert [row[0] for row in rows] == ["mean over tasks", "stay", "a<b>c&d"]
        checked = 0
        for row in tables["scores"].filter(pl.col("score") == key).iter_rows(named=True):
            column = header.index(NAMES[row["head"]] if row["model"] == "counts" else row["model"])
            title = "mean over tasks" if row["task"] == "macro" else row["task"]
            (cells,) = [cells for cells in rows if cells[0] == title]
            assert cells[column] == f"{row['value']:.3f}{row['lower']:.3f}–{row['upper']:.3f}"
            assert cells[-2:] == ["400300", "4035"]  # the labels, below them their subjects
            checked += 1
        assert checked == 3 * 7


def test_only_what_surely_differs_from_the_strongest_head_is_marked(make, tables):
    differences = tables["differences"].filter(pl.col("task") != "stay")
    strongest = {}
    for task in ("macro", "stay", "a<b>c&d"):
        heads = tables["scores"].filter(
            (pl.col("task") == task) & (pl.col("model") == "counts") & (pl.col("score") == "auroc")
        )
        strongest[task] = heads.sort("value")["head"][-1]
    planted = []
    for model, interval in zip(
        tables["models"]["model"], ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1), (NAN, NAN)), strict=True
    ):
        for head in HEADS:  # against the other heads, the opposite
            own = interval if head == strongest["stay"] else {True: (-0.1, 0.1), False: (0.1, 0.2)}[interval[0] > 0]
            planted += [difference("stay", model, f"counts/{head}", *own, score=s) for s in ("auroc", "brier")]
    columns = differences.columns
    _, parsed = make(tables | {"differences": pl.concat([differences, pl.DataFrame(planted).select(columns)])})
    assert parsed.verdicts == [("stay", 1, "better"), ("stay", 2, "worse")]
    header, rows = table_of(parsed, "AUROC")
    (stay,) = [row for row in rows if row[0] == "stay"]
    assert ["▲" in cell for cell in stay[1:5]] == [True, False, False, False]
    assert ["▼" in cell for cell in stay[1:5]] == [False, True, False, False]
    assert header[1] == "gpt-tiny-64"


def test_few_positives_are_never_marked(make, tables):
    sure = tables["differences"].with_columns(lower=pl.lit(0.1), upper=pl.lit(0.2))
    few = {"scores": tables["scores"].with_columns(n_positive_subjects=pl.lit("<10"))}
    _, parsed = make(tables | few | {"differences": sure.with_columns(n_positive_subjects=pl.lit("<10"))})
    assert parsed.verdicts == []
    assert "too few to judge" in parsed.text
    assert "to judge context lengths" not in parsed.text, "once is enough"


def test_a_model_without_a_score_has_an_empty_cell(make, tables):
    """A task that one model could not predict: its cells are marked, and the other columns stay where they were."""
    gone = (pl.col("task") == "stay") & (pl.col("model") == "gpt-tiny-64")
    _, parsed = make(tables | {"scores": tables["scores"].filter(~gone)})
    header, rows = table_of(parsed, "AUROC")
    (stay,) = [row for row in rows if row[0] == "stay"]
    assert stay[header.index("gpt-tiny-64")] == "–"
    assert all(re.match(r"0\.\d{3}", cell) for i, cell in enumerate(stay[1:-2], 1) if header[i] != "gpt-tiny-64")


def test_an_undefined_interval_is_not_shown(make, tables):
    undefined = tables["scores"].with_columns(lower=pl.lit(NAN), upper=pl.lit(NAN))
    differences = tables["differences"].with_columns(lower=pl.lit(NAN), upper=pl.lit(NAN))
    _, parsed = make(tables | {"scores": undefined, "differences": differences})
    header, rows = table_of(parsed, "AUROC")
    assert all(re.fullmatch(r"0\.\d{3}", cell) for row in rows for cell in row[1:-2])
    assert parsed.verdicts == []
    assert "its interval" not in parsed.text
    assert "it has no interval" in parsed.text
    assert "context helps" not in parsed.text
    assert "context hurts" not in parsed.text
    assert len(header) == 10


def test_nothing_is_fetched_from_elsewhere(whole, tables):
    text, parsed = whole
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    assert parsed.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parsed.addresses)
    assert not re.search(r"url\(|@import", text)
    drawings = [base64.b64decode(address.partition(",")[2]).decode() for address in parsed.addresses]
    assert len(drawings) == 1 + len(page.SHOWN_PROPERTIES) + 2 + 1
    for drawing in drawings:
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', drawing))
        assert "url(http" not in drawing
        assert "subject_id" not in drawing


def test_a_task_that_is_not_estimable_says_why(whole, tables):
    _, parsed = whole
    assert "never is not estimable: one class only in train and held_out." in parsed.text
    assert "stay is not estimable" not in parsed.text
    (labels,) = [t for t in parsed.tables if t[0][0] == "task"]
    assert labels[0] == ["task", "train", "tuning", "held_out", "note"]
    of_tasks = {row[0]: row[1:] for row in labels[2:]}
    assert of_tasks["never"] == [*["70", "60", "0", "0"] * 3, "one class only in train and held_out"]
    assert of_tasks["stay"] == [*["400", "300", "40", "35"] * 3, ""]
    assert "never" not in [row[0] for row in table_of(parsed, "AUROC")[1]]


def test_what_was_left_out_is_told_of_the_tasks_that_have_some(whole, make, tables):
    _, parsed = whole
    assert table_of(parsed, "labels of") == (
        ["labels of", "left out"],
        [["never", "1,234 given twice; <10 in an unknown unit"]],
    )
    _, parsed = make(tables | {"labels": tables["labels"].with_columns(left_out=pl.lit(""))})
    assert "What was left out" not in parsed.text


def test_masked_counts_stay_masked(make):
    counts = {"n": "41", "n_positive": "<10", "n_subjects": ">=10", "n_positive_subjects": "<10"}
    masked = study_tables(grid(["gpt"], [64, 512]), ["macro", "stay"], **counts)
    masked["models"] = masked["models"].with_columns(subjects=pl.lit("<10"))
    masked["perplexity"] = masked["perplexity"].with_columns(n_subjects=pl.lit("<10"))
    _, parsed = make(masked, minimum_count=10)
    for name in ("AUROC", "AUPRC", "Brier score"):
        assert [row[-2:] for row in table_of(parsed, name)[1]] == [["41≥10", "<10<10"]] * 2
    (labels,) = [t for t in parsed.tables if t[0][0] == "task"]
    assert labels[2][1:] == [*["41", "≥10", "<10", "<10"] * 3, ""]
    header, rows = table_of(parsed, "model")
    assert {row[header.index("subjects seen")] for row in rows} == {"<10"}
    assert "Counts under 10 are shown as “<10”; one that would give such a count away" in parsed.text


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"simulate": {"subjects": 150, "seed": 1}}, "simulated cohort with a planted cause"),
        ({"source": {"format": "omop", "folder": "/data/clinic-cdm/"}}, "data: clinic-cdm (omop)"),
        ({"source": None}, "data: cohort"),
    ],
)
def test_the_data_are_named(make, tables, study, said):
    _, parsed = make(tables, **study)
    assert said in parsed.text


def test_names_are_escaped(make, tables):
    text, parsed = make(tables, name="<script>alert(1)</script>")
    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text
    assert "a<b>c&d" in parsed.text
    assert "a<b>c" not in text
    assert "a&lt;b&gt;c&amp;d" in text


def test_the_sentences_are_those_of_the_tables(whole, tables):
    _, parsed = whole
    sentences = task_sentences(tables)
    assert list(sentences) == ["mean over tasks", "stay", "a<b>c&d"]
    for task, sentence in sentences.items():
        assert "best model mamba-tiny-512" in sentence
        assert "no difference by context can be told for GPT and Mamba" in sentence
        assert f"{task} : {sentence}." in parsed.text


def test_settings_and_sources_are_stated(whole, tables):
    _, parsed = whole
    for words in (
        "90 % intervals from 1,234 patient-level bootstrap draws",
        "2,000 subjects · 123,456 events · 4 models · 3 tasks",
        "data: cohort",
        "vocabulary 4,096",
        "87.6 % of the events",
        "0123456789abcdef probes/gpt-tiny-64",
        "fedcba9876543210 robustness/properties",
    ):
        assert words in parsed.text
    (outcomes,) = [t for t in parsed.tables if t[0][0] == "what became of an event"]
    assert outcomes[1:] == [["a code", "54,321"], ["dropped", "7"]]


def test_the_models_table_holds_the_models(whole, tables):
    _, parsed = whole
    header, rows = table_of(parsed, "model")
    assert [row[0] for row in rows] == tables["models"]["model"].to_list()
    for i, row in enumerate(rows):
        cells = dict(zip(header, row, strict=True))
        assert cells["parameters"] == f"{800_000 + i:,}"
        assert cells["real tokens"] == "98.7 %"
        assert cells["validation loss (nats)"] == f"{4.5 + i / 100:.3f}"


def test_one_task_has_its_own_quarters_and_missing_perplexities_are_told(make, tables):
    """One task, and timelines too short for a bin of positions."""
    one = {
        "scores": tables["scores"].filter(pl.col("task") == "stay"),
        "strata": tables["strata"].filter(pl.col("task") == "stay"),
        "perplexity": tables["perplexity"].clear(),
    }
    _, parsed = make(tables | one)
    assert "No bin of positions holds enough tokens" in parsed.text
    assert len([tag for tag in parsed.tags if tag == "img"]) == 2 + len(page.SHOWN_PROPERTIES)
    assert ", stay); the interval excludes 0" in parsed.text


def test_without_quarters_the_page_says_so(make, tables):
    _, parsed = make(tables | {"strata": tables["strata"].clear()})
    assert "No task is estimable, so there are no scores by quarter." in parsed.text


def test_without_any_score_the_labels_say_why(make, tables):
    """Every task has one class only: no scores, no differences, no strata."""
    empty = {name: tables[name].clear() for name in ("scores", "differences", "strata")}
    labels = tables["labels"].filter(pl.col("task") == "never")
    _, parsed = make(tables | empty | {"labels": labels})
    assert "never is not estimable: one class only in train and held_out." in parsed.text
    assert len([tag for tag in parsed.tags if tag == "img"]) == 3


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_table_names_the_verb_that_makes_it(tmp_path, tables, name):
    paths = write_study(tmp_path / "study", tables)
    (paths["folder"] / f"{name}.csv").unlink()
    verb = "robustness" if name in ("strata", "perplexity") else "score"
    with pytest.raises(InputError) as caught:
        write_report(**paths, study=STUDY, out=tmp_path / "out" / "index.html")
    assert str(caught.value) == f"{paths['folder'] / name}.csv is missing. Run `ehrctx {verb}` first."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "verb"), [("provenance.json", "score"), ("robustness.json", "robustness"), ("summary.json", "check")]
)
def test_a_missing_file_beside_the_tables_names_the_verb_that_makes_it(undrawn, tmp_path, tables, file, verb):
    paths = write_study(tmp_path / "study", tables)
    (paths["summary_file"] if verb == "check" else paths["folder"] / file).unlink()
    study = STUDY | {"privacy": {"minimum_count": 1}}
    with pytest.raises(InputError, match=f"ehrctx {verb}"):
        write_report(**paths, study=study, out=tmp_path / "index.html")


def test_a_failure_keeps_the_old_page(undrawn, tmp_path, tables, monkeypatch):
    paths = write_study(tmp_path / "study", tables)
    out = tmp_path / "out" / "index.html"
    out.parent.mkdir()
    out.write_text("old")

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(page, "validation_curves", fail)
    with pytest.raises(RuntimeError):
        write_report(**paths, study=STUDY | {"privacy": {"minimum_count": 1}}, out=out)
    assert out.read_text() == "old"
    assert [p.name for p in out.parent.iterdir()] == ["index.html"]


def test_masked_counts_are_read_as_text_and_numbers_as_numbers(tmp_path, tables):
    paths = write_study(tmp_path / "study", tables | {"scores": tables["scores"].with_columns(n=pl.lit("<10"))})
    read = read_tables(paths["folder"])
    assert set(read) == set(TABLES)
    assert read["scores"]["n"].unique().to_list() == ["<10"]
    assert read["labels"]["n"].unique().sort().to_list() == ["400", "70"]
    for name in ("scores", "differences", "strata"):
        assert all(read[name].schema[c] == pl.Float64 for c in ("value", "lower", "upper"))
        assert all(read[name].schema[c] == pl.String for c in COUNTS)


def test_the_same_tables_give_the_same_page(undrawn, tmp_path, tables, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.setattr(page, "score_by_context", lambda *_: validation_curves(tables["curves"]))
    paths = write_study(tmp_path / "study", tables)
    for out in ("first.html", "second.html"):
        write_report(**paths, study=STUDY | {"privacy": {"minimum_count": 1}}, out=tmp_path / out)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()
