"""A vocabulary of another site, applied here: which of its codes stand for ours, and how it grows.

A code that the vocabulary has is itself. Another one is read as the code of the vocabulary that is nearest by the data
set's hierarchy, or that has the same description: a parent first, then the description, then farther ancestors. It is
read so with its values and texts: where the units agree, they fall into the bins of that code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.printable import printable
from ehrctx.study import Privacy
from ehrctx.timelines.roll_up import ancestors_of
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.statistics import Statistics
from ehrctx.timelines.store import KIND
from ehrctx.timelines.vocabulary import BINS, Vocabulary, as_tokens, best_entries, bins_of, with_tokens

SAME_DESCRIPTION = 1.5  # as far as something between a parent and a grandparent
KNOWN: dict[str, Any] = {"code": pl.String, "other": pl.String, "by": pl.String}
MAPPING: dict[str, Any] = {
    "code": pl.String,
    "description": pl.String,
    "events": pl.Int64,
    "read_as": pl.String,  # null: unmapped
    "by": pl.String,  # parent, ancestor or description; null where it is read as itself, or not at all
}


def _plain(description: pl.Expr) -> pl.Expr:
    """Descriptions that differ in case, spaces and punctuation alone are the same."""
    return description.str.to_lowercase().str.replace_all(r"[^\w]+", " ").str.strip_chars()


def nearest_known(
    codes: pl.Series, tokens: pl.DataFrame, described: pl.DataFrame, parents: pl.DataFrame
) -> pl.DataFrame:
    """KNOWN of those of the distinct `codes` that the vocabulary (`tokens`) does not have, but stands in for.

    `described` is (code, description) of this data set, `parents` its (code, parent). Of several as near, the commonest
    in the vocabulary's own data, then the first by name.
    """
    named = tokens.filter(pl.col("kind").is_in(["code", "text", "number"]) & pl.col("code").is_not_null())
    held = named.group_by("code").agg(pl.col("count").sum(), pl.col("description").first())
    without = pl.DataFrame({"code": codes}, schema={"code": pl.String}).join(held, on="code", how="anti")
    above = ancestors_of(without["code"], parents).rename({"ancestor": "other"})
    same = (
        without.join(described, on="code")
        .with_columns(said=_plain(pl.col("description")))
        .filter(pl.col("said") != "")
        .join(held.select(other="code", said=_plain(pl.col("description"))), on="said")
        .select("code", "other", distance=pl.lit(SAME_DESCRIPTION), by=pl.lit("description"))
    )
    by = pl.when(pl.col("distance") == 1).then(pl.lit("parent")).otherwise(pl.lit("ancestor"))
    found = pl.concat(
        [above.with_columns(pl.col("distance").cast(pl.Float64), by=by), same.select("code", "other", "distance", "by")]
    )
    return (
        found.join(held.select(other="code", count="count"), on="other")
        .sort("code", "distance", -pl.col("count").fill_null(0), "other")
        .unique("code", keep="first", maintain_order=True)
        .select(*KNOWN)
    )


def read_vocabulary(folder: Path, spec: TokenizerSpec) -> Vocabulary:
    """That of a folder of timelines, or of an exported model (which has no bins.parquet: its bins are its tokens').

    Raises InputError if there is none, or it cannot say values as `spec` does.
    """
    folder = Path(folder)
    file, bins = folder / "vocabulary.parquet", folder / "bins.parquet"
    if not file.is_file():
        raise InputError(f"{folder} holds no vocabulary.parquet. Give a folder of timelines, or of an exported model.")
    given = pl.read_parquet(file)
    missing = [name for name in ("token", "kind", "code") if name not in given.columns]
    if missing or not given["token"].equals(pl.Series("token", range(given.height), dtype=given.schema["token"])):
        raise InputError(f"{file} is not a vocabulary: its tokens must be numbered from 0 in order, each with a kind.")
    tokens = as_tokens(given)
    if bins.is_file():
        return Vocabulary(tokens, pl.read_parquet(bins))
    if spec.values == "separate" and spec.bins:
        raise InputError(f"{folder} has no bins.parquet to say what its quantile tokens mean. Give its timelines.")
    nth = pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("code", "unit")
    numbers = tokens.filter(kind="number").sort("code", "unit", "lower")
    own = numbers.with_columns(bin=nth, weight=pl.lit(None, pl.Int64))
    return Vocabulary(tokens, own.select(*BINS, "token"))


def spec_of(folder: Path) -> TokenizerSpec | None:
    """The spec of a folder of timelines; None of another folder, which does not say."""
    if not (Path(folder) / "offsets.npy").is_file():
        return None
    return TokenizerSpec.model_validate(read_manifest(folder, KIND)["settings"]["tokenizer"])


def _initial(rows: pl.DataFrame, bins: pl.DataFrame, known: pl.DataFrame, vocabulary: Vocabulary) -> pl.Series:
    """The token with whose embedding each of the new `rows` begins; null where nothing stood for its code before.

    Of that other code: the bin of the same unit that the lower edge falls into; in other units, the bin that is as far
    up among its bins; the same text; else its commonest token. `bins` are BINS of the new codes.
    """
    of_measure = ["code", "unit"]
    upness = ((pl.col("bin") - 0.5) / pl.len().over(of_measure)).alias("upness")
    new = (
        rows.with_row_index("row")
        .join(known.select("code", "other"), on="code")
        .join(bins.select(*of_measure, "lower", upness), on=[*of_measure, "lower"], how="left", nulls_equal=True)
    )
    old = vocabulary.bins.with_columns(of_all=pl.len().over(of_measure)).drop_nulls("token")
    old = old.select(pl.exclude(of_measure), other="code", of_unit="unit").rename(
        {"lower": "from", "upper": "to", "count": "events"}
    )
    pairs = new.filter(kind="number").join(old.rename({"token": "initial", "bin": "nth"}), on="other")
    same_unit = pl.col("unit").eq_missing(pl.col("of_unit"))
    falls = same_unit & (pl.col("lower") >= pl.col("from")) & (pl.col("lower") < pl.col("to"))
    as_far_up = (pl.col("upness") * pl.col("of_all")).floor() + 1 == pl.col("nth")
    binned = pairs.filter(falls | as_far_up).sort("row", ~falls, -pl.col("events").fill_null(0), "initial")
    texts = vocabulary.tokens.filter(kind="text").select("text", other="code", initial="token")
    commonest = vocabulary.tokens.sort(-pl.col("count").fill_null(0), "token").unique("code", keep="first")
    choices = [
        binned.select("row", "initial"),
        new.join(texts, on=["other", "text"]).select("row", "initial"),
        new.join(commonest.select(other="code", initial="token"), on="other").select("row", "initial"),
    ]
    best = pl.concat(choices).unique("row", keep="first", maintain_order=True)
    everywhere = rows.select(row=pl.int_range(pl.len(), dtype=pl.UInt32))
    return everywhere.join(best, on="row", how="left", maintain_order="left")["initial"]


def extended(
    vocabulary: Vocabulary,
    statistics: Statistics,
    spec: TokenizerSpec,
    described: pl.DataFrame,
    parents: pl.DataFrame,
    n: int,
) -> Vocabulary:
    """The vocabulary with at most `n` tokens more at its end: the best entries (as `spec` ranks them) of train codes
    that it does not have, with bins of their own.

    `initial` of a new token is what stood for it before, if anything did: a model that starts from one of the old
    vocabulary begins with that embedding. Raises InputError for word pieces, which spell every code.
    """
    if not n:
        return vocabulary
    if spec.descriptions:
        raise InputError("word pieces spell every code, so there is nothing to add. Leave out --extend.")
    is_new = ~pl.col("code").is_in(vocabulary.tokens["code"].drop_nulls().unique().implode())
    new = Statistics(statistics.entries.filter(is_new), statistics.values, statistics.n_subjects)
    bins, _ = bins_of(new, spec)
    rows = best_entries(new, spec, bins, described, parents, n)
    known = nearest_known(rows["code"].unique(), vocabulary.tokens, described, parents)
    rows = rows.with_columns(initial=_initial(rows, bins, known, vocabulary))
    added = as_tokens(rows.with_row_index("token", offset=vocabulary.tokens.height))
    tokens = pl.concat([vocabulary.tokens, added])
    own_bins = with_tokens(bins, tokens, spec).join(rows.select("code").unique(), on="code", how="semi")
    return Vocabulary(tokens, pl.concat([vocabulary.bins, own_bins], how="diagonal_relaxed"))


def mapping_of(
    coverage: pl.DataFrame, vocabulary: Vocabulary, described: pl.DataFrame, parents: pl.DataFrame
) -> pl.DataFrame:
    """MAPPING of every code that the data set uses, the commonest first; `coverage` is COVERAGE."""
    used = coverage.group_by("code").agg(pl.col("events").sum())
    known = nearest_known(used["code"], vocabulary.tokens, described, parents)
    itself = pl.col("code").is_in(vocabulary.tokens["code"].drop_nulls().unique().implode())
    return (
        used.join(described, on="code", how="left")
        .join(known, on="code", how="left")
        .with_columns(read_as=pl.when(itself).then("code").otherwise("other"))
        .sort(-pl.col("events"), "code")
        .select(*MAPPING)
    )


def unmapped_text(mapping: pl.DataFrame, privacy: Privacy, most: int = 20) -> str:
    """The commonest codes that are read as nothing, for people; those of few events are counted alone."""
    lost = mapping.filter(pl.col("read_as").is_null())
    shown = lost.filter(pl.col("events") >= privacy.minimum_count).head(most)
    rows = shown.select("events", "code", "description").iter_rows()
    lines = [f"{events:>12,}  {printable(code + (f' ({said})' if said else ''))}" for events, code, said in rows]
    rest = [f"{'…':>12}  {lost.height - shown.height:,} more"] if lost.height > shown.height else []
    return "\n".join([f"{lost.height:,} codes are read as nothing; events and code:", *lines, *rest])


def read_unmapped(timelines: Path, privacy: Privacy) -> str:
    """`unmapped_text` of a folder of timelines with an adapted vocabulary."""
    return unmapped_text(pl.read_parquet(Path(timelines) / "mapping.parquet"), privacy)
