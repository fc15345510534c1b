"""Compare the server with infinity's `/rerank`, the server of plain rerankers and reward models that installs on a CPU.

Ours serves two experts and an aggregator; infinity (https://github.com/michaelfeil/infinity) serves one plain reward
model on the same backbone, both in float32, one after the other in turns, with both cores. 64 clients send the requests
of load.py; infinity gets the same token ids as texts, the prompt once. It runs at the faster of two batch sizes.

    python -m venv INFINITY && INFINITY/bin/pip install 'infinity-emb[torch,server]' 'optimum<2' 'transformers<4.49'
    python benchmarks/peer_server.py INFINITY/bin/infinity_emb [--requests 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import torch
from load import CLIENTS, mixed, processor_seconds
from measure import row, write
from models import ours, plain_model, sequences
from serving import closed_loop, open_loop, quantiles, resident, running_server, server
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dmoerm.model import DMoERM
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Query

BATCH_SIZES = 8, 32
Texts = tuple[str, list[str]]


def main() -> None:
    """Measure both servers in turns and write results/peer_server.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("infinity", type=Path, help="the command of infinity in its virtual environment")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    queries = mixed(options.requests)
    with TemporaryDirectory() as folder:
        ours(str(bundled_backbone()), "float32", 2, 24).save_pretrained(f"{folder}/dmoerm")
        model = DMoERM.from_pretrained(f"{folder}/dmoerm")
        save_plain(f"{folder}/plain")
        texts, expected = plain_texts(f"{folder}/plain", model, queries)
        peer = Peer(options.infinity, f"{folder}/plain", dict(zip(map(key, queries), texts, strict=True)))
        size = min(BATCH_SIZES, key=lambda size: peer.once(queries, size, expected))
        sides = {
            "dmoerm": lambda: server(f"{folder}/dmoerm", "--queue-seconds", "3600"),
            "infinity": lambda: peer.server(size),
        }
        asks = {"dmoerm": None, "infinity": peer.ask}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        behavior: dict[str, Any] = {}
        for turn in range(options.rounds):
            for name, start in sides.items():
                with start() as (url, process):
                    started, used = time.perf_counter(), processor_seconds(process.pid)
                    asyncio.run(closed_loop(url, queries, CLIENTS, asks[name]))
                    times[name].append((time.perf_counter() - started, processor_seconds(process.pid) - used))
                    if turn == options.rounds - 1:
                        rate = len(queries) / median(wall for wall, _ in times[name])
                        waited = asyncio.run(open_loop(url, queries, rate / 2, len(queries), asks[name]))
                        behavior[name] = {
                            "requests_a_second": round(rate, 2),
                            "half_the_load_s": quantiles(waited),
                            "memory_mib": resident(process.pid),
                        }
            print(times, flush=True)
    walls = [median(wall for wall, _ in times[name]) for name in sides]
    seconds = [median(used for _, used in times[name]) for name in sides]
    rows = [
        row(f"{CLIENTS}_clients", "infinity", *walls, options.rounds),
        row(f"{CLIENTS}_clients_processor_seconds", "infinity", *seconds, options.rounds),
    ]
    command = f"python benchmarks/peer_server.py INFINITY --requests {options.requests} --rounds {options.rounds}"
    responses = sum(len(query.responses) for query in queries)
    sizes = {"requests": len(queries), "responses": responses, "batch_size_of_infinity": size}
    write("peer_server", command, rows, **sizes, behavior=behavior)


def save_plain(folder: str) -> None:
    """Save a plain reward model in a form that transformers 4, which infinity needs, reads as transformers 5 does."""
    plain = plain_model(str(bundled_backbone()), torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(bundled_backbone()))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # in no text: transformers 4 reads the first one's state
    plain.config.pad_token_id = tokenizer.pad_token_id  # pyright: ignore
    plain.save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    theta = {"rope_theta": plain.config.rope_parameters["rope_theta"]}  # pyright: ignore
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    for name, changes in (("config.json", theta), ("tokenizer_config.json", known)):
        file = Path(folder, name)
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def plain_texts(folder: str, model: DMoERM, queries: Sequence[Query]) -> tuple[list[Texts], list[list[float]]]:
    """Return each query's prompt and responses as texts, and the rewards that the plain model gives them.

    The tokenizer splits the texts into the token ids that dmoerm scores; infinity strips white space at their ends.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts, rewards = [], []
    for query in queries:
        encoded = model.encoder.encode(query)
        prompt, responses = tokenizer.decode(encoded.prompt), [tokenizer.decode(ids) for ids in encoded.responses]
        for response, ids in zip(responses, sequences([encoded]), strict=True):
            assert tokenizer(prompt, response)["input_ids"] == ids.tolist()
        texts.append((prompt, responses))
        stripped = [tokenizer(prompt.strip(), response.strip(), return_tensors="pt") for response in responses]
        with torch.inference_mode():
            rewards.append([plain(each["input_ids"]).logits.item() for each in stripped])
    return texts, rewards


def key(query: Query) -> str:
    """Return what tells queries apart."""
    return query.model_dump_json()


class Peer:
    """Infinity's server, and how to ask it.

    Args:
        texts: each query's prompt and responses, by the query's `key`.
    """

    def __init__(self, command: Path, folder: str, texts: dict[str, Texts]) -> None:
        self.command, self.folder, self.texts = command, folder, texts

    @contextlib.contextmanager
    def server(self, batch_size: int) -> Iterator[tuple[str, Any]]:
        """Run it; yield its URL and process."""
        command = f"{self.command} v2 --engine torch --device cpu --dtype float32 --no-bettertransformer"
        command += f" --no-model-warmup --model-id {self.folder} --served-model-name plain --batch-size {batch_size}"
        with running_server(command.split(), "/health") as found:
            yield found

    async def ask(self, http: httpx2.AsyncClient, query: Query) -> tuple[list[float], float]:
        """Request the rewards of a query's responses; return them with the seconds that it took."""
        prompt, responses = self.texts[key(query)]
        body = {"model": "plain", "query": prompt, "documents": responses, "raw_scores": True}
        started = time.perf_counter()
        answer = await http.post("/rerank", json=body)
        answer.raise_for_status()
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        return [result["relevance_score"] for result in results], time.perf_counter() - started

    def once(self, queries: Sequence[Query], size: int, expected: Sequence[Sequence[float]]) -> float:
        """Return the seconds of one round at a batch size; check that the scores are those of the plain model."""
        with self.server(size) as (url, _):
            started = time.perf_counter()
            rewards, _ = asyncio.run(closed_loop(url, queries, CLIENTS, self.ask))
            seconds = time.perf_counter() - started
        pairs = [pair for got, want in zip(rewards, expected, strict=True) for pair in zip(got, want, strict=True)]
        difference = max(abs(got - want) for got, want in pairs)
        assert difference < 1e-3, f"infinity's scores differ from the plain model's by {difference}"
        print(f"infinity, batch size {size}: {seconds:.1f} s", flush=True)
        return seconds


if __name__ == "__main__":
    main()
