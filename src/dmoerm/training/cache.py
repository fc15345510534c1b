"""The trunk's activations on disk: computed once for each text, read by every phase and every later run.

Shards of some 50,000 tokens in safetensors, which is memory-mapped; a shard is written completely or not at all, so a
killed run loses at most one shard's work. The folder's name fingerprints the trunk; the token ids (so the template too)
name the entries, and those of embeddings the pretrained branch and the pooling as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..model import DMoERM
from ..model.batching import batches, pack_ids
from ..model.encoding import Encoded
from ..paths import write_file

_SHARD_TOKENS = 50_000


class ActivationCache:
    """Hidden states, prompt embeddings and (where the branch stays as pretrained) response embeddings by text.

    Args:
        hidden: keep the hidden states at the cut, which trained branches and LoRA experts need.
        embedding: keep the responses' embeddings under the pretrained branch.
    """

    def __init__(self, root: Path, model: DMoERM, *, hidden: bool, embedding: bool) -> None:
        self.model, self.hidden, self.embedding = model, hidden and model.trunk is not None, embedding
        self.route = model.router.language_model is None
        self.folder = root / _fingerprint([model.config.branch_layer, _settings(model)], model.trunk)
        branch = _fingerprint([model.general.pooling], model.general.branch) if embedding else ""
        self._embedding = f"embedding-{branch}"
        self._places: dict[str, Path] = {}
        self._open: dict[Path, object] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._index(shard)

    def fill(self, texts: Sequence[Encoded], done: Callable[[int, int], None] = lambda _, __: None) -> None:
        """Computes what is missing; `done(tokens, of)` is called after each batch."""
        missing = list({text.key: text for text in texts if not self._has(text)}.values())
        total, so_far, tokens = sum(text.tokens for text in missing), 0, 0
        waiting: dict[str, Tensor] = {}
        for rows in batches(missing, 8192):
            batch = [missing[i] for i in rows]
            waiting |= self._compute(batch)
            so_far += sum(text.tokens for text in batch)
            done(so_far, total)
            tokens += sum(text.tokens for text in batch)
            if tokens > _SHARD_TOKENS:
                self._write(waiting)
                waiting, tokens = {}, 0
        if waiting:
            self._write(waiting)

    def _has(self, text: Encoded) -> bool:
        needed = ["route"] * self.route + [self._embedding] * self.embedding
        needed += ["prompt", "response"] * self.hidden
        return all(f"{text.key}/{name}" in self._places for name in needed)

    def states(self, text: Encoded) -> tuple[Tensor, list[Tensor]]:
        """Hidden states at the cut: the prompt's (P, d), and each response's (R, d); ids where none are kept."""
        if not self.hidden:
            return torch.tensor(text.prompt), [torch.tensor(ids) for ids in text.responses]
        response = self._read(f"{text.key}/response")
        return self._read(f"{text.key}/prompt"), list(response.split([len(ids) for ids in text.responses]))

    def embeddings(self, text: Encoded) -> Tensor:
        """(N, D), the responses' embeddings under the pretrained branch."""
        return self._read(f"{text.key}/{self._embedding}")

    def prompt(self, text: Encoded) -> Tensor:
        """(d,), the prompt's embedding at the cut, for the router."""
        return self._read(f"{text.key}/route")

    @torch.inference_mode()
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

    def _write(self, tensors: dict[str, Tensor]) -> None:
        name = hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]
        shard = self.folder / f"{name}.safetensors"
        write_file(shard, save(tensors))
        self._index(shard)

    def _index(self, shard: Path) -> None:
        try:
            file = safe_open(shard, framework="pt")
        except (SafetensorError, OSError):
            shard.unlink(missing_ok=True)  # damaged: its entries are computed again
            return
        self._open[shard] = file
        for name in file.keys():  # noqa: SIM118 (no mapping)
            self._places[name] = shard

    def _read(self, name: str) -> Tensor:
        return self._open[self._places[name]].get_tensor(name)  # pyright: ignore


def _settings(model: DMoERM) -> dict[str, object]:
    return {k: v for k, v in model.config.backbone.items() if not k.startswith("_") and "version" not in k}


def _fingerprint(about: object, part: torch.nn.Module | None) -> str:
    """A hash over what is said of a part of the model and a sample of every weight of it."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, parameter in part.named_parameters() if part is not None else ():
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
