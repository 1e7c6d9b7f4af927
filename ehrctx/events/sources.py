"""Data sets of other formats that a study names (`source`): the files that their import reads."""

from __future__ import annotations

from pathlib import Path

from ehrctx.artifacts import Source
from ehrctx.events.ehrshot import find_release, release_inputs
from ehrctx.events.femr import database_files
from ehrctx.events.omop.read import find_tables, table_inputs
from ehrctx.events.ontology import description_files
from ehrctx.study import EhrshotSource, FemrSource, OmopSource


def source_files(source: OmopSource | EhrshotSource | FemrSource) -> list[Path]:
    """The files on which the imported events depend. Raises InputError where the folder is not of this format."""
    folder = Path(source.folder)
    if isinstance(source, EhrshotSource):
        return find_release(folder).files() + (description_files(Path(source.concepts)) if source.concepts else [])
    if isinstance(source, FemrSource):
        return database_files(folder)
    return [file for table in find_tables(folder).values() for file in table.files]


def source_inputs(source: OmopSource | EhrshotSource | FemrSource) -> dict[str, Source]:
    """What the imported events are made from, by the name under which they record each."""
    folder = Path(source.folder)
    if isinstance(source, EhrshotSource):
        return release_inputs(find_release(folder), Path(source.concepts) if source.concepts else None)
    if isinstance(source, FemrSource):
        return {"events": folder}
    return table_inputs(folder, find_tables(folder))
