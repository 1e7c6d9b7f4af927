"""Another site's vocabulary: which of its codes stand for ours, what is unmapped, and how it grows."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from ehrctx.errors import InputError
from ehrctx.pretrain.start import matched_rows
from ehrctx.study import Privacy
from ehrctx.timelines.adaptation import nearest_known, read_unmapped, read_vocabulary
from ehrctx.timelines.build import Existing, build_timelines
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.store import Timelines

DAY = datetime(2020, 1, 1)


def rows(subject, *events):
    """Events of one subject, an hour apart: code, or (code, value, text, unit)."""
    whole = [(e, None, None, None) if isinstance(e, str) else (*e, *[None] * (4 - len(e))) for e in events]
    return [(subject, DAY + timedelta(hours=i), *event) for i, event in enumerate(whole)]


@pytest.fixture(scope="module")
def theirs(build, events_frame):
    """Timelines of a site that codes in LOINC and ICD10CM."""
    potassium = [("LOINC/2823-3", v, None, "mmol/L") for v in (3.0, 3.5, 4.0, 4.5, 5.0, 6.0)]
    record = [*potassium, "ICD10CM/I10", "ICD10CM/E11", ("LOINC/5804-0", None, "NEG"), "VISIT"]
    frame = events_frame([row for s in range(1, 6) for row in rows(s, *record)])
    described = {"LOINC/2823-3": "Potassium", "ICD10CM/I10": "Essential hypertension", "VISIT": "A visit"}
    codes = pl.DataFrame(
        {"code": list(described), "description": list(described.values()), "parent_codes": [None] * 3},
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    return build(frame, spec={"bins": 3, "vocabulary_size": 60}, codes=codes)


@pytest.fixture(scope="module")
def site(tmp_path_factory, write_meds, events_frame):
    """Where the MEDS events of our site lie, which codes otherwise."""
    root = tmp_path_factory.mktemp("site")
    local = [("LAB//K", 3.2, None, "mmol/L"), ("LAB//K", 5.5, None, "mmol/L"), ("LAB//K", 40.0, None, "mg/L")]
    record = [*local, "DX//I10", "ICD10CM/E11.65", ("LAB//PROT", None, "NEG"), "come", "OURS", "OURS", "OURS", "RARE"]
    frame = events_frame([row for s in range(1, 6) for row in rows(s, *record)])
    codes = pl.DataFrame(
        {
            "code": ["LAB//K", "DX//I10", "LAB//PROT", "come", "OURS"],
            "description": ["Kalium", "essential  HYPERTENSION.", None, "a visit", "Ours alone"],
            "parent_codes": [["LOINC/2823-3"], None, ["LOINC/5804-0"], None, None],
        },
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    splits = dict(zip(range(1, 6), ("train", "train", "train", "tuning", "held_out"), strict=True))
    write_meds(root, {"0": frame}, splits, codes)
    (root / "profile.yaml").write_text(yaml.safe_dump({"name": "p", "unit_column": "unit"}))
    return root


@pytest.fixture(scope="module")
def tokenized(site, theirs, tmp_path_factory):
    """A function: options of Existing -> the folder of our timelines."""

    def made(adapts, extend, folder=theirs, tokenizer=None):
        out = tmp_path_factory.mktemp("ours") / "timelines"
        splits = site / "metadata" / "subject_splits.parquet"
        build_timelines(site, str(site / "profile.yaml"), splits, tokenizer, out, 1, Existing(folder, adapts, extend))
        return out

    return made


def read(folder, subject=1):
    """(code, lower, text) of each token of a subject."""
    store, vocabulary = Timelines.open(folder), pl.read_parquet(folder / "vocabulary.parquet").to_dicts()
    (position,) = store.positions_of(np.array([subject]))
    own = store.tokens[store.offsets[position] : store.offsets[position + 1]]
    return [(vocabulary[t]["code"], vocabulary[t]["lower"], vocabulary[t]["text"]) for t in own.tolist()]


def test_codes_are_read_as_their_parents_and_by_their_descriptions(tokenized, theirs):
    folder = tokenized(adapts=True, extend=0)
    found = read(folder)
    edges = sorted(pl.read_parquet(theirs / "bins.parquet").filter(code="LOINC/2823-3")["lower"].to_list())
    low, _, high = edges
    assert found == [
        ("LOINC/2823-3", low, None),  # 3.2 mmol/L in their bins
        ("LOINC/2823-3", high, None),
        ("LOINC/2823-3", None, None),  # a unit of which they have no values
        ("ICD10CM/I10", None, None),  # by description, whatever its case
        ("ICD10CM/E11", None, None),  # the category of E11.65
        ("LOINC/5804-0", None, "NEG"),
        ("VISIT", None, None),
    ]
    assert pl.read_parquet(folder / "vocabulary.parquet").equals(pl.read_parquet(theirs / "vocabulary.parquet"))


def test_what_is_mapped_how_and_how_often_is_written(tokenized):
    folder = tokenized(adapts=True, extend=0)
    mapping = pl.read_parquet(folder / "mapping.parquet")
    assert mapping.select("code", "events", "read_as", "by").rows() == [
        ("LAB//K", 15, "LOINC/2823-3", "parent"),
        ("OURS", 15, None, None),
        ("DX//I10", 5, "ICD10CM/I10", "description"),
        ("ICD10CM/E11.65", 5, "ICD10CM/E11", "ancestor"),
        ("LAB//PROT", 5, "LOINC/5804-0", "parent"),
        ("RARE", 5, None, None),
        ("come", 5, "VISIT", "description"),
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    outcomes = {name: n for name, n in manifest["facts"]["events_by_outcome"].items() if n}
    assert outcomes == {"mapped": 35, "out of vocabulary": 20}
    assert manifest["facts"]["fitted_on"] is None
    assert manifest["settings"]["existing"] == {"adapts": True, "extend": 0}
    assert manifest["inputs"].keys() == {"events", "splits", "vocabulary"}


def test_unmapped_codes_are_listed_unless_few_have_them(tokenized):
    said = read_unmapped(tokenized(adapts=True, extend=0), Privacy())
    assert "2 codes are read as nothing" in said
    assert "15  OURS (Ours alone)" in said
    assert "RARE" not in said
    assert "1 more" in said


def test_without_adaptation_only_equal_codes_are_known(tokenized):
    folder = tokenized(adapts=False, extend=0)
    assert not (folder / "mapping.parquet").exists()
    assert not len(Timelines.open(folder))


def test_the_vocabulary_grows_at_its_end(tokenized, theirs):
    folder = tokenized(adapts=True, extend=20)
    old, new = (pl.read_parquet(f / "vocabulary.parquet") for f in (theirs, folder))
    assert new.head(old.height).equals(old)
    added = new.tail(-old.height)
    assert added["token"].to_list() == list(range(old.height, new.height))
    # every code of ours that they do not have, with bins of its own in each unit
    assert set(added["code"]) == {"LAB//K", "OURS", "DX//I10", "ICD10CM/E11.65", "LAB//PROT", "RARE", "come"}
    token_of = {(r["code"], r["unit"], r["lower"], r["text"]): r["token"] for r in old.to_dicts()}
    their_bins = sorted(lower for code, _, lower, _ in token_of if code == "LOINC/2823-3" and lower is not None)
    initial = {(r["code"], r["unit"], r["lower"], r["text"]): r["initial"] for r in added.to_dicts()}
    assert initial["DX//I10", None, None, None] == token_of["ICD10CM/I10", None, None, None]
    assert initial["LAB//PROT", None, None, "NEG"] == token_of["LOINC/5804-0", None, None, "NEG"]
    assert initial["OURS", None, None, None] is None
    lowest = [t for (code, unit, lower, _), t in initial.items() if (code, unit) == ("LAB//K", "mmol/L") and lower < 5]
    assert lowest == [token_of["LOINC/2823-3", "mmol/L", their_bins[0], None]]
    found = read(folder)
    assert [code for code, _, _ in found[:3]] == ["LAB//K"] * 3
    assert found[0][1] != found[1][1]
    assert json.loads((folder / "manifest.json").read_text())["facts"]["added_tokens"] == added.height


def test_few_new_tokens_are_those_of_the_best_entries(tokenized, theirs):
    folder = tokenized(adapts=True, extend=1)
    (code,) = pl.read_parquet(folder / "vocabulary.parquet").tail(1)["code"].to_list()
    assert code == "OURS"  # three events of each subject in one entry
    assert read(folder)[-3:] == [("OURS", None, None)] * 3


def test_a_model_begins_new_tokens_with_what_stood_for_them(tokenized, theirs):
    folder = tokenized(adapts=True, extend=20)
    rows_of = matched_rows(theirs / "vocabulary.parquet", folder / "vocabulary.parquet", 10_000)
    new = pl.read_parquet(folder / "vocabulary.parquet")
    n_old = pl.read_parquet(theirs / "vocabulary.parquet").height
    assert rows_of[:n_old].tolist() == list(range(n_old))
    expected = new["initial"].cast(pl.Int64).fill_null(-1).to_list()[n_old:]
    assert rows_of[n_old:].tolist() == expected
    assert max(expected) > 0
    table = torch.arange(n_old)
    kept = np.flatnonzero(rows_of >= 0)
    assert table[rows_of[kept]].tolist() == rows_of[kept].tolist()


def test_an_exported_vocabulary_serves_without_bins(tokenized, theirs, tmp_path):
    exported = pl.read_parquet(theirs / "vocabulary.parquet").drop("weight", "count", "initial")
    exported.write_parquet(tmp_path / "vocabulary.parquet")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"name": "t", "bins": 3, "vocabulary_size": 60}))
    folder = tokenized(adapts=True, extend=0, folder=tmp_path, tokenizer=str(tmp_path / "spec.yaml"))
    assert read(folder) == read(tokenized(adapts=True, extend=0))


def test_folders_that_are_no_vocabulary(theirs, tmp_path):
    spec = TokenizerSpec(name="t", values="separate", bins=3)
    with pytest.raises(InputError, match="holds no vocabulary"):
        read_vocabulary(tmp_path, spec)
    table = pl.read_parquet(theirs / "vocabulary.parquet")
    table.write_parquet(tmp_path / "vocabulary.parquet")
    with pytest.raises(InputError, match=r"has no bins\.parquet"):
        read_vocabulary(tmp_path, spec)
    table.reverse().write_parquet(tmp_path / "vocabulary.parquet")
    with pytest.raises(InputError, match="numbered from 0"):
        read_vocabulary(tmp_path, spec)


def test_of_several_as_near_the_commonest_is_taken():
    tokens = pl.DataFrame(
        {
            "kind": ["code"] * 4,
            "code": ["A", "B", "C", "D"],
            "count": [1, 5, 5, 100],
            "description": ["x", "y", "z", "same"],
        }
    )
    parents = pl.DataFrame({"code": ["new", "new", "new", "mid"], "parent": ["A", "C", "B", "D"]})
    described = pl.DataFrame({"code": ["new", "other"], "description": ["same", "Same!"]})
    known = nearest_known(pl.Series(["new", "mid", "other", "A", "lost"]), tokens, described, parents)
    # a parent goes before an equal description; of the two commonest the first by name
    assert known.rows() == [("mid", "D", "parent"), ("new", "B", "parent"), ("other", "D", "description")]


def test_words_go_together(run, site, theirs, tmp_path):
    splits = site / "metadata" / "subject_splits.parquet"
    words = ["tokenize", site, "--splits", splits, "--profile", site / "profile.yaml", "--out", tmp_path / "out"]
    code, _, said = run(*words, "--adapt")
    assert code == 2
    assert "--adapt and --extend go with --vocabulary" in said
    code, out, said = run(*words, "--vocabulary", theirs, "--adapt")
    assert (code, "codes are read as nothing" in out) == (0, True)
    assert "warning: 63.6% of the events have a token of their meaning" in said
    assert "--extend" in said
