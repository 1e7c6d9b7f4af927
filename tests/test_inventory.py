"""Every file of a folder is read, ignored by a rule that says why, or named in a warning."""

import os
from pathlib import Path

import pytest

from ehrctx.errors import InputError
from ehrctx.inventory import HIDDEN, Inventory, files_below, tell_inventory


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_below(folder):
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def test_links_to_folders_and_files_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/0.parquet", "elsewhere/deep/1.parquet", "data/a/2.parquet")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "c.parquet").symlink_to(tmp_path / "elsewhere" / "0.parquet")
    assert names_below(tmp_path / "data") == ["a/2.parquet", "b/0.parquet", "b/deep/1.parquet", "c.parquet"]


@pytest.mark.parametrize("target", ["gone.parquet", "0.parquet"])
def test_a_link_to_nothing_or_to_itself_is_refused(tmp_path, target):
    (tmp_path / "0.parquet").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"0\.parquet is a link to a file that is not there"):
        files_below(tmp_path)


def test_a_link_that_leads_back_up_is_refused(tmp_path):
    touch(tmp_path, "a/0.parquet")
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    with pytest.raises(InputError, match="a/b is a link to a folder above it"):
        files_below(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    touch(tmp_path, "a/0.parquet")
    (tmp_path / "a").chmod(0)
    with pytest.raises(InputError, match="a cannot be read: Permission denied"):
        files_below(tmp_path)


def rule(relative: Path) -> str | None:
    if relative.suffix == ".parquet":
        return ""
    return "a description" if relative.suffix == ".md" else None


def test_every_file_is_in_one_of_the_three(tmp_path):
    touch(
        tmp_path, "0.parquet", "._0.parquet", "a/.hidden/1.parquet", "a/_SUCCESS", "README.md", "a/2.csv", "_3.parquet"
    )
    inventory = Inventory.of(tmp_path, files_below(tmp_path), rule)
    assert [file.name for file in inventory.read] == ["0.parquet", "_3.parquet"]
    assert {file.relative_to(tmp_path).as_posix(): why for file, why in inventory.ignored} == {
        "._0.parquet": HIDDEN, "a/.hidden/1.parquet": HIDDEN, "a/_SUCCESS": HIDDEN, "README.md": "a description",
    }  # fmt: skip
    assert [file.name for file in inventory.unknown] == ["2.csv"]


def test_a_warning_names_five_files_and_counts_the_rest(tmp_path, capsys):
    touch(tmp_path, *(f"{i}.csv" for i in range(7)), "README.md")
    inventory = Inventory.of(tmp_path, files_below(tmp_path), rule)
    tell_inventory(inventory, "Convert them.")
    said = capsys.readouterr().err
    assert said == f"warning: {tmp_path}: not read: 0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more. Convert them.\n"
    tell_inventory(inventory, "Convert them.", verbose=True)
    assert "ignored: README.md (a description)\n" in capsys.readouterr().err
    assert Inventory.of(tmp_path, [], rule).warning("Convert them.") is None
