"""What is wrong with one file: named by file and row, never by subject or value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ehrctx.errors import InputError

ROWS_NAMED = 5


@dataclass(frozen=True)
class Violation:
    """One broken rule of MEDS in one file. `rows` counts from 1; `n` is how many rows break it."""

    file: str
    rows: tuple[int, ...]
    n: int
    problem: str
    remedy: str

    def __str__(self) -> str:
        more = f" and {self.n - len(self.rows):,} more" if self.n > len(self.rows) else ""
        where = f", row{'s' if self.n > 1 else ''} {', '.join(f'{r:,}' for r in self.rows)}{more}" if self.n else ""
        return f"{self.file}{where}: {self.problem} {self.remedy}"


class Rule(NamedTuple):
    """What is wrong with that which breaks it, and how to fix it."""

    problem: str
    remedy: str

    def about(self, column: str) -> Rule:
        """The rule with the name of a column."""
        return Rule(self.problem.format(column=column), self.remedy)


CAST = "Cast it when writing the file."
TWICE = Rule("the column {column!r} is there twice.", "Keep one of the two.")
NOT_UTF8 = Rule("{column} is not UTF-8 text.", "Write the file in UTF-8.")


def of_file(file: str, rule: Rule) -> Violation:
    """That of a rule broken by a whole file."""
    return Violation(file, (), 0, rule.problem, rule.remedy)


def of_rows(file: str, rows: Sequence[int], rule: Rule, first_row: int = 0) -> Violation:
    """That of a rule broken in `rows`, which count from 0 after `first_row`."""
    named = tuple(int(row) + first_row + 1 for row in rows[:ROWS_NAMED])
    return Violation(file, named, len(rows), rule.problem, rule.remedy)


class BrokenFile(InputError):
    """A file that breaks a rule, which `check` lists beside others."""

    def __init__(self, violation: Violation, sentence: str | None = None) -> None:
        super().__init__(sentence or str(violation))
        self.violation = violation
