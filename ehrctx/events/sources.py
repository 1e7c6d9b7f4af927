"""Data sets of other formats that a study names (`source`): the files that their import reads."""

from __future__ import annotations

from pathlib import Path

from ehrctx.events.omop.read import find_tables
from ehrctx.study import OmopSource


def source_files(source: OmopSource) -> list[Path]:
    """The files on which the imported events depend. Raises InputError where the folder is not of this format."""
    return [file for table in find_tables(Path(source.folder)).values() for file in table.files]
