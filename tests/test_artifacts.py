"""Artefacts: whole or not at all, with their provenance, refused when an input changed."""

import hashlib
import json
import os
import subprocess
import sys

import polars as pl
import pytest

from ehrctx import __version__
from ehrctx.artifacts import (
    MANIFEST,
    RUN,
    SCHEMA_VERSION,
    begin_run,
    exclusive,
    fingerprint,
    new_artifact,
    new_file,
    read_manifest,
    require_same_input,
    try_lock,
    write_table,
)
from ehrctx.errors import InputError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "source.csv"
    file.write_text("a,b\n1,2\n")
    return file


def make(path, source, text="content"):
    with new_artifact(path, "thing", {"k": 3}, {"events": source}, {"rows": 1}) as folder:
        write(folder, "data.txt", text)


def test_manifest_says_what_made_it_and_what_it_holds(tmp_path, source):
    facts = {"rows": 0}
    with new_artifact(tmp_path / "out", "thing", {"k": 3}, {"events": source}, facts) as folder:
        write(folder, "data.txt", "content")
        write(folder, "sub/more.txt", "more")
        facts["rows"] = 12
        assert not (tmp_path / "out").exists()
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["kind"] == "thing"
    assert manifest["schema"] == SCHEMA_VERSION
    assert manifest["settings"] == {"k": 3}
    assert manifest["inputs"] == {"events": sha256(source.read_bytes())}
    assert manifest["facts"] == {"rows": 12}
    assert manifest["files"] == {"data.txt": sha256(b"content"), "sub/more.txt": sha256(b"more")}
    assert manifest["versions"]["ehrctx"] == __version__
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert read_manifest(tmp_path / "out", "thing") == manifest


