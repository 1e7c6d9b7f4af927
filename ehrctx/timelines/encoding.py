"""Applying a vocabulary: what becomes of every event, and how many events met which fate.

An event becomes the token of its entry, or, where the vocabulary has none, of its code alone, of its code's nearest
ancestor, [UNK], or nothing, in this order, as far as the spec goes along. The days since the event before, and where a
visit starts and ends, are said by tokens of the event that makes them known, at its time: so no token tells of the
future, and changing what comes later changes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.timelines.counting import Counted
from ehrctx.timelines.encoding_numba import (
    BINNED,
    BINS_FROM,
    BINS_TO,
    DROPPED_STATIC,
    ENDS_VISIT,
    PLAIN,
    PLAIN_FROM,
    PLAIN_TO,
    STARTS_VISIT,
    WIDTH,
    tokens_of,
)  # fmt: skip
from ehrctx.timelines.roll_up import ancestors_of, nearest
from ehrctx.timelines.spec import UNK, TokenizerSpec
from ehrctx.timelines.vocabulary import Vocabulary
from ehrctx.timelines.word_pieces import sentences, spell

# What an event can meet, and whether its meaning is then in a token.
OUTCOMES = {
    "code": True,
    "text": True,
    "number": True,
    "code in place of its description": True,  # spelled in word pieces
    "value ignored": True,  # its code has a token, its value or text has none
    "unseen unit": True,  # the same, as the train split has no values of this code in this unit
    "rolled up": True,  # to its nearest ancestor
    "unknown token": False,
    "out of vocabulary": False,
    "static": False,  # the spec keeps no static prefix
}
NAMES = list(OUTCOMES)
COVERED = [name for name, meant in OUTCOMES.items() if meant]
COVERAGE: dict[str, Any] = {"code": pl.String, "outcome": pl.String, "events": pl.Int64}
NOT_FINITE, LONG_TEXT = "value is not finite", "text is a note"  # counted besides


@dataclass(frozen=True)
class Encoded:
    """One piece's tokens. Subjects own consecutive rows, in the order of the piece; some may own none."""

    tokens: np.ndarray  # uint32[t]
    seconds: np.ndarray  # uint32[t]
    event: np.ndarray  # uint32[t], position of the event among the subject's
    lengths: np.ndarray  # int64[m], tokens of each subject
    n_static: np.ndarray  # int64[m], of these, static ones
    coverage: pl.DataFrame  # COVERAGE


