"""Text of a data set, made safe to print: codes, descriptions and texts are written by others."""

from __future__ import annotations

import unicodedata

# Controls (newlines, tabs, escape sequences), formats (direction marks, zero-width characters), separators of lines and
# paragraphs, and halves of characters.
_ESCAPED = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def printable(text: str) -> str:
    """The text in one line, each character where it was written: what could move, hide or forge text is escaped.

    A newline becomes `\\n`, another control its code (`\\x1b`, `\\u202e`), as in Python's strings.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _ESCAPED else char for char in text
    )
