"""BERT's basic tokenization and the greedy longest match of word pieces, by hand."""

from __future__ import annotations

import unicodedata
from collections.abc import Container

LONGEST_WORD = 200  # characters; longer words are unknown
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _clean(sentence: str) -> str:
    kept = []
    for c in sentence:
        if c in "\t\n\r":
            kept.append(" ")
        elif c not in "\0\ufffd" and not unicodedata.category(c).startswith("C"):
            kept.append(" " if c.isspace() else c)
    return "".join(kept)


def _is_punctuation(c: str) -> bool:
    return c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(c).startswith("P")


def words_of(sentence: str) -> list[str]:
    """Lower case without accents; split at white space; punctuation and Chinese characters are words of their own."""
    spaced = "".join(f" {c} " if any(a <= ord(c) <= b for a, b in CHINESE) else c for c in _clean(sentence))
    bare = "".join(c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in bare.lower()).split()


def greedy_pieces(sentence: str, pieces: Container[str]) -> list[str]:
    """The longest known piece first, and so on; a word that cannot be spelled is [UNK] as a whole."""
    found = []
    for word in words_of(sentence):
        own, start = [], 0
        while start < len(word) and len(word) <= LONGEST_WORD:
            mark = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in pieces), None)
            if end is None:
                break
            own.append(mark + word[start:end])
            start = end
        found += own if start == len(word) else ["[UNK]"]
    return found
