"""A tidy input is changed in one way; a reader then gives the right result, or refuses the input in one sentence."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ehrctx.errors import InputError

Change = Callable[[Path, np.random.Generator], object]


def unchanged(tidy_result: Any) -> Any:
    """The expected result of a change that changes no content."""
    return tidy_result


@dataclass(frozen=True)
class Mutation:
    """One change of a tidy input, and what is expected of whoever reads it.

    `change` is given the input's folder and a generator seeded by the name. `refused` is a regular expression for the
    sentence with which the input is refused; without it, `expected` turns the result of the tidy input into that of
    the changed one.
    """

    name: str
    change: Change
    refused: str | None = None
    expected: Callable[[Any], Any] = unchanged

    def __str__(self) -> str:  # the test's name
        return self.name


def assert_right_or_refused(
    mutation: Mutation, folder: Path, out: Path, read: Callable[[Path, Path], Any], tidy_result: Any
) -> None:
    """Changes the tidy input in `folder`, reads it with `read(folder, out)`, and compares.

    Any other exception than InputError is a traceback, and fails the test. `out` is where `read` may write: nothing may
    be there after a refusal.
    """
    mutation.change(folder, np.random.default_rng(zlib.crc32(mutation.name.encode())))
    try:
        result = read(folder, out)
    except InputError as error:
        sentence = str(error)
        assert mutation.refused is not None, f"refused, but it should be read: {sentence}"
        assert re.search(mutation.refused, sentence), sentence
        assert "\n" not in sentence, sentence
        assert sentence.endswith("."), sentence
        assert not out.exists() or not any(out.iterdir()), "something is half-written"
        return
    assert mutation.refused is None, f"read, but it should be refused: {result}"
    expected = mutation.expected(tidy_result)
    if isinstance(result, dict) and isinstance(expected, dict):
        differing = [key for key in result.keys() | expected.keys() if result.get(key) != expected.get(key)]
        assert not differing, {key: (result.get(key), expected.get(key)) for key in differing}
    assert result == expected
