"""Rare and unseen codes become their ancestors, spelled out."""

from datetime import datetime

import polars as pl
import pytest
from said import entries, outcomes, said

DAY = datetime(2020, 1, 1)
SPLITS = {1: "train", 2: "held_out"}
SPEC = {"ranking": "count", "weights": "event", "bins": 2, "roll_up": {"fewer_than": 3}}


def hierarchy(**parents):
    """`__` in a name stands for /."""
    rows = [(code.replace("__", "/"), None, above) for code, above in parents.items()]
    schema = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.fixture
def rolled(build, events_frame):
    """A function: {train code: events}, the held-out subject's codes and the hierarchy -> entries and what is said."""

    def made(train, other, codes, **spec):
        rows = [(1, DAY, code) for code, n in train.items() for _ in range(n)] + [(2, DAY, code) for code in other]
        store = build(events_frame(rows), SPLITS, SPEC | spec, codes=codes)
        return {name: count for name, _, count in entries(store)}, said(store, 2), outcomes(store)

    return made


def test_rare_codes_become_their_nearest_ancestor_that_is_not_rare(rolled):
    codes = hierarchy(a=["A"], b=["B"], A=["TOP"], B=["TOP"])
    counts, found, met = rolled({"a": 2, "b": 1, "common": 3, "A": 1}, ["a", "b", "A", "common", "TOP", "new"], codes)
    # A has three with what lies below it; B has one, TOP all four
    assert counts == {"A": 3, "common": 3, "TOP": 1}
    assert found == ["A", "TOP", "A", "common", "TOP"]
    assert met == {"code": 1 + 3 + 3, "rolled up": 3 + 2, "out of vocabulary": 1}


def test_a_rare_code_that_others_make_common_stays(rolled):
    """A token is told by what is counted for it."""
    codes = hierarchy(a=["A"], A=["TOP"])
    counts, found, _ = rolled({"a": 2, "A": 2, "TOP": 9}, ["a", "A"], codes)
    assert counts == {"A": 4, "TOP": 9}
    assert found == ["A", "A"]


def test_a_rare_code_without_such_an_ancestor_stays(rolled):
    codes = hierarchy(a=["A"], A=["TOP"])
    counts, found, met = rolled({"a": 1, "b": 1}, ["a", "b"], codes)
    assert counts == {"a": 1, "b": 1}
    assert found == ["a", "b"]
    assert met == {"code": 4}


def test_values_and_texts_of_rare_codes_are_left(build, events_frame):
    rows = [(1, DAY, "a", 1.0, None, "mg"), (1, DAY, "a", None, "low"), (1, DAY, "A", 5.0, None, "mg"), (1, DAY, "A")]
    rows += [(2, DAY, "a", 1.0, None, "mg"), (2, DAY, "a", None, "low"), (2, DAY, "A", 5.0, None, "mg")]
    store = build(events_frame(rows), SPLITS, SPEC, codes=hierarchy(a=["A"]))
    assert {name: count for name, _, count in entries(store)} == {"A": 3, "A mg [-inf, inf)": 1}
    assert said(store, 2) == ["A", "A", "A mg [-inf, inf)"]
    separate = build(events_frame(rows), SPLITS, SPEC | {"values": "separate"}, codes=hierarchy(a=["A"]))
    assert said(separate, 2) == ["A", "A", "A", "[Q1]"]  # the quantile of another code says nothing of A


def test_the_nearer_then_the_commoner_then_the_first_by_name(rolled):
    far = hierarchy(a=["B", "C"], B=["A"], C=[])
    assert rolled({"a": 1, "A": 90, "B": 3, "C": 4}, ["a"], far)[1] == ["C"]
    assert rolled({"a": 1, "A": 90, "B": 5, "C": 4}, ["a"], far)[1] == ["B"]
    assert rolled({"a": 1, "A": 90, "B": 4, "C": 4}, ["a"], far)[1] == ["B"]
    assert rolled({"a": 1, "A": 90, "B": 4, "C": 4}, ["a"], hierarchy(a=["C", "B"]))[1] == ["B"]


def test_unseen_codes_become_their_nearest_ancestor_with_a_token(rolled):
    codes = hierarchy(new=["newer"], newer=["A", "B"], A=[], B=[])
    _, found, met = rolled({"A": 3, "B": 5}, ["new", "newer", "else"], codes, unknown="unk")
    assert found == ["B", "B", "[UNK]"]
    assert met == {"code": 8, "rolled up": 2, "unknown token": 1}


def test_without_roll_up_parents_mean_nothing(rolled):
    _, found, met = rolled({"A": 3}, ["a"], hierarchy(a=["A"]), roll_up=None)
    assert found == []
    assert met == {"code": 3, "out of vocabulary": 1}


def test_cycles_end(rolled):
    codes = hierarchy(a=["b", "a"], b=["c"], c=["a", "TOP"], lonely=["lonely"])
    counts, found, _ = rolled({"a": 1, "b": 1, "TOP": 5, "lonely": 1}, ["a", "b", "c", "lonely"], codes)
    assert counts == {"TOP": 7, "lonely": 1}
    assert found == ["TOP", "TOP", "TOP", "lonely"]
    # together they are common: the first takes all
    counts, found, _ = rolled({"a": 2, "b": 2}, ["a", "b"], hierarchy(a=["b"], b=["a"]))
    assert counts == {"a": 2, "b": 2}
    assert found == ["a", "b"]


@pytest.mark.parametrize("codes", [None, hierarchy(other=["x"]), hierarchy(ICD10CM__I21=["HEART"])])
def test_icd_codes_become_their_prefixes(rolled, codes):
    """With and without dots, and whether or not codes.parquet tells of them."""
    train = {"ICD10CM/I21.41": 1, "ICD10CM/I21.42": 2, "ICD10CM/I2199": 1, "ICD10CM/I21": 2, "ICD9CM/4101": 1}
    other = ["ICD10CM/I21.49", "ICD10CM/I21.4", "ICD10CM/I210", "ICD9CM/410", "ICD10CM/I2", "I21.4", "ICD10PCS/I21.4"]
    counts, found, met = rolled(train, other, codes)
    assert counts == {"ICD10CM/I21.4": 3, "ICD10CM/I21": 3, "ICD9CM/4101": 1}
    assert found == ["ICD10CM/I21.4", "ICD10CM/I21.4", "ICD10CM/I21"]
    assert met["out of vocabulary"] == 4


def test_icd_prefixes_lead_on_through_parents(rolled):
    codes = hierarchy(local=["ICD9CM/410.11"], ICD9CM__410=["HEART"])
    counts, found, _ = rolled({"local": 1, "HEART": 2}, ["ICD9CM/410.2", "local"], codes)
    assert counts == {"HEART": 3}
    assert found == ["HEART", "HEART"]
