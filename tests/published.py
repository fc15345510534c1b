"""Small files in the layouts of public preference data: file types, columns and nesting as published, own texts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tiny import tiny_groups

from dmoerm.schema import Group

Row = dict[str, Any]


def _question(group: Group) -> str:
    return group.prompt if isinstance(group.prompt, str) else group.prompt[-1].content


def _choices() -> list[tuple[str, str, str]]:
    """Return prompts with a better and a worse response."""
    pairs = [(group, group.pairs()[0]) for group in tiny_groups()]
    return [(_question(g), g.responses[pair.better], g.responses[pair.worse]) for g, pair in pairs]


def _graded() -> list[tuple[str, list[tuple[str, int]]]]:
    """Return prompts with their responses, each with its rank from 0 (worst) on."""
    rows = []
    for group in tiny_groups():
        grades = group.grades or ()
        rows.append(
            (_question(group), [(r, sorted(grades).index(g)) for r, g in zip(group.responses, grades, strict=True)])
        )
    return rows


def _talk(prompt: str, answer: str) -> list[Row]:
    return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]


def _gzip_lines(rows: Iterable[Row], path: Path) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _parquet(rows: list[Row], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def hh_rlhf(folder: Path) -> Path:
    """Anthropic/hh-rlhf: `helpful-base/train.jsonl.gz`, transcripts of one or more turns."""

    def side(start: str, prompt: str, answer: str) -> str:
        return f"{start}\n\nHuman: {prompt}\n\nAssistant: {answer}"

    rows = []
    for index, (prompt, good, bad) in enumerate(_choices()):
        start = "\n\nHuman: Hello\n\nAssistant: Hi, how can I help?" if index % 2 else ""
        rows.append({"chosen": side(start, prompt, good), "rejected": side(start, prompt, bad)})
    return _gzip_lines(rows, folder / "train.jsonl.gz")


def ultrafeedback(folder: Path) -> Path:
    """openbmb/UltraFeedback: one JSON Lines file, with completions and GPT-4's ratings."""

    def annotations(rating: int) -> Row:
        short = {"Rating": str(rating), "Rationale": "It says so."}
        long = short | {"Type": ["1"], "Rationale For Rating": "It says so."}
        unclear = short | {"Rating": "N/A"}
        return {
            "instruction_following": short,
            "honesty": unclear if rating == 2 else short,
            "truthfulness": long,
            "helpfulness": long,
        }

    def completion(text: str, rank: int) -> Row:
        rating = rank + 2
        return {
            "model": "alpaca-7b",
            "principle": "helpfulness",
            "custom_system_prompt": "Be helpful.",
            "response": text,
            "annotations": annotations(rating),
            "critique": "Fine.",
            "overall_score": float(2 * rating),
            "fine-grained_score": float(rating),
        }

    lines = [
        {
            "source": ("sharegpt", "evol_instruct")[index % 2],
            "instruction": prompt,
            "models": ["alpaca-7b"] * len(responses),
            "completions": [completion(*response) for response in responses],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        for index, (prompt, responses) in enumerate(_graded())
    ]
    path = folder / "evol_instruct.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path


def helpsteer(folder: Path) -> Path:
    """nvidia/HelpSteer2: `train.jsonl.gz`, one response per row, the rows of a prompt one after the other."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rows = [
        {"prompt": prompt, "response": text} | {name: (rank + (name == "coherence")) % 5 for name in names}
        for prompt, responses in _graded()
        for text, rank in responses
    ]
    return _gzip_lines(rows, folder / "train.jsonl.gz")


def arena(folder: Path) -> Path:
    """lmsys/chatbot_arena_conversations: Parquet, two conversations and the vote."""
    winners = ("model_a", "model_b", "tie", "tie (bothbad)")
    rows = []
    for index, (prompt, good, bad) in enumerate(_choices()):
        winner = winners[index % 2] if index % 8 else winners[2 + index % 16 // 8]
        first, second = (bad, good) if winner == "model_b" else (good, bad)
        rows.append(
            {
                "question_id": f"{index:032x}",
                "model_a": "chatglm-6b",
                "model_b": "koala-13b",
                "winner": winner,
                "judge": f"arena_user_{index}",
                "conversation_a": _talk(prompt, first),
                "conversation_b": _talk(prompt, second),
                "turn": 1,
                "anony": True,
                "language": ("English", "German")[index % 2],
                "tstamp": 1682351591.1322 + index,
                "openai_moderation": {
                    "categories": {"hate": False},
                    "category_scores": {"hate": 1e-5},
                    "flagged": False,
                },
                "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
            }
        )
    return _parquet(rows, folder / "train-00000-of-00001.parquet")


def own_csv(folder: Path) -> Path:
    """A table of one's own, as a German spreadsheet writes it: semicolons and names of its own."""
    path = folder / "survey.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Question", "Best answer", "Other answer", "Topic", "Date"])
        for index, (prompt, good, bad) in enumerate(_choices()):
            writer.writerow([prompt, good, bad, ("Small talk", "Facts")[index % 2], "2026-05-01"])
    return path


def ultrafeedback_binarized(folder: Path) -> Path:
    """HuggingFaceH4/ultrafeedback_binarized: Parquet, chosen and rejected conversations with scores."""
    rows = [
        {
            "prompt": prompt,
            "prompt_id": f"{index:064x}",
            "chosen": _talk(prompt, good),
            "rejected": _talk(prompt, bad),
            "messages": _talk(prompt, good),
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        }
        for index, (prompt, good, bad) in enumerate(_choices())
    ]
    return _parquet(rows, folder / "train_prefs-00000-of-00001.parquet")


CSV_MAP = ("--map", "prompt=Question,chosen=Best answer,rejected=Other answer,task=Topic")
"""The options with which `own_csv` is read."""

PUBLISHED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "hh-rlhf": (hh_rlhf, ()),
    "UltraFeedback": (ultrafeedback, ()),
    "HelpSteer2": (helpsteer, ()),
    "Chatbot Arena": (arena, ()),
    "a CSV file of one's own": (own_csv, CSV_MAP),
    "Parquet": (ultrafeedback_binarized, ()),
}
"""Name → a function that writes such a file into a folder, and the options with which `dmoerm` reads it."""
