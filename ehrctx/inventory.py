"""The files of a folder, all of them: which ones a reader reads, ignores by rule, or does not know.

A reader that skips a file without a word loses patients, so each accounts for every file of its folder.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrctx.errors import InputError

NAMED = 5  # files that a warning names
# What tools leave beside data: no reader takes these for data, and no fingerprint covers them.
MARKERS = ("_SUCCESS", "_metadata", "_common_metadata")
MARKER_PREFIXES = (".", "_started_", "_committed_", "_temporary")
HIDDEN = "hidden, or left by a tool beside its data"


def is_hidden(relative: Path) -> bool:
    """Whether a file, by its path below a folder, is hidden or a tool's marker (`._0.parquet`, `_SUCCESS`)."""
    return any(part in MARKERS or part.startswith(MARKER_PREFIXES) for part in relative.parts)


def _refuse_folder(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}. Ask for the permission to read it.")


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        _refuse_folder(error)
    for entry in entries:
        path = folder / entry.name
        try:
            status = entry.stat()
        except OSError:  # nothing is there, or a link to itself
            raise InputError(
                f"{path} is a link to a file that is not there. Restore the file, or remove the link."
            ) from None
        if not stat.S_ISDIR(status.st_mode):
            yield path
            continue
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise InputError(f"{path} is a link to a folder above it, which would be read without end. Remove it.")
        yield from _walk(path, above | {identity})


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, hidden ones too, by path; links are followed.

    Raises InputError, by name, for a folder that cannot be read, a link to nothing, and a link to a folder above it.
    """
    status = Path(folder).stat()
    return list(_walk(Path(folder), frozenset({(status.st_dev, status.st_ino)})))


@dataclass(frozen=True)
class Inventory:
    """What a reader makes of the files of a folder; every file is in one of the three."""

    folder: Path
    read: tuple[Path, ...]
    ignored: tuple[tuple[Path, str], ...]  # a file, and the rule by which it is ignored
    unknown: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, files: Iterable[Path], rule: Callable[[Path], str | None]) -> Inventory:
        """Sorts `files` of `folder` by `rule`, which is given the path below the folder.

        The rule answers "" for a file that is read, the reason why a file is ignored, and None for one it does not
        know. Hidden files and markers are ignored before it is asked.
        """
        read, ignored, unknown = [], [], []
        for file in files:
            relative = file.relative_to(folder)
            answer = HIDDEN if is_hidden(relative) else rule(relative)
            if answer is None:
                unknown.append(file)
            elif answer:
                ignored.append((file, answer))
            else:
                read.append(file)
        return cls(Path(folder), tuple(read), tuple(ignored), tuple(unknown))

    def warning(self, remedy: str) -> str | None:
        """A sentence that names the files nobody reads, if there are any."""
        if not self.unknown:
            return None
        names = ", ".join(file.relative_to(self.folder).as_posix() for file in self.unknown[:NAMED])
        more = f" and {len(self.unknown) - NAMED:,} more" if len(self.unknown) > NAMED else ""
        return f"{self.folder}: not read: {names}{more}. {remedy}"

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps: how many files are read and ignored, and the names of those that are not known."""
        names = [file.relative_to(self.folder).as_posix() for file in self.unknown]
        return {"read": len(self.read), "ignored": len(self.ignored), "not_read": names}

    def ignored_lines(self) -> list[str]:
        """A line for each ignored file, with the rule: what `--verbose` lists."""
        return [f"ignored: {file.relative_to(self.folder).as_posix()} ({rule})" for file, rule in self.ignored]


def tell_inventory(inventory: Inventory, remedy: str, verbose: bool = False) -> None:
    """Prints, on standard error, a warning of files that nobody reads and, if `verbose`, those ignored by rule."""
    if warning := inventory.warning(remedy):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    for line in inventory.ignored_lines() if verbose else ():
        print(line, file=sys.stderr, flush=True)
