"""Record what the product computes, and compare a later tree with the record. It goes when the rebuilding is done.

    python tools/golden.py record  [PART ...]     writes tools/golden/PART.json
    python tools/golden.py compare [PART ...]     exits with 1 if a number differs by more than the tolerance

Parts: `demo` and `human` (the accuracies of `dmoerm demo` and of four methods of `dmoerm compare human`), `frozen`,
`finetune` and `paper` (200 scores of a model trained on a tiny backbone; of the last two also the loss of every step),
`protocols` (the server's answer to one request of each protocol). All is computed in float32 with one thread. The
texts are groups.jsonl.gz; `human` needs the human-labeled data in $DMOERM_DATA.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
FOLDER = Path(__file__).parent / "golden"
TRAINED_GROUPS, SCORED_GROUPS = 30, 10  # per task, of groups.jsonl.gz
TOLERANCE = 1e-5
METHODS = ("general", "per_task", "all_labels", "dmoerm")


def groups(scored: bool) -> list[dict[str, Any]]:
    """Return the groups to train on or to score."""
    with gzip.open(FOLDER / "groups.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    parts = slice(TRAINED_GROUPS, TRAINED_GROUPS + SCORED_GROUPS) if scored else slice(TRAINED_GROUPS)
    return [row for task in tasks.values() for row in task[parts]]


def write_backbone(folder: Path) -> str:
    """Write a tiny random Llama and a byte-level tokenizer, the same every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text for row in groups(False) for text in row["responses"]], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    )
    shape: dict[str, Any] = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
    }
    torch.manual_seed(7)
    AutoModel.from_config(AutoConfig.for_model("llama", **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@contextlib.contextmanager
def recorded_losses(losses: list[float]):
    """Record each tensor whose `backward` is called while the block lasts."""
    import torch

    backward = torch.Tensor.backward

    def recording(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(float(tensor.detach()))
        backward(tensor, *args, **kwargs)

    torch.Tensor.backward = recording  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def train_recipe(recipe: str, work: Path) -> dict[str, Any]:
    """Train with a shipped recipe on the tiny backbone; return the losses and 200 scores."""
    import torch

    torch.set_num_threads(1)
    from dmoerm import DMoERM
    from dmoerm.config import load_config
    from dmoerm.training import train

    data = work / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in groups(False)))
    backbone = write_backbone(work / "backbone")
    steps = {
        "frozen": (),
        "finetune": ("phase0", "phase1", "phase2"),
        "paper": ("router", *(f"phase{i}" for i in range(4))),
    }
    overrides = [
        *(f"{step}.epochs=2" for step in steps[recipe]),
        *(f"{step}.evaluations=2" for step in steps[recipe]),
        *(["phase2.lora.dropout=0"] if recipe != "frozen" else []),
        *(["phase3.dropout=0"] if recipe == "paper" else []),
        f"backbone={{path: {backbone}, branch_layer: {0 if recipe == 'paper' else 2}, dtype: float32, num_layers: 4}}",
        f"data.files=[{data}]",
        f"output={work / recipe}",
        f"cache={work / 'cache'}",
        "encoding.max_length=512",
    ]
    losses: list[float] = []
    with recorded_losses(losses):
        train(load_config(recipe, overrides))
    model = DMoERM.from_pretrained(work / recipe / "model")
    scores = [score for row in groups(True) for score in model.score(row["prompt"], row["responses"])]
    return {
        "losses": losses if recipe != "frozen" else [],
        "rewards": [score.reward for score in scores],
        "tasks": [score.task for score in scores],
        "routes": [dict(sorted(score.route.items())) for score in scores],
        "capabilities": [dict(sorted(score.capabilities.items())) for score in scores],
        "uncertainty": [score.uncertainty for score in scores],
    }


PROMPT = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
TEXT = PROMPT + "Fine, and you?<|im_end|>\n"
TURNS = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine, and you?"}]
PAIR = {"query": "How are you?", "documents": ["Fine, and you?", {"text": "No."}], "top_n": 1, "return_documents": True}
TEXTS = {"query": "How are you?", "texts": ["Fine, and you?", "No."], "raw_scores": True}
RANKING = {"query": {"text": "How are you?"}, "passages": [{"text": "Fine, and you?"}, {"text": "No."}]}
ITEMS = {"items": [{"prompt": TURNS[:1], "responses": ["Fine, and you?", "No."], "task": None}]}
REQUESTS: list[tuple[str, Any]] = [
    ("/v1/score", ITEMS),
    ("/v1/score", ITEMS | {"weights": {"empathy": 2}}),
    ("/classify", {"messages": TURNS, "use_activation": False}),
    ("/classify", {"input": [TEXT]}),
    ("/pooling", {"messages": TURNS, "use_activation": False}),
    ("/pooling", {"input": [TEXT]}),
    ("/score", {"text_1": "How are you?", "text_2": ["Fine, and you?", "No."]}),
    ("/tokenize", {"prompt": "How are you?", "return_token_strs": True}),
    ("/rerank", PAIR),
    ("/rerank", TEXTS),
    ("/v1/rerank", PAIR),
    ("/v2/rerank", PAIR),
    ("/v1/ranking", RANKING),
    ("/similarity", {"inputs": {"source_sentence": "How are you?", "sentences": ["Fine, and you?", "No."]}}),
    ("/predict", {"inputs": TEXT, "raw_scores": True}),
    ("/predict", {"inputs": [["How are you?", "Fine, and you?"], ["How are you?", "No."]], "raw_scores": True}),
    ("/get_reward", {"query": [TEXT], "prompts": [PROMPT], "labels": [None]}),
    ("/remote_rm", {"prompt": TURNS[:1], "response": "Fine, and you?", "label": None}),
    ("/remote_rm", {"prompt": PROMPT, "response": "Fine, and you?<|im_end|>"}),
    ("/v1/embeddings", {"input": TEXT}),
    ("/v1/score/evaluation", {"model": "model", "messages": [TEXT]}),
]


def protocols(work: Path) -> dict[str, Any]:
    """Serve the model of the recipe frozen; return its answers."""
    train_recipe("frozen", work)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dmoerm", "serve", str(work / "frozen" / "model"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                break
            if server.poll() is not None:
                raise SystemExit(server.stderr.read() if server.stderr else "the server ended")
            time.sleep(0.1)
        answers = {f"{number} {path}": ask(port, path, body) for number, (path, body) in enumerate(REQUESTS)}
        lower_rewards(answers["1 /v1/score"]["body"])
        return answers
    finally:
        server.terminate()


def lower_rewards(answer: Any) -> None:
    """Subtract half the uncertainty from rewards, as the server did at the request of the record (`"risk": 0.5`)."""
    from dmoerm.scores import Score

    for item in answer["items"]:
        for entry in item["scores"]:
            entry["reward"] -= 0.5 * entry["uncertainty"]
        scores = [Score(**entry) for entry in item["scores"]]
        item["win_probabilities"] = [[score.win_probability(other) for other in scores] for score in scores]


def ask(port: int, path: str, body: Any) -> Any:
    """Return status and body of an answer, without what differs from answer to answer."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            status, content = answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        status, content = error.code, json.load(error)
    return {"status": status, "body": stable(content)}


def stable(value: Any) -> Any:
    """Return a body without ids and times."""
    if isinstance(value, dict):
        unstable = ("id", "created", "request_id", "meta", "e2e_latency")
        return {name: stable(item) for name, item in value.items() if name not in unstable}
    return [stable(item) for item in value] if isinstance(value, list) else value


def cli(*arguments: str) -> None:
    """Run a dmoerm command."""
    subprocess.run([sys.executable, "-m", "dmoerm", *arguments], check=True, stdout=subprocess.DEVNULL)


def demo(work: Path) -> dict[str, Any]:
    """Return the accuracies of the demo."""
    cli("demo", "--output", str(work / "demo"), "--set", "backbone.dtype=float32")
    return demo_numbers(json.loads((work / "demo" / "results.json").read_text()))


def demo_numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a results file of `train`."""
    return {name: results[name] for name in ("accuracy", "capabilities", "router", "calibration") if name in results}


def human(work: Path) -> dict[str, Any]:
    """Return the accuracies of four methods on the human-labeled tasks, clean labels, seed 10."""
    options = [f"--method={name}" for name in METHODS if name != "dmoerm"]
    options += ["--seed=10", f"--output={work / 'human'}"]
    cli("compare", "human", *options, "--set", "backbone.dtype=float32")
    results = json.loads((work / "human" / "results.json").read_text())
    return human_numbers(results)


def human_numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Return method → task → accuracy of a comparison."""
    return {
        method: {task: estimate["value"] for task, estimate in results["accuracy"][method].items()}
        for method in METHODS
    }


PARTS = {
    "frozen": lambda work: train_recipe("frozen", work),
    "finetune": lambda work: train_recipe("finetune", work),
    "paper": lambda work: train_recipe("paper", work),
    "protocols": protocols,
    "demo": demo,
    "human": human,
}


def differences(now: Any, then: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Return the places at which two values differ by more than the tolerance."""
    if isinstance(then, dict) and isinstance(now, dict):
        names = sorted({*then, *now})
        return [d for name in names for d in differences(now.get(name), then.get(name), f"{place}/{name}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [d for i in range(len(then)) for d in differences(now[i], then[i], f"{place}/{i}")]
    numbers = all(isinstance(value, int | float) for value in (now, then))
    same = math.isclose(now, then, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else now == then
    return [] if same else [(place, now, then)]


def main() -> None:
    action, *names = sys.argv[1:]
    failed = False
    for name in names or PARTS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            numbers = json.loads(json.dumps(PARTS[name](Path(work))))
        path = FOLDER / f"{name}.json"
        if action == "record":
            path.write_text(json.dumps(numbers, indent=None, separators=(",", ":"), ensure_ascii=False) + "\n")
            print(f"{name}: recorded in {time.monotonic() - start:.0f} s")
            continue
        found = differences(numbers, json.loads(path.read_text()))
        failed |= bool(found)
        print(f"{name}: {len(found)} differences in {time.monotonic() - start:.0f} s")
        for place, now, then in found[:20]:
            print(f"  {place}: {str(now)[:200]} instead of {str(then)[:200]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
