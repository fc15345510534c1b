"""A checkpoint folder is unchanged, has files of valid sizes, and has no links that leave it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dmoerm.errors import CheckpointError
from dmoerm.model import DMoERM
from dmoerm.model.integrity import check_files, check_sums, write_sums


def test_the_sums_are_the_standard_ones(copied: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=copied, check=True, capture_output=True)
    listed = {line.split("  ")[1] for line in (copied / "SHA256SUMS").read_text().splitlines()}
    files = {str(file.relative_to(copied)) for file in copied.rglob("*") if file.is_file()}
    assert listed == files - {"README.md", "run.yaml", "SHA256SUMS"}


def test_a_flipped_bit_in_any_file_is_detected(copied: Path) -> None:
    for file in [
        file
        for file in copied.rglob("*")
        if file.is_file() and file.name not in ("README.md", "run.yaml", "SHA256SUMS")
    ]:
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
        with pytest.raises(CheckpointError, match=rf"{file}: changed since the model was.*copy the model again"):
            DMoERM.from_pretrained(copied)
        file.write_bytes(content)
    check_sums(copied)


def test_of_many_changed_files_three_are_named_and_the_others_counted(copied: Path) -> None:
    changed = sorted(str(file.relative_to(copied)) for file in copied.rglob("*.safetensors"))[:5]
    for count, more in ((3, ""), (5, " and 2 more")):
        for name in changed[:count]:
            (copied / name).write_bytes(b"changed")
        with pytest.raises(CheckpointError) as caught:
            check_sums(copied)
        named = ", ".join(str(copied / name) for name in changed[:3])
        assert str(caught.value).startswith(f"{named}{more}: changed since the model was written")


def test_texts_may_be_edited_and_files_added(copied: Path) -> None:
    (copied / "README.md").write_bytes("Schöner".encode("latin-1"))
    (copied / "run.yaml").write_text("seed: 3")
    (copied / "notes.txt").write_text("mine")
    assert DMoERM.from_pretrained(copied).texts["README.md"].startswith("Sch")


def test_without_sums_or_on_request_nothing_is_checked(copied: Path) -> None:
    with (copied / "config.json").open("a") as file:
        file.write(" ")
    DMoERM.from_pretrained(copied, check=False)
    with pytest.raises(CheckpointError, match="changed since the model was written"):
        DMoERM.from_pretrained(copied)
    (copied / "SHA256SUMS").unlink()
    DMoERM.from_pretrained(copied)


@pytest.mark.parametrize(
    "content", ["x", f"{'0' * 64}  ../x\n", f"{'0' * 64}  /etc/passwd\n", f"{'0' * 63}  config.json"]
)
def test_invalid_sums_are_an_error(copied: Path, content: str) -> None:
    (copied / "SHA256SUMS").write_text(content)
    with pytest.raises(CheckpointError, match=r"SHA256SUMS: is damaged, or names files outside"):
        check_sums(copied)


def test_links_inside_and_into_the_hubs_cache_are_followed(copied: Path, tmp_path: Path) -> None:
    """The hub's cache contains a folder of links: snapshots/COMMIT/FILE → blobs/HASH."""
    snapshot, blobs = tmp_path / "models--me--rm" / "snapshots" / "c0ffee", tmp_path / "models--me--rm" / "blobs"
    shutil.copytree(copied, snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(file for file in snapshot.rglob("*") if file.is_file())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    DMoERM.from_pretrained(snapshot)
    (blobs / "0").rename(tmp_path / "outside")
    (blobs / "0").symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="leads out of the model folder, to"):
        DMoERM.from_pretrained(snapshot)


def test_hidden_files_are_ignored(copied: Path) -> None:
    (copied / ".git").mkdir()
    (copied / ".git" / "link").symlink_to("/etc/passwd")
    check_files(copied)
    write_sums(copied)
    assert ".git" not in (copied / "SHA256SUMS").read_text()
