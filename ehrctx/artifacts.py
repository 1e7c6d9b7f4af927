"""Artefacts: written to a temporary name and renamed, with their provenance, refused when their inputs changed.

An artefact is a folder whose `manifest.json` says what made it (kind, settings, versions, the fingerprints of its
inputs) and what it holds (the fingerprint of every file). A folder without a manifest is not an artefact: a killed job
leaves only a `.<name>.partial-*` folder, which the next run of the same job removes.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ehrctx import __version__
from ehrctx.errors import InputError
from ehrctx.inventory import files_below, is_hidden

if TYPE_CHECKING:
    import polars as pl

MANIFEST = "manifest.json"
RUN = "EHRCTX_RUN"  # environment variable: the locks of the run that a process belongs to, and its tokens
SCHEMA_VERSION = 2
# A file that changed twice within a tick of the clock looks unchanged: its fingerprint is remembered only later (ns).
SETTLED = 2_000_000_000
RECORDED_PACKAGES = ("numpy", "polars", "scikit-learn", "torch", "transformers", "lightning")


@dataclass(frozen=True)
class Files:
    """An input that is some files of a folder: those that a reader reads of it."""

    folder: Path
    files: tuple[Path, ...]


Source = Path | Files


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_of(source: Source) -> Files:
    """The files whose names and bytes are the fingerprint of a source that is no single file."""
    if isinstance(source, Files):
        return source
    return Files(source, tuple(file for file in files_below(source) if not is_hidden(file.relative_to(source))))


def combined(folder: Path, digests: Mapping[Path, str]) -> str:
    """One fingerprint of several files: of their paths below `folder`, and the fingerprints of their bytes."""
    digest = hashlib.sha256()
    for file in sorted(digests):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{digests[file]}\0".encode())
    return digest.hexdigest()


def fingerprint(source: Source) -> str:
    """SHA-256 of a file's bytes, of an artefact's manifest, or of several files (names and bytes).

    An artefact's manifest holds the fingerprints of its files and inputs, so its own hash stands for all of them. Of
    any other folder all files count but hidden ones.
    """
    source = source if isinstance(source, Files) else Path(source)
    if isinstance(source, Path):
        if not source.is_dir():
            return _digest(source)
        if (source / MANIFEST).exists():
            return _digest(source / MANIFEST)
    chosen = files_of(source)
    return combined(chosen.folder, {file: _digest(file) for file in chosen.files})


class Fingerprints:
    """Fingerprints of inputs, remembered in a file, so that data of many GB are read again only where they changed.

    A file is taken for unchanged if its size, inode, and times of modification and of change (which no copy can set)
    are what they were. The memory is a convenience: without it, or where it is damaged, files are read.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            known = json.loads(memory.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list] = known if isinstance(known, dict) else {}
        self._used: dict[str, list] = {}

    def _digest(self, file: Path) -> str:
        name, status = str(file.resolve()), file.stat()
        state = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(name)
        digest = known[1] if known is not None and known[0] == state else _digest(file)
        if time.time_ns() - status.st_ctime_ns > SETTLED:
            self._used[name] = [state, digest]
        return digest

    def of(self, source: Source) -> str:
        """What `fingerprint` says of `source`."""
        if isinstance(source, Path) and (not source.is_dir() or (source / MANIFEST).exists()):
            return self._digest(source) if not source.is_dir() else fingerprint(source)
        chosen = files_of(source)
        return combined(chosen.folder, {file: self._digest(file) for file in chosen.files})

    def save(self) -> None:
        """Remembers what was asked for, beside what it knew of files that are still there."""
        known = {name: entry for name, entry in self._known.items() if os.path.exists(name)} | self._used
        if known != self._known:
            with suppress(InputError, OSError), new_file(self._memory) as partial:  # a folder that cannot be written
                partial.write_text(json.dumps(known))


def _versions() -> dict[str, str]:
    found = {"ehrctx": __version__, "python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a GPU node may hold only what training needs
    return found


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}. Give another path.") from None


