"""The trunk's activations on disk: computed once for each text, read by every phase and every later run.

Shards of some 50,000 tokens in safetensors, which is memory-mapped; a shard is written completely or not at all, so a
killed run loses at most one shard's work. The folder's name fingerprints the trunk; the token ids (so the template too)
name the entries, and those of embeddings the pretrained branch and the pooling as well.

The folder never takes more than its limit. What does not fit is computed each time it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..chat.encoding import Encoded
from ..io.paths import write_file
from ..model import DMoERM
from ..model.batching import batches, pack_ids
from .processes import agreed, barrier, is_main, own, own_evenly, sharded
from .sharding import whole

_SHARD_TOKENS = 50_000
_LOCK_SECONDS = 600  # a shard takes a fraction of a second to write; a stuck file system must not hang a run


class ActivationCache:
    """Hidden states, prompt embeddings and (where the branch stays as pretrained) response embeddings by text.

    Args:
        hidden: keep the hidden states at the cut, which trained branches and LoRA experts need.
        embedding: keep the responses' embeddings under the pretrained branch.
        limit: bytes that the shards of all caches under `root` may take. Least recently used shards are removed for
            new ones, but not those that this run uses.
    """

    def __init__(
        self, root: Path, model: DMoERM, *, hidden: bool, embedding: bool, limit: float = float("inf")
    ) -> None:
        self.model, self.hidden, self.embedding = model, hidden and model.trunk is not None, embedding
        self.route = model.router.language_model is None
        self.folder = root / _fingerprint([model.config.branch_layer, _settings(model)], model.trunk)
        branch = _fingerprint([model.general.pooling], model.general.branch) if embedding else ""
        self._embedding = f"embedding-{branch}"
        self._root, self._limit = root, limit
        self._used: set[Path] = set()
        self._paths: dict[str, Path] = {}
        self._open: dict[Path, object] = {}
        self._opened = time.time()
        self._computed: tuple[str, dict[str, Tensor]] = ("", {})
        self._index_all()

    def fill(self, texts: Sequence[Encoded], done: Callable[[int, int], None] = lambda _, __: None) -> int:
        """Compute what is missing, each process its share, until the folder is full.

        Args:
            done: called with the tokens done and their total after each batch.

        Returns:
            The number of texts that do not fit.
        """
        if is_main():
            self._shrink()
        barrier()
        self._index_all()  # what others have written since
        known = agreed({text.key for text in texts if self._has(text)})
        missing = list({text.key: text for text in texts if text.key not in known}.values())
        for name in (f"{text.key}/{part}" for text in texts if self._has(text) for part in self._needed()):
            self._use(self._paths[name])  # what is wanted must not make room for what is missing
        passes = list(batches(missing, 8192))
        mine = own(passes)
        total, so_far, tokens = sum(missing[i].tokens for rows in mine for i in rows), 0, 0
        waiting: dict[str, Tensor] = {}
        for number, rows in enumerate(own_evenly(passes)):
            batch = [missing[i] for i in rows]
            computed = self._compute(batch)
            if number == len(mine):
                break
            waiting |= computed
            so_far += sum(text.tokens for text in batch)
            done(so_far, total)
            tokens += sum(text.tokens for text in batch)
            if tokens > _SHARD_TOKENS:
                full = not self._write(waiting)
                waiting, tokens = {}, 0
                if full and not sharded():  # processes that share weights make as many passes each
                    break
        if waiting:
            self._write(waiting)
        barrier()
        self._index_all()
        return len({text.key for text in texts if not self._has(text)})

    def _has(self, text: Encoded) -> bool:
        return all(f"{text.key}/{name}" in self._paths for name in self._needed())

    def _needed(self) -> list[str]:
        return ["route"] * self.route + [self._embedding] * self.embedding + ["prompt", "response"] * self.hidden

    def states(self, text: Encoded) -> tuple[Tensor, list[Tensor]]:
        """Hidden states at the cut: the prompt's (P, d), and each response's (R, d); ids where none are kept."""
        if not self.hidden:
            return torch.tensor(text.prompt), [torch.tensor(ids) for ids in text.responses]
        response = self._read(text, "response")
        return self._read(text, "prompt"), list(response.split([len(ids) for ids in text.responses]))

    def embeddings(self, text: Encoded) -> Tensor:
        """(N, D), the responses' embeddings under the pretrained branch."""
        return self._read(text, self._embedding)

    def prompt(self, text: Encoded) -> Tensor:
        """(d,), the prompt's embedding at the cut, for the router."""
        return self._read(text, "route")

    @torch.no_grad()  # not inference_mode: weights that are put together in it could not be trained through later
    def _compute(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        hidden = self.model.hidden(pack_ids(batch).to(self.model.device))
        sizes = [len(text.responses) for text in batch]
        found: dict[str, Tensor] = {}
        if self.hidden:
            for text, (prompt, responses) in zip(batch, hidden.split(), strict=True):
                found |= {f"{text.key}/prompt": prompt, f"{text.key}/response": torch.cat(responses)}
        if self.embedding:
            embeddings = self.model.general.embed(hidden).split(sizes)
            found |= {f"{text.key}/{self._embedding}": z for text, z in zip(batch, embeddings, strict=True)}
        if self.route:
            found |= {f"{text.key}/route": z for text, z in zip(batch, hidden.prompt_means(), strict=True)}
        return {name: tensor.cpu().clone() for name, tensor in found.items()}

    def _write(self, tensors: dict[str, Tensor]) -> bool:
        """Write a shard if it fits the limit, and return whether it does."""
        name = hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]
        shard, content = self.folder / f"{name}.safetensors", save(tensors)
        with self._alone():
            if self._make_room(len(content)) > 0:
                return False
            write_file(shard, content)
        self._index(shard)
        self._used.add(shard)
        return True

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """The root's lock: who writes must know what all others have written."""
        if self._limit == float("inf"):
            return contextlib.nullcontext()
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / ".lock", timeout=_LOCK_SECONDS)

    def _make_room(self, size: int) -> float:
        """Remove least recently used shards of other runs until `size` bytes fit; return the bytes that do not."""
        excess, shards = self._excess(size)
        for shard, modified, taken in shards:
            if excess <= 0:
                break
            if shard not in self._used and modified < self._opened:  # a younger one is in use elsewhere
                excess -= self._remove(shard, taken)
        return excess

    def _shrink(self) -> None:
        """Bring the folder below a limit that was higher before, by this run's own shards if need be."""
        with self._alone():
            excess, shards = self._excess(0)
            for shard, _, taken in shards:
                if excess <= 0:
                    break
                excess -= self._remove(shard, taken)

    def _excess(self, size: int) -> tuple[float, list[tuple[Path, float, int]]]:
        """By how much the shards and `size` bytes exceed the limit; each shard, its time and size, oldest first."""
        shards: list[tuple[Path, float, int]] = []
        for file in self._root.rglob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                stat = file.stat()
                shards.append((file, stat.st_mtime, stat.st_size))
        return sum(taken for *_, taken in shards) + size - self._limit, sorted(shards, key=lambda each: each[1])

    def _remove(self, shard: Path, size: int) -> int:
        """Remove a shard; return the bytes that this frees."""
        try:
            shard.unlink(missing_ok=True)
        except PermissionError:  # on Windows a file that is open stays
            return 0
        self._forget(shard)
        return size

    def _forget(self, shard: Path) -> None:
        self._open.pop(shard, None)
        self._used.discard(shard)
        self._paths = {name: path for name, path in self._paths.items() if path != shard}

    def _index_all(self) -> None:
        for shard in [shard for shard in self._open if not shard.exists()]:
            self._forget(shard)
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in self._open:
                self._index(shard)

    def _index(self, shard: Path) -> None:
        try:
            file = safe_open(shard, framework="pt")
        except (SafetensorError, OSError):
            shard.unlink(missing_ok=True)  # damaged: its entries are computed again
            return
        self._open[shard] = file
        for name in file.keys():  # noqa: SIM118 (no mapping)
            self._paths[name] = shard

    def _read(self, text: Encoded, part: str) -> Tensor:
        name = f"{text.key}/{part}"
        if (shard := self._paths.get(name)) is not None:
            self._use(shard)
            return self._open[shard].get_tensor(name)  # pyright: ignore
        if self._computed[0] != text.key:  # kept, since the parts of a text are read one after the other
            self._computed = (text.key, self._compute([text]))
        return self._computed[1][name]

    def _use(self, shard: Path) -> None:
        """Marks a shard as read: now for this run, and by its time for others."""
        if shard not in self._used:
            self._used.add(shard)
            with contextlib.suppress(OSError):  # another run may have removed it; it is open here
                os.utime(shard)


def _settings(model: DMoERM) -> dict[str, object]:
    return {k: v for k, v in model.config.backbone.items() if not k.startswith("_") and "version" not in k}


def _fingerprint(about: object, part: torch.nn.Module | None) -> str:
    """A hash over what is said of a part of the model and a sample of every weight of it."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, parameter in part.named_parameters() if part is not None else ():
        digest.update(name.encode())
        digest.update(whole(parameter).flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
