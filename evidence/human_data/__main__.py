"""Build the human-labeled data of docs/data.md from its publishers' repositories, each at a pinned commit.

    python -m evidence.human_data data
    DMOERM_DATA=data make evidence

Each set is one file in the native format, and has to have the bytes whose digest is in sources.yaml. SOURCES.md in the
folder has licenses and citations. What is complete is kept: the same command goes on after a kill, and tries again what
could not be built, which is one line on stderr each and makes the exit code 1. It needs git.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dmoerm.errors import DmoermError
from dmoerm.io.paths import write_file

from . import cleaned, published, second

SETS = published.SETS | cleaned.SETS | second.SETS
GITHUB = "https://github.com/"


class SourceError(DmoermError, RuntimeError):
    """A repository cannot be fetched, or does not give the rows that the docs' figures were measured on."""


@dataclass(frozen=True)
class Source:
    """An entry of sources.yaml: some files of a repository, and the sets that are built from them."""

    repository: str
    commit: str
    license: str
    citation: str
    files: list[str]
    sets: dict[str, str]


def read_sources() -> list[Source]:
    """Read sources.yaml."""
    entries = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
    return [Source(**entry) for entry in entries]


def fetch(source: Source, prefix: str, folder: Path) -> None:
    """Check out the files of a source; a server that can filter sends no others.

    Raises:
        SourceError: git is missing, or cannot get the repository, the commit or a file.
    """
    hooks = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}  # which git sets while it runs a hook
    environment = {name: value for name, value in os.environ.items() if name not in hooks}
    environment["GIT_TERMINAL_PROMPT"] = "0"  # GitHub asks for a password where a repository does not exist
    url = f"{prefix}{source.repository}.git"

    def git(*words: str) -> None:
        command = ["git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60", "-C", str(folder), *words]
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)

    try:
        git("init", "--quiet")
        git("remote", "add", "origin", url)
        git("config", "core.sparseCheckout", "true")
        info = folder / ".git" / "info"
        info.mkdir(exist_ok=True)
        (info / "sparse-checkout").write_text("".join(f"/{pattern}\n" for pattern in source.files))
        (info / "attributes").write_text("* -text -filter\n")  # bytes as they are stored
        git("fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", source.commit)
        git("checkout", "--quiet", "FETCH_HEAD")
    except FileNotFoundError:
        raise SourceError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        reason = next((line for line in lines if line.startswith("fatal: ")), lines[-1])
        raise SourceError(f"{url} at {source.commit[:10]}: {reason}") from None


def build(name: str, digest: str, checkout: Path) -> bytes:
    """Return the content of a set's file.

    Raises:
        SourceError: the content does not belong to the digest.
    """
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in SETS[name](checkout)).encode()
    if (actual := hashlib.sha256(content).hexdigest()) != digest:
        raise SourceError(f"the rows have changed: their sha256 is {actual}, and not {digest}")
    return content


def is_complete(folder: Path, name: str, digest: str) -> bool:
    """Return whether the folder has a set's file with the right content."""
    file = folder / f"{name}.jsonl"
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


def build_missing(source: Source, prefix: str, folder: Path) -> list[str]:
    """Write the sets of a source that the folder lacks. Return a line on each failure."""
    missing = {name: digest for name, digest in source.sets.items() if not is_complete(folder, name, digest)}
    failures = []
    with tempfile.TemporaryDirectory() as checkout:
        try:
            if missing:
                fetch(source, prefix, Path(checkout))
        except SourceError as error:
            return [f"{', '.join(missing)} not built: {error}"]
        for name, digest in missing.items():
            try:
                write_file(folder / f"{name}.jsonl", build(name, digest, Path(checkout)))
            except SourceError as error:
                failures.append(f"{name} not built: {error}")
    return failures


def main(arguments: Sequence[str] | None = None) -> None:
    """Build what is missing, and write where each file is from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the files, for DMOERM_DATA")
    parser.add_argument(
        "--from", dest="prefix", default=GITHUB, metavar="URL", help=f"fetch from URLowner/name.git; default: {GITHUB}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per set")
    options = parser.parse_args(arguments)
    failures = []
    table = "# Sources\n\n| file | rows | source | license | please cite |\n|---|---|---|---|---|\n"
    try:
        for source in read_sources():
            for failure in build_missing(source, options.prefix, options.folder):
                failures.append(failure)
                print(failure, file=sys.stderr)
            for name, digest in source.sets.items():
                if is_complete(options.folder, name, digest):
                    rows = (options.folder / f"{name}.jsonl").read_bytes().count(b"\n")
                    url = f"{GITHUB}{source.repository}/tree/{source.commit}"
                    facts = {"name": name, "rows": rows, "url": url, "license": source.license}
                    facts |= {"citation": source.citation, "sha256": digest}
                    brief = f"{name}: {rows} rows; {source.license}; {source.citation}"
                    print(json.dumps(facts) if options.json else brief, flush=True)
                    table += f"| {name}.jsonl | {rows} | {url} | {source.license} | {source.citation} |\n"
            write_file(options.folder / "SOURCES.md", table)
    except DmoermError as error:  # the folder cannot be written
        sys.exit(str(error))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
