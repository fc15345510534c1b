"""Cache the trunk's activations on disk: computed once per text, read by every phase and later run.

Files are memory-mapped safetensors of about 50,000 tokens each. A file is complete or absent, so a killed run loses the
work of at most one file. A fingerprint of the trunk names the folder. A hash of the token ids (thus of the template)
names an entry; the name of an embedding also has a fingerprint of the pretrained branch and the pooling.

The folder never exceeds its limit. What does not fit is computed each time it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..chat.encoding import Encoded
from ..io.paths import write_file
from ..model import DMoERM
from ..model.memory import scoring_tokens
from ..model.packing import Packed, batches, pack_ids
from .processes import barrier, broadcast, full_tensor, is_main, shard, shard_evenly, sharded, smallest

_LOG = logging.getLogger("dmoerm.training")
_SHARD_TOKENS = 50_000
_ROUTE = "prompt-mean-last"  # names what it is: caches outlive versions
_SUFFIXES = (".safetensors", ".arrow")  # activations, and the token ids of `examples.py`
_LOCK_SECONDS = 600  # writing a shard takes under a second; a stuck file system must not block a run forever


class Texts(Sequence[Encoded]):
    """Token ids that are decoded one at a time, when they are read.

    Args:
        read: index → the token ids.
        indices: those of the texts, in their order.
    """

    def __init__(self, read: Callable[[int], Encoded], indices: Sequence[int]) -> None:
        self._read, self._indices = read, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._read(self._indices[index])


class ActivationCache:
    """Hidden states, prompt embeddings and (with a frozen branch) response embeddings by text.

    Args:
        hidden: cache the hidden states at the cut, which trained branches and LoRA experts need.
        embedding: cache the embeddings of the responses under the pretrained branch.
        limit: maximum bytes of all files under `root`. Least recently used files are evicted, except those that this
            run uses. 0 switches the cache off: nothing is computed ahead or written.
    """

    def __init__(
        self, root: Path, model: DMoERM, *, hidden: bool, embedding: bool, limit: float = float("inf")
    ) -> None:
        self.model, self.hidden, self.embedding = model, hidden and model.trunk is not None, embedding
        self.route = model.router.language_model is None
        settings = {k: v for k, v in model.config.backbone.items() if not k.startswith("_") and "version" not in k}
        self.folder = root / _fingerprint([model.config.branch_layer, settings], model.trunk)
        branch = _fingerprint([model.general.pooling], model.general.branch) if embedding else ""
        self._embedding = f"embedding-{branch}"
        self.root, self._limit = root, limit
        self._used: set[Path] = set()
        self._paths: dict[str, Path] = {}
        self._open: dict[Path, object] = {}
        self._opened = time.time()
        self._computed: tuple[str, dict[str, Tensor]] = ("", {})
        self._index_all()

    def fill(self, texts: Sequence[Encoded], done: Callable[[int, int], None] = lambda _, __: None) -> int:
        """Compute the missing activations, sharded over the processes, until the folder is full.

        Args:
            done: called after each batch with the number of tokens computed and their total.

        Returns:
            The number of texts that do not fit.
        """
        keys = [text.key for text in texts]
        if self._limit == 0 and self._needed():
            return len(set(keys))
        if is_main():
            self._make_room(0, used=True)
        barrier()
        self._index_all()  # written by other processes since
        self._store(self._missing(texts, keys), done)
        barrier()
        self._index_all()
        return len({key for key in keys if not self._has(key)})

    def _store(self, missing: Sequence[Encoded], done: Callable[[int, int], None]) -> None:
        """Compute this process's share of the texts; a shard is written while the next one is computed."""
        branch: Any = self.model.general.branch
        passes = list(batches(missing, smallest(scoring_tokens(branch))))
        local = shard(passes)
        total, so_far, tokens = sum(missing[i].tokens for rows in local for i in rows), 0, 0
        waiting: dict[str, Tensor] = {}
        written: Future[bool] | None = None
        with ThreadPoolExecutor(1) as pool:
            for number, rows in enumerate(shard_evenly(passes)):
                batch = [missing[i] for i in rows]
                computed = self._compute(batch)
                if number == len(local):  # a dummy of `shard_evenly`
                    break
                waiting |= computed
                size = sum(text.tokens for text in batch)
                so_far, tokens = so_far + size, tokens + size
                done(so_far, total)
                if tokens > _SHARD_TOKENS:
                    full = written is not None and not written.result()
                    if full and not sharded():  # with sharded weights all processes make the same number of passes
                        return
                    written = pool.submit(self._write, waiting)
                    waiting, tokens = {}, 0
            if written is not None:
                written.result()  # raises the error of the thread
        if waiting:
            self._write(waiting)

    def _missing(self, texts: Sequence[Encoded], keys: Sequence[str]) -> Sequence[Encoded]:
        """Return each text without an entry once, and mark the entries of the others as used by this run."""
        bits = broadcast(np.packbits([self._has(key) for key in keys]))  # a bit per text, since a key takes 80 bytes
        first: dict[str, int] = {}
        for index, (key, known) in enumerate(zip(keys, np.unpackbits(bits, count=len(keys)), strict=True)):
            if not known:
                first.setdefault(key, index)
            for part in self._needed() if self._has(key) else ():
                self._use(self._paths[f"{key}/{part}"])  # must not be evicted for new ones
        return Texts(texts.__getitem__, list(first.values()))

    def _has(self, key: str) -> bool:
        return all(f"{key}/{name}" in self._paths for name in self._needed())

    def _needed(self) -> list[str]:
        return [_ROUTE] * self.route + [self._embedding] * self.embedding + ["prompt", "response"] * self.hidden

    def states(self, text: Encoded) -> tuple[Tensor, list[Tensor]]:
        """Return the hidden states at the cut, prompt (P, d) and responses [(R, d)]; token ids if there is no trunk."""
        if not self.hidden:
            return torch.tensor(text.prompt), [torch.tensor(ids) for ids in text.responses]
        response = self._read(text, "response")
        return self._read(text, "prompt"), list(response.split([len(ids) for ids in text.responses]))

    def embeddings(self, text: Encoded) -> Tensor:
        """Return the embeddings (N, D) of the responses under the pretrained branch."""
        return self._read(text, self._embedding)

    def prompt(self, text: Encoded) -> Tensor:
        """Return the embedding (2 d,) of the prompt at the cut, for the router."""
        return self._read(text, _ROUTE)

    @torch.no_grad()  # not inference_mode: weights gathered in it could not take part in autograd later
    def _compute(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """Compute the activations of texts in one pass, and copy each kind to the CPU as a whole.

        A text's are copies, since a view would keep those of the whole pass in memory.
        """
        hidden = self.model.hidden(pack_ids(batch).to(self.model.device))
        sizes = [len(text.responses) for text in batch]
        tensors: dict[str, Tensor] = {}
        if self.embedding:
            embeddings = self.model.general.embed(hidden).cpu().split(sizes)
            tensors |= {f"{text.key}/{self._embedding}": z.clone() for text, z in zip(batch, embeddings, strict=True)}
        if self.route:
            prompts = hidden.prompt_embeddings().cpu()
            tensors |= {f"{text.key}/{_ROUTE}": each.clone() for text, each in zip(batch, prompts, strict=True)}
        if self.hidden:
            states = Packed(hidden.tokens.cpu(), hidden.packing)
            for text, (prompt, responses) in zip(batch, states.split(), strict=True):
                tensors |= {f"{text.key}/prompt": prompt.clone(), f"{text.key}/response": torch.cat(responses)}
        return tensors

    def _write(self, tensors: dict[str, Tensor]) -> bool:
        """Write a shard if it fits within the limit; return whether it does."""
        name = hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]
        shard_file, content = self.folder / f"{name}.safetensors", save(tensors)
        self.root.mkdir(parents=True, exist_ok=True)
        # the limit holds for all processes that write there
        limited = self._limit < float("inf")
        with FileLock(self.root / ".lock", timeout=_LOCK_SECONDS) if limited else contextlib.nullcontext():
            if not self._make_room(len(content)):
                return False
            write_file(shard_file, content)
        self._index(shard_file)
        self._used.add(shard_file)
        return True

    def _make_room(self, size: int, used: bool = False) -> bool:
        """Remove least recently used files until `size` bytes fit; return whether they do.

        Args:
            used: also remove files that this run or another one uses, since the limit was higher before.
        """
        files: list[tuple[float, Path, int]] = []
        for file in (file for suffix in _SUFFIXES for file in self.root.rglob(f"*{suffix}")):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                stat = file.stat()
                files.append((stat.st_mtime, file, stat.st_size))
        excess = sum(taken for *_, taken in files) + size - self._limit
        for modified, file, taken in sorted(files):
            in_use = file in self._used or modified >= self._opened  # by this run, or by another one
            if excess > 0 and (used or not in_use):
                with contextlib.suppress(PermissionError):  # Windows does not remove open files
                    file.unlink(missing_ok=True)
                    self._forget(file)
                    excess -= taken
        return excess <= 0

    def _forget(self, shard_file: Path) -> None:
        self._open.pop(shard_file, None)
        self._used.discard(shard_file)
        self._paths = {name: path for name, path in self._paths.items() if path != shard_file}

    def _index_all(self) -> None:
        for shard_file in [shard_file for shard_file in self._open if not shard_file.exists()]:
            self._forget(shard_file)
        for shard_file in sorted(self.folder.glob("*.safetensors")):
            if shard_file not in self._open:
                self._index(shard_file)

    def _index(self, shard_file: Path) -> None:
        try:
            file = safe_open(shard_file, framework="pt")
        except SafetensorError:
            shard_file.unlink(missing_ok=True)  # damaged: its entries are computed again
            return
        except OSError as error:  # of this process or of the file system: the file is as good as it was
            if shard_file.exists():  # else another run has evicted it
                _LOG.warning(f"{shard_file}: cannot be opened, its activations are computed again: {error}")
            return
        self._open[shard_file] = file
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            self._paths[name] = shard_file

    def _read(self, text: Encoded, part: str) -> Tensor:
        name = f"{text.key}/{part}"
        if (shard_file := self._paths.get(name)) is not None:
            self._use(shard_file)
            return self._open[shard_file].get_tensor(name)  # pyright: ignore
        if self._computed[0] != text.key:  # the parts of a text are read one after the other
            self._computed = (text.key, self._compute([text]))
        return self._computed[1][name]

    def _use(self, shard_file: Path) -> None:
        """Mark a shard as used: by this run, and by its file time for other runs."""
        if shard_file not in self._used:
            self._used.add(shard_file)
            with contextlib.suppress(OSError):  # another run may have removed it; it stays open here
                os.utime(shard_file)


def _fingerprint(description: object, part: torch.nn.Module | None) -> str:
    """Return a hash of the description and of 64 values of every weight of a part of the model."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for name, parameter in part.named_parameters() if part is not None else ():
        digest.update(name.encode())
        digest.update(full_tensor(parameter).flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