def test_same_work_gives_the_same_bytes(tmp_path, source):
    make(tmp_path / "a", source)
    make(tmp_path / "b", source)
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_exception_leaves_nothing_behind(tmp_path, source, failure):
    def fail():
        with new_artifact(tmp_path / "out", "thing", {}, {}) as folder:
            write(folder, "data.txt", "half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name]


def test_exception_keeps_the_old_artefact(tmp_path, source):
    make(tmp_path / "out", source, "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def fail():
        with new_artifact(tmp_path / "out", "thing", {}, {}) as folder:
            write(folder, "data.txt", "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", source.name]


def test_new_artefact_replaces_the_old_one_whole(tmp_path, source):
    with new_artifact(tmp_path / "out", "thing", {}, {}) as folder:
        write(folder, "gone.txt", "old")
    make(tmp_path / "out", source, "new")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data.txt", MANIFEST]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", source.name]


def test_killed_job_leaves_a_partial_folder_that_the_next_run_removes(tmp_path, source):
    code = (
        "import os, sys, signal; from pathlib import Path; from ehrctx.artifacts import new_artifact\n"
        "with new_artifact(Path(sys.argv[1]), 'thing', {}, {}) as folder:\n"
        "    (folder / 'data.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    assert [p.name.startswith(".out.partial-") for p in tmp_path.iterdir() if p != source] == [True]
    bystander = tmp_path / ".other.partial-1"
    bystander.mkdir()
    make(tmp_path / "out", source)
    assert sorted(p.name for p in tmp_path.iterdir()) == [bystander.name, "out", source.name]


def test_changed_input_is_refused_and_named(tmp_path, source):
    make(tmp_path / "out", source)
    require_same_input(tmp_path / "out", "thing", "events", source)
    source.write_text("a,b\n1,3\n")
    with pytest.raises(InputError, match="made from other events than those now at") as caught:
        require_same_input(tmp_path / "out", "thing", "events", source)
    assert str(tmp_path / "out") in str(caught.value)
    assert str(source) in str(caught.value)


def test_an_input_that_is_not_there_is_refused(tmp_path, source):
    make(tmp_path / "out", source)
    with pytest.raises(InputError, match=r"no such events: .*nowhere"):
        require_same_input(tmp_path / "out", "thing", "events", tmp_path / "nowhere")


def test_input_that_was_never_recorded_is_refused(tmp_path, source):
    make(tmp_path / "out", source)
    with pytest.raises(InputError, match="labels"):
        require_same_input(tmp_path / "out", "thing", "labels", source)


def test_input_that_is_an_artefact_is_known_by_its_manifest(tmp_path, source):
    make(tmp_path / "first", source)
    with new_artifact(tmp_path / "second", "other", {}, {"things": tmp_path / "first"}):
        pass
    require_same_input(tmp_path / "second", "other", "things", tmp_path / "first")
    make(tmp_path / "first", source, "other content")
    with pytest.raises(InputError, match="other things than those"):
        require_same_input(tmp_path / "second", "other", "things", tmp_path / "first")


def test_fingerprint_of_a_folder_sees_names_and_bytes(tmp_path):
    folder = tmp_path / "data"
    write(folder, "x/a.txt", "1")
    first = fingerprint(folder)
    write(folder, ".hidden", "not counted")
    assert fingerprint(folder) == first
    write(folder, "x/a.txt", "2")
    assert fingerprint(folder) != first
    write(folder, "x/a.txt", "1")
    assert fingerprint(folder) == first
    (folder / "x" / "a.txt").rename(folder / "x" / "b.txt")
    assert fingerprint(folder) != first


def test_read_manifest_refuses_what_is_not_the_artefact(tmp_path, source):
    with pytest.raises(InputError, match="not a finished thing folder"):
        read_manifest(tmp_path, "thing")
    make(tmp_path / "out", source)
    with pytest.raises(InputError, match="holds 'thing' where 'labels' is expected"):
        read_manifest(tmp_path / "out", "labels")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest | {"schema": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match=f"schema {SCHEMA_VERSION + 1}"):
        read_manifest(tmp_path / "out", "thing")


def test_new_file_is_atomic(tmp_path):
    file = tmp_path / "sub" / "table.csv"
    with new_file(file) as partial:
        partial.write_text("one")
        assert partial.parent == file.parent
        assert not file.exists()
    assert file.read_text() == "one"

    def fail():
        with new_file(file) as partial:
            partial.write_text("half of tw")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "one"
    assert os.listdir(file.parent) == ["table.csv"]


def test_exclusive_waits_for_its_holder_and_says_so(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ehrctx.artifacts import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'writing scores'):\n"
        "    print(Path(sys.argv[2]).exists())\n"
    )
    lock, done = tmp_path / "locks" / "scores", tmp_path / "done"
    with exclusive(lock, "writing scores"):
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, str(lock), str(done)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr.readline() == "Waiting: another process is writing scores.\n"
        done.touch()
    out, _ = waiting.communicate(timeout=30)
    assert out == "True\n"


@pytest.mark.parametrize("kind", ["partial", "replaced.partial"])
@pytest.mark.parametrize("process", ["own", "dead"])
def test_leftovers_of_every_kind_are_removed(tmp_path, source, kind, process):
    """In a container, a command that was killed and is started again often has the number that it had."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    number = os.getpid() if process == "own" else dead.pid
    name = "out [v1]"  # brackets are no pattern
    write(tmp_path, f".{name}.{kind}-{number}/half.txt", "half")
    make(tmp_path / name, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "source.csv"]


def test_leftovers_of_a_running_process_are_left_alone(tmp_path, source):
    write(tmp_path, f".out.partial-{os.getppid()}/half.txt", "half")
    make(tmp_path / "out", source)
    assert (tmp_path / f".out.partial-{os.getppid()}").is_dir()


def test_fingerprint_follows_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, "0.parquet", "events")
    (tmp_path / "meds").mkdir()
    (tmp_path / "meds" / "data").symlink_to(elsewhere)
    before = fingerprint(tmp_path / "meds")
    write(elsewhere, "0.parquet", "other events")
    assert fingerprint(tmp_path / "meds") != before


def test_damaged_manifest_is_an_input_error(tmp_path, source):
    make(tmp_path / "out", source)
    file = tmp_path / "out" / MANIFEST
    file.write_text(file.read_text()[:50])
    with pytest.raises(InputError, match=r"manifest\.json is damaged.*make it again"):
        read_manifest(tmp_path / "out", "thing")


@pytest.mark.parametrize("writer", [new_file, lambda path: new_artifact(path, "thing", {}, {})])
def test_a_place_below_a_file_is_an_input_error(tmp_path, source, writer):
    with pytest.raises(InputError, match=r"source\.csv cannot be made: .* Give another path"), writer(source / "out"):
        pass


def test_a_table_has_empty_cells_where_nothing_is_defined_or_shown(tmp_path):
    table = pl.DataFrame({"task": ["a", "b", "c"], "value": [0.12345678, float("nan"), None], "n": [1, 2, 3]})
    write_table(table, tmp_path / "new" / "scores.csv")
    assert (tmp_path / "new" / "scores.csv").read_text() == "task,value,n\na,0.123457,1\nb,,2\nc,,3\n"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["scores.csv"]


def test_a_job_of_a_run_that_died_writes_nothing_once_another_has_begun(tmp_path, source, monkeypatch):
    """Snakemake alone was killed: its jobs go on, and the study may have been edited since."""
    monkeypatch.setenv(RUN, "")
    with try_lock(tmp_path / ".lock") as first:
        begin_run(first)
        make(tmp_path / "out", source, "of the first run")
        assert try_lock(tmp_path / ".lock") is None, "a look at the lock takes nothing from its holder"
        make(tmp_path / "out", source, "still of the first run")
    orphan = os.environ[RUN]
    with try_lock(tmp_path / ".lock"):  # a dry run, which begins nothing
        make(tmp_path / "out", source, "of the orphan")
    with try_lock(tmp_path / ".lock") as second:
        monkeypatch.setenv(RUN, "")
        begin_run(second)
        make(tmp_path / "out", source, "of the second run")
        monkeypatch.setenv(RUN, orphan)
        with pytest.raises(InputError, match="another run of the study has begun"):
            make(tmp_path / "out", source, "of the orphan again")
        with pytest.raises(InputError, match="another run of the study has begun"):
            write_table(pl.DataFrame({"a": [1]}), tmp_path / "a.csv")
    assert (tmp_path / "out" / "data.txt").read_text() == "of the second run"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "out", "source.csv"]


def test_a_job_that_cannot_see_the_lock_goes_on(tmp_path, source, monkeypatch):
    monkeypatch.setenv(RUN, f"{tmp_path / 'elsewhere' / '.lock'}=token")
    make(tmp_path / "out", source)
    assert (tmp_path / "out").is_dir()
