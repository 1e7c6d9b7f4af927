"""`ehrctx show`: a timeline in words; what it says is what the record says."""

import math
from datetime import datetime, timedelta

import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.timelines.show import lines_of, meaning, show
from ehrctx.timelines.store import Timelines

BIRTH = datetime(1980, 5, 1)
NOW = datetime(2020, 1, 1, 8)
RECORD = [
    (1, None, "GENDER//F", None, None, None),
    (1, BIRTH, "MEDS_BIRTH", None, None, None),
    (1, NOW, "ADMISSION", None, None, None),
    (1, NOW + timedelta(minutes=5), "LAB//NA", 131.0, None, "mmol/L"),
    (1, NOW + timedelta(minutes=5), "LAB//NIT", None, "NEG", None),
    (1, NOW + timedelta(days=9), "DISCHARGE", None, None, None),
    (1, NOW + timedelta(days=9), "LAB//NA", 145.0, None, "mmol/L"),
]
SPEC = {"bins": 2, "time_tokens": {}, "visit_tokens": True, "vocabulary_size": 60}
PROFILE = {"admission": ["ADMISSION"], "discharge": ["DISCHARGE"]}


@pytest.fixture(scope="module")
def timelines(build, events_frame):
    codes = pl.DataFrame(
        {"code": ["LAB//NA"], "description": ["Sodium"], "parent_codes": [None]},
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    return build(events_frame(RECORD), {1: "train"}, SPEC, PROFILE, codes)


def test_a_timeline_in_words(timelines):
    text = show(timelines, 1, 100)
    said = [line.split("  ") for line in text.splitlines()]
    told = [(line[:19].strip(), line.split()[-1] if "[" in line else line[35:]) for line in text.splitlines()[1:]]
    assert said[0][0] == "time"
    meanings = [line[text.splitlines()[0].index("meaning") :] for line in text.splitlines()[1:]]
    assert meanings == [
        "GENDER//F",
        "MEDS_BIRTH",
        "[LONG TERM]: from 365 days",
        "[VISIT START]",
        "ADMISSION",
        "LAB//NA (Sodium): below 145 mmol/L",
        "LAB//NIT: NEG",
        "[WEEK 1]: from 7 below 14 days",
        "DISCHARGE",
        "[VISIT END]",
        "LAB//NA (Sodium): from 145 mmol/L",
    ]
    assert [time for time, _ in told][:4] == ["", "1980-05-01 00:00:00", "2020-01-01 08:00:00", "2020-01-01 08:00:00"]
    assert told[-1][0] == "2020-01-10 08:00:00"


def test_only_the_first_tokens(timelines):
    text = show(timelines, 1, 3)
    assert text.splitlines()[-1] == "… and 8 tokens more"
    assert len(text.splitlines()) == 5
    assert show(timelines, 1, 11).splitlines() == show(timelines, 1, 10**9).splitlines()


def test_unknown_subject(timelines):
    with pytest.raises(InputError, match="holds no timeline of this subject") as caught:
        show(timelines, 987654, 1)
    assert "987654" not in str(caught.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", [{"bins": 3}, {"bins": 3, "values": "separate", "time_tokens": {}}, {"bins": 0}])
def test_what_is_said_is_what_the_record_says(build, random_events, seed, spec):
    """Back from the words to the events: times to the second, codes, texts and values within the bounds said."""
    raw = random_events(seed, subjects=6, microseconds=True)
    folder = build(raw, spec=spec | {"vocabulary_size": 200})
    store, vocabulary = Timelines.open(folder), pl.read_parquet(folder / "vocabulary.parquet")
    rows = {row["token"]: row for row in vocabulary.to_dicts()}
    n = 0
    for position, subject in enumerate(store.subjects["subject_id"].tolist()):
        events = raw.filter(pl.col("subject_id") == subject).to_dicts()
        born = [e["time"] for e in events if e["code"] == "MEDS_BIRTH"]
        for time, event, token, words in lines_of(store, vocabulary, position, 10**9):
            row, own = rows[int(token)], events[int(event)]
            assert words == meaning(row)
            if own["time"] is None:
                assert time == ""
            else:
                since = datetime.fromisoformat(time) - own["time"]
                assert timedelta(0) <= since < timedelta(seconds=2) or (born and own["time"] < born[0])
            if row["kind"] in ("code", "text", "number"):
                assert row["code"] == own["code"]
                n += 1
            if row["kind"] == "text":
                assert row["text"] == own["text_value"]
            if row["kind"] == "number":
                assert row["lower"] <= own["numeric_value"] < row["upper"]
                assert row["unit"] == own["unit"]
            if row["kind"] == "quantile":
                assert own["numeric_value"] is not None
                assert math.isfinite(own["numeric_value"])
    assert n > 50


def test_no_text_forges_an_event(build, events_frame):
    """Codes, descriptions and texts are written by others: each stays in its own line, and in its own direction."""
    forged = "low\n2020-01-01 09:00:00      9     99  DEATH\x1b[1A\u202e"
    codes = pl.DataFrame(
        {"code": ["LAB//K\t"], "description": ["Potassium\r\u200bx"], "parent_codes": [None]},
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    record = events_frame([(1, BIRTH, "MEDS_BIRTH"), (1, NOW, "LAB//K\t", None, forged)])
    text = show(build(record, {1: "train"}, SPEC, PROFILE, codes), 1, 100)
    assert len(text.splitlines()) == 1 + 3  # the head; birth, gap and result
    assert text.splitlines()[-1].endswith(
        "LAB//K\\t (Potassium\\r\\u200bx): low\\n2020-01-01 09:00:00      9     99  DEATH\\x1b[1A\\u202e"
    )
