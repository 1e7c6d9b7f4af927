"""Tokenizing in parts, as a cluster does it: the same folder, to the byte, in any division and order."""

import json

import polars as pl
import pytest
import yaml

from ehrctx.errors import InputError
from ehrctx.events import pieces
from ehrctx.timelines import build as building
from ehrctx.timelines import parts as parted
from ehrctx.timelines.build import Existing, build_timelines
from ehrctx.timelines.parts import count_part, encode_part, fit_parts, gather_parts, part_of

SPECS = {
    "clmbr": {"bins": 4, "vocabulary_size": 40},
    "times": {"bins": 4, "time_tokens": {}, "visit_tokens": True, "age_bands": [18]},
    "words": {"descriptions": True, "values": "separate", "bins": 3, "vocabulary_size": 80},
}


@pytest.fixture
def source(tmp_path, write_meds, random_events, monkeypatch):
    """Arguments (data, profile, splits) of a data set in eight pieces or so."""
    for module in (building, parted):
        monkeypatch.setattr(module, "pieces_of", lambda dataset: pieces.pieces_of(dataset, rows=60))
    frame = random_events(5, subjects=30)
    write_meds(
        tmp_path / "events", {"a": frame.filter(frame["subject_id"] > 20), "b": frame.filter(frame["subject_id"] <= 20)}
    )
    for file in sorted((tmp_path / "events" / "data").glob("*.parquet")):
        pl.read_parquet(file).write_parquet(file, row_group_size=25)
    splits = {s: ("train", "train", "tuning", "held_out")[s % 4] for s in range(1, 31)}
    write_meds(tmp_path / "events", {}, splits)
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"name": "p", "unit_column": "unit", "admission": ["C0"]}))
    splits_file = tmp_path / "events" / "metadata" / "subject_splits.parquet"
    return tmp_path / "events", str(tmp_path / "profile.yaml"), splits_file


def in_parts(source, tokenizer, out, n, order, existing=None):
    counted = {}
    for i in order:
        counted[i] = out / f"counted_{i}"
        count_part(*source, f"{i}-of-{n}", counted[i], threads=1 + i % 2)
    fit_parts(*source, tokenizer, list(counted.values()), out / "vocabulary", existing)
    encoded = []
    for i in reversed(order):
        encoded.append(out / f"encoded_{i}")
        encode_part(*source, counted[i], out / "vocabulary", encoded[-1], threads=2)
    gather_parts(*source, out / "vocabulary", encoded, out / "timelines")
    return out / "timelines"


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", SPECS)
def test_any_division_gives_the_folder_of_tokenize(source, tmp_path, name):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"name": name, **SPECS[name]}))
    tokenizer = str(tmp_path / "spec.yaml")
    build_timelines(*source, tokenizer, tmp_path / "whole")
    expected = bytes_of(tmp_path / "whole")
    assert len(expected) == 9
    for n, order in ((3, [2, 3, 1]), (40, [*range(40, 0, -1)])):  # of which most hold nothing
        (tmp_path / f"in_{n}").mkdir()
        assert bytes_of(in_parts(source, tokenizer, tmp_path / f"in_{n}", n, order)) == expected


def test_an_existing_vocabulary_in_parts(source, tmp_path):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"name": "few", "vocabulary_size": 20, "bins": 2}))
    build_timelines(*source, str(tmp_path / "spec.yaml"), tmp_path / "theirs")
    existing = Existing(tmp_path / "theirs", adapts=True, extend=7)
    build_timelines(*source, None, tmp_path / "whole", existing=existing)
    (tmp_path / "parts").mkdir()
    assert bytes_of(in_parts(source, None, tmp_path / "parts", 2, [1, 2], existing)) == bytes_of(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "manifest.json").read_text())["facts"]["added_tokens"] == 7


def test_all_parts_of_one_division_are_needed(source, tmp_path):
    for part in ("1-of-3", "2-of-3", "3-of-3", "1-of-2"):
        count_part(*source, part, tmp_path / part, 1)
    for given in (["1-of-3", "2-of-3"], ["1-of-3", "2-of-3", "3-of-3", "1-of-2"], ["1-of-2", "2-of-3"]):
        with pytest.raises(InputError, match="Give all parts of the same division"):
            fit_parts(*source, "clmbr", [tmp_path / part for part in given], tmp_path / "vocabulary")
        assert not (tmp_path / "vocabulary").exists()


@pytest.mark.parametrize("part", ["0-of-3", "4-of-3", "1of3", "", "one-of-three", "1-of-0"])
def test_what_is_no_part(part):
    with pytest.raises(InputError, match="is not a part such as 2-of-8"):
        part_of([], part)
