"""Loops that numba compiles, and where their compiled code is kept between processes.

numba keeps it in `NUMBA_CACHE_DIR` if that is set, else beside the source, else in the user's cache folder. Where none
of these can be written (a container, an installation that others own), numba refuses to define the function at all:
here it is compiled anew in each process instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

_log = logging.getLogger(__name__)


@cache
def _warn_that_nothing_is_kept() -> None:
    _log.warning(
        "compiled loops cannot be kept: neither the folder of ehrctx nor your cache folder can be written, so every "
        "command compiles them again (up to a minute). Set NUMBA_CACHE_DIR to a folder that can be written."
    )


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function as `numba.njit(**options)` does, cached where a folder for that can be written."""

    def define(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            _warn_that_nothing_is_kept()
            return njit(**options)(function)

    return define
