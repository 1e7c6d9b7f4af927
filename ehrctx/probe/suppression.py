"""Counts of few people in tables that others will read: statistical disclosure control by suppression.

A small count is shown as `<10`. One that would give a small count away by subtraction is shown as a lower bound,
`>=25`: the positive labels where hardly any is negative, a sum of which a part is hidden, and the largest quarters
where the hidden ones follow from a total that is known. Zero is shown: it is nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from ehrctx.study import Privacy

COUNTS = ("n", "n_positive", "n_subjects", "n_positive_subjects")
SCORED = ("n", "n_positive")  # what a score would tell
_WHOLE = {"n_positive": "n", "n_positive_subjects": "n_subjects"}

Counts = Mapping[str, int]  # some of COUNTS -> the exact number
Cells = dict[str, str]  # the same -> what a table shows


def is_hidden(cell: str) -> bool:
    """Whether a count, as tables hold it, is not the exact one."""
    return not cell.isdigit()


def lower_bound(cell: str) -> int:
    """The least that a count, as tables hold it, can be."""
    return 1 if cell.startswith("<") else int(cell.removeprefix(">="))


def _upper_bound(cell: str) -> float:
    return int(cell.removeprefix("<")) - 1 if cell.startswith("<") else float("inf")


def mask(count: pl.Expr, privacy: Privacy) -> pl.Expr:
    """A count that stands alone, as text."""
    small = (count > 0) & (count < privacy.minimum_count)
    return pl.when(small).then(pl.lit(f"<{privacy.minimum_count}")).otherwise(count.cast(pl.String))


def cells(counts: Counts, privacy: Privacy) -> Cells:
    """The counts of one row as a table shows them."""
    least = privacy.minimum_count
    found = {}
    for name, count in counts.items():
        whole = counts.get(_WHOLE.get(name, ""), count)
        if 0 < count < least:
            found[name] = f"<{least}"
        elif count and 0 < whole - count < least:
            found[name] = f">={max(least, whole - least + 1)}"
        else:
            found[name] = str(count)
    return found


def are_scores_shown(counts: Counts, privacy: Privacy) -> bool:
    """Whether a table shows the scores of a task: an AUROC is a multiple of one over positive times negative labels."""
    shown = cells(counts, privacy)
    return not any(is_hidden(shown[name]) for name in SCORED)


def of_sum(total: Cells, parts: Sequence[Cells]) -> Cells:
    """A sum (or a union) of `parts`, or of some of them: a lower bound where one of them is hidden."""
    found = {}
    for name, cell in total.items():
        gives_away = not is_hidden(cell) and any(is_hidden(part[name]) for part in parts)
        bounds = (lower_bound(part[name]) for part in parts)
        found[name] = f">={max(b for b in bounds if b <= int(cell))}" if gives_away else cell
    return found


def _follows(counts: Sequence[int], shown: Sequence[str]) -> bool:
    """Whether a small hidden count follows from the sum of the hidden ones, which total and shown counts give."""
    hidden = [i for i, cell in enumerate(shown) if is_hidden(cell)]
    rest = sum(counts[i] for i in hidden)
    for i in (i for i in hidden if shown[i].startswith("<")):
        others = [shown[j] for j in hidden if j != i]
        least = max(lower_bound(shown[i]), rest - sum(map(_upper_bound, others)))
        if least == min(_upper_bound(shown[i]), rest - sum(map(lower_bound, others))):
            return True
    return False


def of_partition(counts: Sequence[Counts], parts: Sequence[Cells], privacy: Privacy) -> list[Cells]:
    """The parts of a total that is known, with as many of the largest hidden as it takes."""
    found = [dict(part) for part in parts]
    for name in parts[0]:
        exact, shown = [own[name] for own in counts], [part[name] for part in parts]
        others = sorted(
            (i for i, cell in enumerate(shown) if not is_hidden(cell) and cell != "0"), key=exact.__getitem__
        )
        while _follows(exact, shown) and others:
            shown[others.pop()] = f">={privacy.minimum_count}"
        for part, cell in zip(found, shown, strict=True):
            part[name] = cell
    return found


def suppress(
    frame: pl.DataFrame,
    keys: Sequence[str],
    privacy: Privacy,
    relate: Callable[[Sequence[tuple], Sequence[Counts], Sequence[Cells]], list[Cells]] | None = None,
) -> pl.DataFrame:
    """`frame` with its COUNTS, which are the same in all rows of the same `keys`, as text.

    `relate` (the distinct keys, their counts, their cells) -> cells hides what would give others away.
    """
    counted = frame.select(*keys, *COUNTS).unique(maintain_order=True)
    counts = list(counted.select(COUNTS).iter_rows(named=True))
    shown = [cells(own, privacy) for own in counts]
    if relate is not None:
        shown = relate(counted.select(keys).rows(), counts, shown)
    text = pl.DataFrame(shown, schema=dict.fromkeys(COUNTS, pl.String))
    placed = pl.concat([counted.select(keys), text], how="horizontal")
    return frame.drop(COUNTS).join(placed, on=list(keys), how="left", maintain_order="left").select(frame.columns)
