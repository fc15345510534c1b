"""Save two models over one another in turns, the second one last: saving.py FIRST SECOND TARGET TIMES."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from dmoerm.errors import DmoermError
from dmoerm.model import DMoERM


def main(first: str, second: str, target: str, times: str) -> int:
    models = [DMoERM.from_pretrained(second), DMoERM.from_pretrained(first)]
    with contextlib.suppress(OSError):  # on a full or read-only disk, saving the models must report it
        Path(target).parent.joinpath("started").touch()
    try:
        for left in reversed(range(int(times))):
            models[left % 2].save_pretrained(target)
    except DmoermError as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
