"""Codes in words: sentences and their pieces, spelled out and against Hugging Face's own."""

from datetime import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from said import names_of, outcomes, said
from word_pieces_by_hand import greedy_pieces

from ehrctx.timelines.word_pieces import spell

DAY = datetime(2020, 1, 1)
SPLITS = {1: "train", 2: "held_out"}
SPEC = {"descriptions": True, "values": "separate", "bins": 2, "vocabulary_size": 200}
CODES = pl.DataFrame(
    {
        "code": ["A", "B", "EMPTY", "NONE", "A", "LATER"],
        "description": ["Sodium, serum", "Déjà-vu", "", None, "another", "sodium 東京 q"],
    }
)


@pytest.fixture
def spelled(build, events_frame):
    """A function: train and held-out events -> the held-out subject's pieces, what all met, and the store."""

    def made(train, other, **spec):
        rows = [(1, DAY, *event) for event in train] + [(2, DAY, *event) for event in other]
        store = build(events_frame(rows), SPLITS, SPEC | spec, codes=CODES)
        return said(store, 2), outcomes(store), store

    return made


def joined(pieces):
    """Words, where each is whole or in pieces."""
    return " ".join(pieces).replace(" ##", "")


def test_an_event_is_its_description(spelled):
    found, met, _ = spelled([("A",), ("B",)], [("A",), ("B",)])
    assert joined(found) == "sodium , serum deja - vu"
    assert met == {"code": 4}


def test_the_first_description_of_a_code_counts(spelled):
    assert joined(spelled([("A",)], [("A",)])[0]) == "sodium , serum"


def test_a_text_follows_its_description(spelled):
    found, met, _ = spelled([("A", None, "Very LOW!"), ("A",)], [("A", None, "Very LOW!")])
    assert joined(found) == "sodium , serum : very low !"
    assert met == {"code": 1, "text": 2}
    found, met, _ = spelled([("A", None, "low"), ("A",)], [("A", None, "low")], texts=False)
    assert joined(found) == "sodium , serum"
    assert met == {"code": 1, "value ignored": 2}


def test_a_value_follows_as_its_quantile(spelled):
    train = [("A", 1.0, None, "mg"), ("A", 2.0, "the text of a number", "mg")]
    other = [("A", 2.0, None, "mg"), ("A", -5.0, "as text", "mg"), ("A", 1.0)]
    found, met, _ = spelled(train, other)
    assert joined(found) == "sodium , serum [Q2] sodium , serum [Q1] sodium , serum"
    assert met == {"number": 4, "unseen unit": 1}
    found, met, _ = spelled(train, other, bins=0)
    assert joined(found) == "sodium , serum sodium , serum sodium , serum"
    assert met == {"value ignored": 5}


@pytest.mark.parametrize("code", ["EMPTY", "NONE", "UNDESCRIBED"])
def test_a_code_that_nothing_describes_is_spelled_itself(spelled, code):
    found, met, _ = spelled([(code,), (code, 1.0)], [(code,), (code, 1.0)])
    assert joined(found) == f"{code.lower()} {code.lower()} [Q1]"
    assert met == {"code in place of its description": 2, "number": 2}


def test_codes_that_the_train_split_never_saw_are_spelled_too(spelled):
    found, met, _ = spelled([("A",)], [("LATER",)])
    # no piece has these characters
    assert joined(found).split() == ["sodium", "[UNK]", "[UNK]", "[UNK]"]
    assert met == {"code": 2}


@pytest.mark.parametrize(("unknown", "tokens"), [("drop", []), ("unk", ["[UNK]"])])
def test_a_sentence_without_a_known_word_is_unknown(spelled, unknown, tokens):
    found, met, _ = spelled([("A", 1.0)], [("東京 京", 1.0)], unknown=unknown)
    assert found == tokens  # and no quantile, which says nothing alone
    assert met == {"number": 1, {"drop": "out of vocabulary", "unk": "unknown token"}[unknown]: 1}


def test_pieces_are_learned_from_the_train_split_alone(spelled):
    _, _, store = spelled([("A",)], [("B",)])
    assert not any("j" in name for name in names_of(store)[9:])


def test_room_for_pieces(spelled):
    for size in (40, 45, 60):
        _, _, store = spelled([("A",), ("B",), ("UNDESCRIBED",)], [], vocabulary_size=size)
        assert len(names_of(store)) <= size
    # enough for all: further room stays empty
    assert len(names_of(spelled([("A",)], [], vocabulary_size=5_000)[2])) < 100


PIECES = ["a", "b", "ab", "##a", "##b", "##ba", "abba", "-", ".", "東", "e", "##e", "ss", "##ss", "i", "1", "##1", "'"]
# Latin ones, since what is a mark or a letter elsewhere differs between versions of Unicode
letters = st.one_of(
    st.sampled_from("abeAB- .,1\t\néİßÅ東京'\u0301\u00a0\u200b\ufffd\0\x85\u2028"), st.characters(max_codepoint=0x24F)
)


@settings(max_examples=300)
@given(st.lists(st.text(letters, max_size=12), min_size=1, max_size=4))
def test_the_spelling_by_hand_is_hugging_faces(sentences):
    pieces = pl.DataFrame({"token": range(7, 7 + len(PIECES)), "text": PIECES})
    ids = dict(zip(PIECES, range(7, 7 + len(PIECES)), strict=True)) | {"[UNK]": 2}
    assert spell(pieces, sentences) == [[ids[piece] for piece in greedy_pieces(s, PIECES)] for s in sentences]


def test_long_words_are_unknown():
    pieces = pl.DataFrame({"token": [7, 8], "text": ["a", "##a"]})
    assert [len(found) for found in spell(pieces, ["a" * 200, "a" * 201])] == [200, 1]
    assert [len(greedy_pieces("a" * n, ["a", "##a"])) for n in (200, 201)] == [200, 1]
