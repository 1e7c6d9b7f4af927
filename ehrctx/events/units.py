"""Spellings with which programs say that a unit is missing."""

from __future__ import annotations

import polars as pl

# In small letters, without spaces around: R's NA, pandas' <NA> and nan, spreadsheets' #N/A, databases' NULL and \N.
MISSING_UNITS = frozenset({"", "na", "n/a", "<na>", "#n/a", "null", "none", "nan", "\\n"})


def is_missing_unit(unit: pl.Expr) -> pl.Expr:
    """Whether a stated unit (string) is null or one of MISSING_UNITS, in capital or small letters. Never null."""
    return unit.is_null() | unit.str.strip_chars().str.to_lowercase().is_in(MISSING_UNITS).fill_null(True)