class Encoder:
    """A vocabulary prepared for look-ups."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        spec: TokenizerSpec,
        profile: DatasetProfile,
        codes: pl.DataFrame,
        parents: pl.DataFrame,
        instead: pl.DataFrame | None = None,
    ) -> None:
        """`codes` is (code, description), `parents` (code, parent). `instead` (code, other), if given, says which
        code's tokens a code takes that has none (see `adaptation`)."""
        self._spec, self._profile, self._parents = spec, profile, parents
        self._described = codes.select("code", "description").unique("code", keep="first", maintain_order=True)
        tokens = vocabulary.tokens
        self._codes = tokens.filter(kind="code").select("code", "token", "count")
        self._texts = tokens.filter(kind="text").select("code", "text", "token")
        self._pieces = tokens.filter(kind="piece").select("token", "text")
        bins = vocabulary.bins
        self._groups = bins.select("code", "unit").unique(maintain_order=True).with_row_index("group")
        placed = bins.join(self._groups, on=["code", "unit"], nulls_equal=True, maintain_order="left")
        sizes = np.bincount(placed["group"].to_numpy(), minlength=self._groups.height)
        self._group_from = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._lower = placed["lower"].to_numpy()
        self._bin_token = placed["token"].cast(pl.Int64).fill_null(-1).to_numpy()
        gaps = tokens.filter(kind="time")
        self._gap_from = gaps["lower"].cast(pl.Int64).to_numpy()
        self._first_gap = int(gaps["token"].min()) if gaps.height else -1  # type: ignore[arg-type]
        visits = tokens.filter(kind="visit")["token"]
        self._visit_start = int(visits.min()) if len(visits) else -1  # type: ignore[arg-type]
        self._instead = instead
        self._spelt: dict[str, list[int]] = {}

    def _plain(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        """The tokens of all rows of `table` where no bin says their value (int64, one row after another); and of each
        row, `n` of them, the `outcome` then, and the `group` of its bins (null: none)."""
        tokens, plain = self._spelled(table) if self._spec.descriptions else self._looked_up(table)
        groups = table.join(self._groups, on=["code", "unit"], how="left", nulls_equal=True, maintain_order="left")
        found = plain.with_columns(kind=table["kind"], group=groups["group"])
        is_number = pl.col("kind") == "number"
        has_token = pl.col("outcome").is_in(COVERED) & (pl.col("outcome") != "rolled up")
        unseen = is_number & pl.col("group").is_null() & (pl.col("outcome") == "value ignored") & (self._spec.bins > 0)
        # a quantile by itself says nothing, a joined bin does
        binned = is_number & (has_token | pl.lit(self._spec.values == "joined"))
        return tokens, found.select(
            "n",
            outcome=pl.when(unseen).then(pl.lit("unseen unit")).otherwise("outcome"),
            group=pl.when(binned).then("group"),
        )

    def _spelled(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        said = sentences(table, self._described, self._spec.texts)
        new = sorted(set(said) - self._spelt.keys())
        self._spelt.update(zip(new, spell(self._pieces, new), strict=True))
        pieces = [self._spelt[one] for one in said]
        described = self._described.filter(pl.col("description") != "")["code"]
        ignored = (pl.col("kind") == "number") | ((pl.col("kind") == "text") & (not self._spec.texts))
        outcome = (
            pl.when(~pl.col("code").is_in(described.implode()))
            .then(pl.lit("code in place of its description"))
            .when(ignored)
            .then(pl.lit("value ignored"))
            .otherwise("kind")
        )
        tokens = np.fromiter((token for one in pieces for token in one), dtype=np.int64)
        return tokens, table.select(n=pl.Series([len(one) for one in pieces], dtype=pl.Int64), outcome=outcome)

    def _looked_up(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        of_code, of_text = self._codes.select("code", _code="token"), self._texts.select("code", "text", _text="token")
        found = (
            table.join(of_code, on="code", how="left", maintain_order="left")
            .join(of_text, on=["code", "text"], how="left", maintain_order="left")
            .join(self._elsewhere(table), on="code", how="left", maintain_order="left")
        )
        exact = pl.when(pl.col("kind") == "text").then("_text").when(pl.col("kind") == "code").then("_code")
        keeps_unknown = self._spec.unknown == "unk"
        token = pl.coalesce(exact, "_code", "_elsewhere", pl.lit(UNK if keeps_unknown else None, pl.UInt32))
        plain = found.select(
            token=token.cast(pl.Int64),
            n=token.is_not_null().cast(pl.Int64),
            outcome=pl.when(exact.is_not_null())
            .then("kind")
            .when(pl.col("_code").is_not_null())
            .then(pl.lit("value ignored"))
            .when(pl.col("_elsewhere").is_not_null())
            .then(pl.lit("rolled up"))
            .otherwise(pl.lit("unknown token" if keeps_unknown else "out of vocabulary")),
        )
        return plain["token"].drop_nulls().to_numpy(), plain.drop("token")

    def _elsewhere(self, table: pl.DataFrame) -> pl.DataFrame:
        """(code, _elsewhere): the token of another code that stands for a code without one."""
        without = table.select("code").unique().join(self._codes, on="code", how="anti")["code"]
        if self._instead is not None:
            other = self._instead.filter(pl.col("code").is_in(without.implode()))
        elif self._spec.roll_up:
            other = nearest(ancestors_of(without, self._parents), self._codes).rename({"ancestor": "other"})
        else:
            return pl.DataFrame(schema={"code": pl.String, "_elsewhere": pl.UInt32})
        return other.join(self._codes.select(other="code", _elsewhere="token"), on="other").select("code", "_elsewhere")

    def plan(self, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, pl.Series]:
        """For the entries of one piece (`counting.TABLE`): the plan and the plain tokens that `tokens_of` explains, and
        what an event met that got the plain ones."""
        plain, found = self._plain(table)
        ends = np.cumsum(found["n"].to_numpy(), dtype=np.int64)
        group = found["group"].cast(pl.Int64).fill_null(-1).to_numpy()
        roles = table.with_columns(
            starts=matches(pl.col("code"), self._profile.admission),
            ends=matches(pl.col("code"), self._profile.discharge),
        )
        plan = np.zeros((table.height, WIDTH), dtype=np.int32)  # half the width, as it should stay in a cache
        plan[:, PLAIN_FROM], plan[:, PLAIN_TO] = np.append(0, ends[:-1])[: len(ends)], ends
        plan[:, BINS_FROM] = np.where(group >= 0, self._group_from[group], 0)
        plan[:, BINS_TO] = np.where(group >= 0, self._group_from[np.minimum(group + 1, len(self._group_from) - 1)], 0)
        plan[:, STARTS_VISIT], plan[:, ENDS_VISIT] = roles["starts"].to_numpy(), roles["ends"].to_numpy()
        return plan, plain, found["outcome"]

    def encode(self, counted: Counted) -> Encoded:
        """One piece's tokens, and what became of its events."""
        plan, plain, plain_outcome = self.plan(counted.table)
        met = np.zeros((len(plan), 3), dtype=np.int64)
        lengths, n_static = (np.zeros(len(counted.subjects), dtype=np.int64) for _ in range(2))
        most_of_an_event = plan[:, PLAIN_TO] - plan[:, PLAIN_FROM] + (plan[:, BINS_TO] > plan[:, BINS_FROM])
        most_of_an_event += (self._first_gap >= 0) + 2 * (self._visit_start >= 0)
        room = int(most_of_an_event @ np.bincount(counted.entry, minlength=len(plan)))
        out = [np.empty(room, dtype=np.uint32) for _ in range(3)]
        n = tokens_of(
            counted.entry, counted.value, counted.seconds, counted.offsets(), counted.subjects["n_static"].copy(),
            self._spec.static_prefix, plan, plain, self._lower, self._bin_token, self._spec.values == "separate",
            self._visit_start, self._gap_from, self._first_gap, met, lengths, n_static, *out,
        )  # fmt: skip
        return Encoded(
            out[0][:n], out[1][:n], out[2][:n], lengths, n_static, _coverage(counted.table, met, plain_outcome)
        )


def _coverage(table: pl.DataFrame, met: np.ndarray, plain_outcome: pl.Series) -> pl.DataFrame:
    """COVERAGE of one piece, a row for each of its entries."""
    of_each = (
        (pl.lit("static"), pl.Series(met[:, DROPPED_STATIC])),
        (plain_outcome, pl.Series(met[:, PLAIN])),
        (pl.lit("number"), pl.Series(met[:, BINNED])),
        (pl.lit(NOT_FINITE), table["not_finite"]),
        (pl.lit(LONG_TEXT), table["long_text"]),
    )
    parts = [table.select("code", outcome=outcome, events=events) for outcome, events in of_each]
    return pl.concat([part.filter(pl.col("events") > 0).select(*COVERAGE) for part in parts])


def added(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """COVERAGE of several parts together, in order."""
    return (
        pl.concat([pl.DataFrame(schema=COVERAGE), *(part.select(*COVERAGE) for part in parts)])
        .group_by("code", "outcome")
        .agg(pl.col("events").sum())
        .sort("code", "outcome")
    )
