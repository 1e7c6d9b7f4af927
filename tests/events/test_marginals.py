"""Marginals of a data set whose every number is counted by hand, and of the cohorts that are put side by side."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.events.marginals import GAPS, marginals_of
from ehrctx.report.marginals import marginals_figure
from ehrctx.study import Privacy


@pytest.fixture
def two_subjects(tmp_path, write_meds):
    day = lambda *at: datetime(2020, 1, *at)  # noqa: E731
    rows = [
        (1, None, "GENDER//F", None, None, None),
        (1, datetime(1960, 1, 1), "MEDS_BIRTH", None, None, None),
        (1, day(1), "HOSPITAL_ADMISSION//EMERGENCY", None, None, 0),
        (1, day(1), "LOINC/2951-2", 140.0, None, 0),
        (1, day(1, 0, 30), "LOINC/2951-2", 141.0, None, 0),
        (1, day(2), "HOSPITAL_DISCHARGE//HOME", None, None, 0),
        (1, datetime(2022, 1, 1), "OUTPATIENT_VISIT", None, None, None),
        (2, day(5), "OUTPATIENT_VISIT", None, "by phone", None),
    ]
    frame = pl.DataFrame(
        rows,
        schema={
            "subject_id": pl.Int64,
            "time": pl.Datetime("us"),
            "code": pl.String,
            "numeric_value": pl.Float32,
            "text_value": pl.String,
            "visit_id": pl.Int64,
        },
        orient="row",
    ).with_columns(unit=pl.lit(None, pl.String))
    return write_meds(tmp_path / "data", {"0": frame.head(7), "1": frame.tail(1)})


def test_every_number_is_counted(two_subjects, repository):
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    found = marginals_of(two_subjects, profile, "two", Privacy(minimum_count=1))
    value = dict(found.table.select("quantity", "value").iter_rows())
    assert (value["subjects"], value["events"], value["codes"]) == (2, 7, 5)  # the birth is none
    assert value["events per subject, median"] == 3.5
    assert value["events per subject, 25th percentile"] == np.quantile([1, 6], 0.25)
    assert value["share of events with a number"] == pytest.approx(2 / 7)
    assert value["share of events with a text"] == pytest.approx(1 / 7)
    assert value["events per hospital stay, median"] == 4
    assert value["events of one moment, 90th percentile"] == pytest.approx(np.quantile([2, 1, 1, 1, 1], 0.9))
    # 0 s, half an hour, 23.5 hours, two years
    assert found.gaps.tolist() == [1, 1, 1, 0, 0, 1]
    assert len(found.gaps) == len(GAPS) + 1
    assert value["share of gaps: longer"] == 0.25
    assert found.lengths.tolist() == [1, 6]
    assert found.codes.filter(code="OUTPATIENT_VISIT").select("share", "subjects").row(0) == pytest.approx((2 / 7, 1.0))


def test_codes_of_few_subjects_are_not_named(two_subjects, repository):
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    found = marginals_of(two_subjects, profile, "two", Privacy(minimum_count=2))
    assert found.codes["code"].to_list() == ["OUTPATIENT_VISIT"]


def test_the_figure_has_every_data_set(two_subjects, repository):
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    both = [marginals_of(two_subjects, profile, name, Privacy(minimum_count=1)) for name in ("mine", "theirs")]
    figure = marginals_figure(both)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mine", "theirs"]
    assert len(figure.axes) == 3


def test_the_command(run, cohort, tmp_path):
    words = [cohort.events, cohort.events, "--profile", "simulated", "--profile", "simulated", "--out", tmp_path / "m"]
    code, out, _ = run("marginals", *words, "--name", "one", "--name", "other")
    assert code == 0
    assert "marginals.svg" in out
    table = pl.read_csv(tmp_path / "m" / "marginals.csv")
    one, other = (table.filter(data=name).drop("data") for name in ("one", "other"))
    assert one.equals(other)
    assert one.filter(quantity="subjects")["value"].item() == 400
    assert {file.name for file in (tmp_path / "m").iterdir()} == {"marginals.csv", "codes.csv", "marginals.svg"}


def test_as_many_profiles_as_data_sets(run, cohort, tmp_path):
    code, _, said = run("marginals", cohort.events, cohort.events, "--profile", "simulated", "--out", tmp_path / "m")
    assert code == 2
    assert "2 data sets have 1 profiles and 2 names" in said
    assert list(tmp_path.iterdir()) == []


def test_the_real_demo(mimic_demo, repository):
    found = marginals_of(mimic_demo, str(repository / "pipelines" / "datasets" / "mimic_iv.yaml"), "demo", Privacy())
    value = dict(found.table.select("quantity", "value").iter_rows())
    assert value["subjects"] == 100
    assert 4_000 < value["events per subject, median"] < 4_300
    assert value["share of events with a number"] == pytest.approx(0.442, abs=0.001)


def test_nothing_to_compare_is_said(write_meds, tmp_path):
    births = pl.DataFrame({"subject_id": [1], "time": [datetime(1990, 1, 1)], "code": ["MEDS_BIRTH"]})
    (tmp_path / "p.yaml").write_text("{name: p}")
    for name, events, words in (
        ("none", births.clear(), "no file in it has rows"),
        ("born", births, "no events but births"),
    ):
        folder = write_meds(tmp_path / name, {"0": events})
        with pytest.raises(InputError, match=words):
            marginals_of(folder, str(tmp_path / "p.yaml"), "x", Privacy())
