"""Split human-labeled data by the kind of its prompts, for kinds that overlap as in one assistant's traffic.

    python -m evidence.kinds --output FOLDER

writes `kinds_helpfulness.jsonl` (hh-rlhf's helpfulness) and `kinds_instructions.jsonl` (tulu, PandaLM and LLMBar) from
the data in $DMOERM_DATA. The first rule that matches the last turn of a group's prompt names the kind. The rules were
written before anything was trained on these sets. They are rough, as a team's labels of its own traffic would be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

SETS = {
    "kinds_helpfulness": ["hh_rlhf.jsonl"],
    "kinds_instructions": ["tulu.jsonl", "pandalm_pairs.jsonl", "llmbar_pairs.jsonl"],
}
GROUPS, CHARACTERS = 200, 1600  # of a kind, at most; of prompt and responses together
RULES = {
    "code": r"\b(code|python|function|sql|javascript|java|c\+\+|html|regex|program|algorithm|script)\b",
    "rewriting": r"\b(rewrite|rephrase|paraphrase|edit|correct|fix|improve|translate|convert|change the|simplify)\b",
    "summarization": r"\b(summar|tl;dr|main idea|key points|headline|title)\w*",
    "classification": r"\b(classify|categorize|identify|which of|label|is it|true or false|select|choose|sort)\b",
    "brainstorming": r"\b(ideas?|suggest|recommend|list|give me|examples?|come up|tips|generate)\b",
    "generation": r"\b(write|compose|create|draft|story|poem|essay|email|letter|song|describe|design)\b",
    "explanation": r"\b(explain|why|difference|how does|how do|what is the meaning|meaning|compare)\b",
    "advice": r"\b(should i|how can i|how to|how do i|i want|i need|help me|my|i'm|i am|best way)\b",
    "fact": r"\b(who|when|where|what|which|how many|how much|how long)\b",
}
MIN_GROUPS = 60  # of a kind; smaller ones join `other`


def split(files: list[Path]) -> list[dict[str, Any]]:
    """Return the groups of the files with their kinds as tasks and overall labels only."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            scores = row.get("scores") or ()
            size = len(json.dumps(row["prompt"])) + sum(map(len, row["responses"]))
            if row["task"] != "harmlessness" and len(set(scores)) > 1 and size <= CHARACTERS:
                prompt = row["prompt"]
                if not isinstance(prompt, str):
                    prompt = [message for message in prompt if message["role"] == "user"][-1]["content"]
                start = prompt.lower()[:400]
                kind = next((kind for kind, rule in RULES.items() if re.search(rule, start)), "other")
                by_kind[kind].append({name: row[name] for name in ("id", "prompt", "responses", "scores")})
    for kind in [kind for kind, rows in by_kind.items() if len(rows) < MIN_GROUPS and kind != "other"]:
        by_kind["other"] += by_kind.pop(kind)
    chance = random.Random(0)
    for rows in by_kind.values():
        chance.shuffle(rows)
    return [{**row, "task": kind} for kind, rows in sorted(by_kind.items()) for row in rows[:GROUPS]]


def main() -> None:
    """Write the sets and print how many groups each kind has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the files")
    folder, data = parser.parse_args().output, Path(os.environ.get("DMOERM_DATA", "."))
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in SETS.items():
        rows = split([data / file for file in files])
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        counts = Counter(row["task"] for row in rows)
        print(f"{name}: {len(rows)} groups: " + ", ".join(f"{kind} {count}" for kind, count in counts.items()))


if __name__ == "__main__":
    main()