def _remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*partial-*"):
        process = leftover.name.rpartition("-")[2]
        # in a container, a command that was killed and starts again often has the same number
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            _remove(leftover)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it into place on success, removes it on failure."""
    path = Path(path)
    _make_folder(path.parent)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        require_own_run()
        os.replace(partial, path)
    finally:
        _remove(partial)


def write_table(table: pl.DataFrame, file: Path) -> None:
    """Writes `table` as CSV. A number that is undefined is an empty cell, as one that is hidden."""
    with new_file(file) as partial:
        table.fill_nan(None).write_csv(partial, float_precision=6)


def write_provenance(
    file: Path, settings: Mapping[str, Any], inputs: Mapping[str, Source], written: list[Path]
) -> None:
    """Writes, as JSON, what the files `written` beside `file` were made from: their manifest."""
    held = {
        **settings,
        "inputs": {name: fingerprint(source) for name, source in inputs.items()},
        "files": {path.name: fingerprint(path) for path in written},
        "versions": _versions(),
    }
    with new_file(file) as partial:
        partial.write_text(json.dumps(held, indent=1, sort_keys=True, default=str) + "\n")


def by_place(paths: Iterable[Path]) -> dict[str, Source]:
    """Inputs by the last two names of their paths (`probes/counts`), as tables record them."""
    return {f"{path.parent.name}/{path.name}": path for path in map(Path, paths)}


@contextmanager
def new_artifact(
    path: Path,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Source],
    facts: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success adds the manifest and renames the folder to `path`.

    `settings` are the choices made, `inputs` name -> what was read, `facts` what was counted (may be filled
    while the folder is written). An older artefact at `path` is replaced only once the new one is complete.
    """
    path = Path(path)
    provenance = {name: fingerprint(source) for name, source in inputs.items()}
    _make_folder(path.parent)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        manifest = {
            "kind": kind,
            "schema": SCHEMA_VERSION,
            "settings": dict(settings),
            "inputs": provenance,
            "facts": facts or {},
            "files": {
                p.relative_to(partial).as_posix(): fingerprint(p) for p in sorted(partial.rglob("*")) if p.is_file()
            },
            "versions": _versions(),
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True, default=str) + "\n")
        require_own_run()
        if path.exists():
            old = path.with_name(f".{path.name}.replaced.partial-{os.getpid()}")
            os.replace(path, old)
            os.replace(partial, path)
            _remove(old)
        else:
            os.replace(partial, path)
    finally:
        _remove(partial)


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """The manifest of the artefact at `path`, which must be of this `kind` and schema version."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise InputError(
            f"{path} is not a finished {kind} folder: it has no {MANIFEST}. Make it again with its command."
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        raise InputError(f"{file} is damaged: it is not JSON. Delete the folder and make it again.") from None
    if manifest.get("kind") != kind:
        raise InputError(f"{path} holds {manifest.get('kind')!r} where {kind!r} is expected. Check the order of paths.")
    if manifest.get("schema") != SCHEMA_VERSION:
        raise InputError(
            f"{path} was written with schema {manifest.get('schema')}, this version reads {SCHEMA_VERSION}. "
            f"Delete the folder and run the workflow again."
        )
    return manifest


def require_same_input(path: Path, kind: str, name: str, current: Path) -> None:
    """Refuses the artefact at `path` if its input `name` is not what now lies at `current`."""
    recorded = read_manifest(path, kind)["inputs"].get(name)
    if not Path(current).exists():
        raise InputError(f"no such {name}: {current}. Give the {name} that {path} was made from.")
    if recorded != fingerprint(current):
        raise InputError(
            f"{path} was made from other {name} than those now at {current}. "
            f"Make it again, or give the {name} that it was made from."
        )


def try_lock(file: Path) -> IO[str] | None:
    """Holds an advisory lock on `file` until what it returns is closed; None where another process holds it."""
    _make_folder(file.parent)
    try:
        stream = file.open("a")  # which leaves what its holder wrote
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}. Work in a folder that you may write.") from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def begin_run(lock: IO[str]) -> None:
    """Makes this process and those that it starts the run that holds `lock` (see `require_own_run`)."""
    token = uuid.uuid4().hex
    lock.truncate(0)
    lock.write(token)
    lock.flush()
    runs = [os.environ[RUN]] if os.environ.get(RUN) else []
    os.environ[RUN] = os.pathsep.join([*runs, f"{Path(lock.name).absolute()}={token}"])


def require_own_run() -> None:
    """Raises InputError in a job whose workflow died and whose study another one runs by now.

    Such a job would write its result, of a study that may have been edited, over that of the new run.
    """
    for entry in filter(None, os.environ.get(RUN, "").split(os.pathsep)):
        file, _, token = entry.rpartition("=")
        try:
            current = Path(file).read_text()
        except OSError:
            continue  # another machine, which does not see the lock
        if current != token:
            raise InputError(f"another run of the study has begun ({file}). This one ends and writes nothing.")


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Holds an advisory lock on the file `lock`; waits, and says so, while another process holds it.

    The kernel drops the lock when its holder dies, so a killed run never leaves a stale one.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting: another process is {what}.", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
