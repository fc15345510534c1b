"""The prompts that a model was trained on: `training_prompts.txt` in the checkpoint.

The file has one digest per line, sorted: the first 16 hex digits of the SHA-256 of `prompt_key(prompt)`. A digest
does not reveal its prompt, but anyone with a prompt can check whether it is in the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..errors import CheckpointError
from ..schema import Prompt, prompt_key

FILE = "training_prompts.txt"
_DIGITS = 16
_VALID = re.compile(rf"(?:[0-9a-f]{{{_DIGITS}}}\n)*")


@dataclass(frozen=True)
class TrainingPrompts:
    """The prompts that a model was trained on, its validation part included.

    `prompt in training_prompts` compares prompts as the split into training and test part does: white space and Unicode
    normalization forms are ignored.
    """

    digests: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Self:
        """Build the set from prompts."""
        return cls(frozenset(map(_digest, prompts)))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read a checkpoint's set; return None if the checkpoint has none, as in older versions.

        Raises:
            CheckpointError: the file is not a list of digests.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        text = file.read_text(encoding="ascii", errors="replace")
        if not _VALID.fullmatch(text):
            raise CheckpointError(f"{file}: is not a list of prompt digests; train again, or delete the file")
        return cls(frozenset(text.split()))

    def write(self, folder: Path) -> None:
        """Write the set into a checkpoint."""
        (folder / FILE).write_text("".join(f"{digest}\n" for digest in sorted(self.digests)), encoding="ascii")

    def __contains__(self, prompt: Prompt) -> bool:
        return _digest(prompt) in self.digests

    def __or__(self, other: TrainingPrompts) -> TrainingPrompts:
        return TrainingPrompts(self.digests | other.digests)

    def __len__(self) -> int:
        return len(self.digests)


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(prompt_key(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
