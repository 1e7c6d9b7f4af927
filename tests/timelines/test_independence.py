"""The same events give the same files, to the byte, however they were cut into shards, pieces, parts and row groups."""

import json
import random
from functools import partial

import polars as pl
import pytest
import yaml
from random_records import PROFILE, SPLITS, codes_frame, random_records

from ehrctx.errors import InputError
from ehrctx.events.pieces import pieces_of
from ehrctx.timelines import build, parts, statistics

FILES = {
    "tokens.npy", "seconds.npy", "event.npy", "offsets.npy", "subjects.npy", "vocabulary.parquet", "bins.parquet",
    "coverage.parquet",
}  # fmt: skip
SPECS = {
    "values and visits": {"vocabulary_size": 250, "bins": 5, "visit_tokens": True, "time_tokens": {}},
    "rolled up": {"vocabulary_size": 170, "values": "separate", "roll_up": {"fewer_than": 6}, "unknown": "unk"},
    "word pieces": {"vocabulary_size": 300, "values": "separate", "descriptions": True},
    "by event": {"vocabulary_size": 180, "ranking": "count", "weights": "event"},
}


def content(store):
    """All files, and of the manifest what does not say where the events came from."""
    manifest = json.loads((store / "manifest.json").read_text())
    files = {file.name: file.read_bytes() for file in store.iterdir() if file.name != "manifest.json"}
    assert set(files) == FILES
    return files | {"facts": manifest["facts"], "settings": manifest["settings"]}


class Written:
    """One data set, its shards written as asked, and what is made of it."""

    def __init__(self, folder, write_meds, spec, shards, row_group_size=None):
        self.events, self.out = folder / "events", folder / "timelines"
        write_meds(self.events, shards, SPLITS, codes_frame())
        for name, frame in shards.items():
            if row_group_size:
                frame.write_parquet(self.events / "data" / f"{name}.parquet", row_group_size=row_group_size)
        self.splits = self.events / "metadata" / "subject_splits.parquet"
        self.profile, self.spec = folder / "profile.yaml", folder / "spec.yaml"
        self.profile.write_text(yaml.safe_dump({"name": "p"} | PROFILE))
        self.spec.write_text(yaml.safe_dump({"name": "t"} | spec))

    def content(self, threads=1):
        given = (self.events, str(self.profile), self.splits, str(self.spec), self.out)
        build.build_timelines(*given, threads)
        return content(self.out)


def shuffled(raw, names, seed):
    """The subjects in other shards and in another order, none in the last of these."""
    draw = random.Random(seed)
    subjects = raw.partition_by("subject_id", maintain_order=True)
    draw.shuffle(subjects)
    kept = {name: [] for name in names}
    for one in subjects:
        kept[draw.choice(names[:-1])].append(one)
    return {name: pl.concat([raw.clear(), *own]) for name, own in kept.items()}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@pytest.fixture
def pieces(monkeypatch):
    """A function: from now on pieces have about so many rows."""

    def rows(n):
        for module in (build, parts):
            monkeypatch.setattr(module, "pieces_of", partial(pieces_of, rows=n))

    return rows


def test_however_the_events_are_cut(tmp_path, write_meds, spec, pieces, monkeypatch):
    raw = random_records(5, subjects=40)
    one = Written(tmp_path / "one", write_meds, spec, {"0": raw}).content()
    assert one["facts"]["tokens"] > 500
    many = shuffled(raw, ["b/1", "a/0", "c", "empty"], 0)
    assert Written(tmp_path / "many", write_meds, spec, many).content() == one
    small = Written(tmp_path / "small", write_meds, spec, {"0": raw}, row_group_size=10)
    assert small.content() == one
    pieces(50)
    for number, (shards, threads) in enumerate([({"0": raw}, 2), (many, 1), (many, 2)]):
        cut = Written(tmp_path / f"cut {number}", write_meds, spec, shards, row_group_size=10)
        assert len(build.pieces_of(build.open_dataset(cut.events))) > 8
        # merged again and again, where otherwise all pieces wait
        monkeypatch.setattr(statistics.Accumulator, "ROWS", 100)
        assert cut.content(threads) == one


def test_however_the_events_are_cut_where_values_are_too_many(tmp_path, write_meds, pieces, monkeypatch):
    """Cells are coarsened, in one piece as in many."""
    spec = {"bins": 5, "vocabulary_size": 250}
    exact = Written(tmp_path / "exact", write_meds, spec, {"0": random_records(6, subjects=40)}).content()
    monkeypatch.setattr(statistics, "MOST_CELLS", 6)
    raw = random_records(6, subjects=40)
    one = Written(tmp_path / "one", write_meds, spec, {"0": raw}).content()
    assert one["facts"]["largest_quantile_error"] > 0 == exact["facts"]["largest_quantile_error"]
    assert one["bins.parquet"] != exact["bins.parquet"]
    pieces(50)
    monkeypatch.setattr(statistics.Accumulator, "ROWS", 100)
    many = Written(tmp_path / "many", write_meds, spec, shuffled(raw, ["b", "a", "c"], 1), row_group_size=10)
    assert many.content(2) == one


@pytest.mark.parametrize("of", [1, 3])
def test_in_parts_as_in_one(tmp_path, write_meds, spec, pieces, of):
    """As jobs of a cluster make it."""
    raw = random_records(7, subjects=30)
    data = Written(tmp_path / "data", write_meds, spec, shuffled(raw, ["b", "a", "c"], 2), row_group_size=10)
    pieces(50)
    whole = data.content(2)
    given = (data.events, str(data.profile), data.splits)
    counted, encoded = ([tmp_path / f"{step} {i}" for i in range(of)] for step in ("counted", "encoded"))
    for i, folder in enumerate(counted):
        parts.count_part(*given, f"{i + 1}-of-{of}", folder, 1)
    # in whatever order they are named
    parts.fit_parts(*given, str(data.spec), counted[::-1], tmp_path / "vocabulary")
    for source, folder in zip(counted, encoded, strict=True):
        parts.encode_part(*given, source, tmp_path / "vocabulary", folder, 1)
    parts.gather_parts(*given, tmp_path / "vocabulary", encoded[::-1], tmp_path / "gathered")
    assert content(tmp_path / "gathered") == whole


def test_a_subject_in_two_pieces_is_refused(tmp_path, write_meds, pieces):
    """Each piece by itself is in order."""
    secret = 987654321
    raw = random_records(8, subjects=20).with_columns(pl.col("subject_id").cast(pl.Int64) + secret)
    twice = pl.concat([raw, raw.filter(pl.col("subject_id") == raw["subject_id"][0])])
    splits = dict.fromkeys(raw["subject_id"].unique().to_list(), "train")
    data = Written(tmp_path / "data", write_meds, SPECS["by event"], {"0": twice}, row_group_size=10)
    write_meds(data.events, {}, splits)
    pieces(50)
    with pytest.raises(
        InputError, match=r"^data/0\.parquet: 1 of its subjects are in an earlier file too, or apart"
    ) as caught:
        data.content()
    assert str(secret)[:6] not in str(caught.value)
    pieces(10**6)
    with pytest.raises(InputError, match=rf"^data/0\.parquet, row {raw.height + 1}: a subject's rows are not together"):
        data.content()
