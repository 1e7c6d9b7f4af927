"""What a vocabulary has for an entry: its tokens without a value, the group of its bins, and what that makes of it."""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrctx.timelines.adaptation import nearest_known
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
    "unseen unit": True,  # the same, as there are no bins of this code in this unit
    "rolled up": True,  # to its nearest ancestor
    "mapped": True,  # by an adapted vocabulary, to another code's tokens
    "unknown token": False,
    "out of vocabulary": False,
    "static": False,  # the spec keeps no static prefix
}
NAMES = list(OUTCOMES)
COVERED = [name for name, meant in OUTCOMES.items() if meant]


class Lookup:
    """A vocabulary prepared for joins with tables of entries (`counting.TABLE`)."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        spec: TokenizerSpec,
        codes: pl.DataFrame,
        parents: pl.DataFrame,
        adapts: bool = False,
    ) -> None:
        """`codes` is (code, description), each code once, `parents` (code, parent); `adapts`: codes that the vocabulary
        does not have are read as others that it has (see `adaptation`)."""
        self._spec, self._parents, self._adapts = spec, parents, adapts
        self._described = codes
        tokens = vocabulary.tokens
        self._tokens = tokens
        events = pl.col("count").sum().over("code").alias("count")  # of the code, whichever its tokens
        self._codes = tokens.with_columns(events).filter(kind="code").select("code", "token", "count")
        self._texts = tokens.filter(kind="text").select("code", "text", "token")
        self._pieces = tokens.filter(kind="piece").select("token", "text")
        self._spelt: dict[str, list[int]] = {}
        self._groups = vocabulary.bins.select("code", "unit").unique(maintain_order=True).with_row_index("group")
        grouped = vocabulary.bins.join(self._groups, on=["code", "unit"], nulls_equal=True, maintain_order="left")
        sizes = np.bincount(grouped["group"].to_numpy(), minlength=self._groups.height)
        self.group_from = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.lower = grouped["lower"].to_numpy()
        self.bin_token = grouped["token"].cast(pl.Int64).fill_null(-1).to_numpy()

    def of(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        """The tokens of all rows of `table` where no bin says their value (int64, one row after another); and of each
        row, `n` of them, the `group` of its bins (null: none), the outcome with a bin (`binned`) and `without`."""
        if self._spec.descriptions:
            tokens, found = self._spelled(table)
        else:
            other = self._known_codes(table)
            tokens, found = self._looked_up(table.with_columns(code=pl.coalesce(other, table["code"])))
            found = found.with_columns(is_mapped=other.is_not_null())
            table = table.with_columns(code=pl.coalesce(other, table["code"]))
        groups = table.join(self._groups, on=["code", "unit"], how="left", nulls_equal=True, maintain_order="left")
        is_number, is_mapped = pl.col("kind") == "number", pl.col("is_mapped")
        has_token = pl.col("outcome").is_in(COVERED) & (pl.col("outcome") != "rolled up")
        unseen = is_number & pl.col("group").is_null() & (pl.col("outcome") == "value ignored") & (self._spec.bins > 0)
        # a quantile by itself says nothing, a joined bin does
        binned = is_number & (has_token | pl.lit(self._spec.values == "joined"))
        return tokens, found.with_columns(kind=table["kind"], group=groups["group"]).select(
            "n",
            group=pl.when(binned).then("group"),
            binned=pl.when(is_mapped).then(pl.lit("mapped")).otherwise(pl.lit("number")),
            without=pl.when(is_mapped & pl.col("outcome").is_in(COVERED))
            .then(pl.lit("mapped"))
            .when(unseen)
            .then(pl.lit("unseen unit"))
            .otherwise("outcome"),
        )

    def _spelled(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        said = sentences(table, self._described, self._spec.texts)
        new = sorted(set(said) - self._spelt.keys())
        self._spelt.update(zip(new, spell(self._pieces, new), strict=True))
        keeps_unknown = self._spec.unknown == "unk"
        spelt = [self._spelt[one] for one in said]
        # a sentence without a word that is known says no more than one [UNK]
        is_unknown = pl.Series([all(token == UNK for token in one) for one in spelt], dtype=pl.Boolean)
        instead = [UNK] if keeps_unknown else []
        pieces = [instead if lost else one for one, lost in zip(spelt, is_unknown, strict=True)]
        described = self._described.filter(pl.col("description") != "")["code"]
        ignored = (pl.col("kind") == "number") | ((pl.col("kind") == "text") & (not self._spec.texts))
        outcome = (
            pl.when(is_unknown)
            .then(pl.lit("unknown token" if keeps_unknown else "out of vocabulary"))
            .when(~pl.col("code").is_in(described.implode()))
            .then(pl.lit("code in place of its description"))
            .when(ignored)
            .then(pl.lit("value ignored"))
            .otherwise("kind")
        )
        n = pl.Series([len(one) for one in pieces], dtype=pl.Int64)
        tokens = np.fromiter((token for one in pieces for token in one), dtype=np.int64)
        return tokens, table.select(n=n, outcome=outcome, is_mapped=pl.lit(False))

    def _looked_up(self, table: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame]:
        of_code, of_text = self._codes.select("code", _code="token"), self._texts.select("code", "text", _text="token")
        found = (
            table.join(of_code, on="code", how="left", maintain_order="left")
            .join(of_text, on=["code", "text"], how="left", maintain_order="left")
            .join(self._ancestors(table), on="code", how="left", maintain_order="left")
        )
        exact = pl.when(pl.col("kind") == "text").then("_text").when(pl.col("kind") == "code").then("_code")
        keeps_unknown = self._spec.unknown == "unk"
        token = pl.coalesce(exact, "_code", "_ancestor", pl.lit(UNK if keeps_unknown else None, pl.UInt32))
        plain = found.select(
            token=token.cast(pl.Int64),
            n=token.is_not_null().cast(pl.Int64),
            outcome=pl.when(exact.is_not_null())
            .then("kind")
            .when(pl.col("_code").is_not_null())
            .then(pl.lit("value ignored"))
            .when(pl.col("_ancestor").is_not_null())
            .then(pl.lit("rolled up"))
            .otherwise(pl.lit("unknown token" if keeps_unknown else "out of vocabulary")),
        )
        return plain["token"].drop_nulls().to_numpy(), plain.drop("token")

    def _ancestors(self, table: pl.DataFrame) -> pl.DataFrame:
        """(code, _ancestor): of codes without a token, that of the nearest ancestor that has one."""
        if not self._spec.roll_up:
            return pl.DataFrame(schema={"code": pl.String, "_ancestor": pl.UInt32})
        without = table.select("code").unique().join(self._codes, on="code", how="anti")["code"]
        other = nearest(ancestors_of(without, self._parents), self._codes)
        named = self._codes.select(ancestor="code", _ancestor="token")
        return other.join(named, on="ancestor").select("code", "_ancestor")

    def _known_codes(self, table: pl.DataFrame) -> pl.Series:
        """Of each row, the code as which it is read; null where it is its own."""
        if not self._adapts:
            return pl.repeat(None, table.height, dtype=pl.String, eager=True)
        known = nearest_known(table["code"].unique(), self._tokens, self._described, self._parents)
        return table.select("code").join(known, on="code", how="left", maintain_order="left")["other"]
