"""The sets whose texts stay as published: a function maps the files of a source to all rows of a set."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .rows import (
    Mapping,
    Row,
    columns,
    grouped,
    mean,
    published_rows,
    read_json,
    read_lines,
    read_pickle,
    transposed,
)

CRAGC_NAMES = {
    "correctness_topical": "correctness_topical",
    "coherence_logical": "coherence_logical",
    "coherence_stylistic": "coherence_stylistic",
    "coverage_broad": "coverage_broad",
    "coverage_deep": "coverage_deep",
    "consistency_internal": "consistency_internal",
    "quality_overall": "overall",
}


def topical_chat(folder: Path) -> Iterator[Row]:
    """Map replies to a conversation and a fact, with the grades of USR's annotators."""
    replies = read_json(folder / "reproduce/data/dialogue/topical_chat.json")
    for source, group in grouped(replies, lambda reply: reply["source"]).items():
        facts = sorted({reply["context"].strip() for reply in group})
        grades = columns([reply["scores"] for reply in group])
        yield {
            "task": "dialogue",
            "prompt": f"{source.strip()}\n\nFact: {' / '.join(facts)}",
            "responses": [reply["system_output"].strip() for reply in group],
            "scores": grades.pop("overall"),
            "capabilities": grades,
        }


def data_to_text(name: str, folder: Path) -> Iterator[Row]:
    """Map sentences for a dialogue act; of equal sentences, the first one counts."""
    sentences = read_pickle(folder / f"D2T/{name}/data.pkl").values()
    for act, group in grouped(sentences, lambda sentence: sentence["src"]).items():
        distinct = {sentence["sys_summ"]: sentence["scores"] for sentence in reversed(group)}
        texts = list(dict.fromkeys(sentence["sys_summ"] for sentence in group))
        if len(texts) > 1:
            grades = {k: [float(distinct[t][k]) for t in texts] for k in ("quality", "informativeness", "naturalness")}
            yield {
                "task": "data_to_text",
                "prompt": f"Write the sentence for: {act}",
                "responses": texts,
                "scores": grades.pop("quality"),
                "capabilities": grades,
            }


def summeval(folder: Path) -> Iterator[Row]:
    """Map summaries of a news article."""
    for article in read_pickle(folder / "SUM/SummEval/data.pkl").values():
        summaries = article["sys_summs"].values()
        grades = columns([summary["scores"] for summary in summaries])
        yield {
            "task": "news_summary",
            "prompt": article["src"],
            "responses": [summary["sys_summ"] for summary in summaries],
            "capabilities": {name: [round(float(value), 6) for value in values] for name, values in grades.items()},
        }


def summeval_op(folder: Path) -> Iterator[Row]:
    """Map summaries of a product's reviews, with the grades of single people."""
    names = {"fl": "fluency", "co": "coherence", "re": "relevance", "fa": "faithfulness", "ac": "aspect_coverage"}
    names |= {"sc": "sentiment_consistency", "sp": "specificity"}
    for product in read_lines(folder / "annotated_dataset/summeval-op-detailed.jsonl"):
        grades = {names[short]: product[short] for short in names}
        yield {
            "task": "review_summary",
            "prompt": "\n".join(f"Review {i}: {review}" for i, review in enumerate(product["reviews"], start=1)),
            "responses": product["summaries"],
            "capabilities": {name: [mean(people) for people in values] for name, values in grades.items()},
            "annotators": grades,
        }


def mrbench_v2(folder: Path) -> Iterator[Row]:
    """Map tutors' replies to a student's mistake. Yes is 1, to some extent 0.5, no 0; a revealed answer is 0."""
    values = {"Yes": 1.0, "To some extent": 0.5, "No": 0.0, "Encouraging": 1.0, "Neutral": 0.5, "Offensive": 0.0}
    revealing = "Revealing_of_the_Answer"
    for dialogue in read_json(folder / "MRBench/MRBench_V2.json"):
        replies = dialogue["anno_llm_responses"].values()
        yield {
            "task": "math_tutoring",
            "prompt": dialogue["conversation_history"].replace("\u00a0", " ").strip(),
            "responses": [reply["response"].strip() for reply in replies],
            "capabilities": {
                "not_" * (name == revealing) + name.lower(): [
                    float(answer == "No") if name == revealing else values[answer] for answer in answers
                ]
                for name, answers in columns([reply["annotation"] for reply in replies]).items()
            },
        }


def cragc_pairs(folder: Path) -> Iterator[Row]:
    """Map pairs of answers to a query, without citation marks. A vote gives one point, a tie half a point to both."""
    texts: dict[str, str] = {}
    log = read_lines(folder / "data/raw/study1_responses_human.jsonl.gz")  # of writing: a text's last state counts
    for answer in sorted(log, key=lambda answer: answer["timestamp"]):
        texts[answer["response"]] = answer["text"]
    for answer in read_lines(folder / "data/raw/study1_responses_llm.jsonl.gz"):
        texts[answer["response"]] = answer["text"]
    queries = {row["topic"]: row["query"] for row in read_lines(folder / "data/raw/study1_retrieval.jsonl.gz")}
    points = {"a": (1.0, 0.0), "n": (0.5, 0.5), "b": (0.0, 1.0)}
    for pair in read_lines(folder / "data/artifacts/ratings.jsonl.gz"):
        answers = (texts[pair[f"response_{side}"]] for side in "ab")
        grades = {name: list(points[pair[f"{field}_gold"]]) for field, name in CRAGC_NAMES.items()}
        yield {
            "task": "rag_answer",
            "prompt": queries[pair["query_id"]],
            "responses": [re.sub(r"\s*\[[\d,\s]+\]", "", text).strip() for text in answers],
            "scores": grades.pop("overall"),
            "capabilities": grades,
            "annotators": {
                name: transposed(points[vote.lower()] for vote in pair[f"{field}_vote"])
                for field, name in CRAGC_NAMES.items()
            },
        }


def cragc_llm_verdicts(folder: Path) -> Iterator[Row]:
    """Yield gpt-4o's verdicts on the kept pairs: name → index of the better response, or `tie`."""
    kept = {row["id"] for row in published_rows("cragc_pairs", cragc_pairs, folder)}
    verdicts = read_lines(folder / "data/artifacts/llm_ratings.jsonl.gz")
    by_pair = grouped(verdicts, lambda verdict: frozenset((verdict["response_a"], verdict["response_b"])))
    for i, pair in enumerate(read_lines(folder / "data/artifacts/ratings.jsonl.gz")):
        if f"cragc_pairs-{i}" in kept:
            for verdict in by_pair.get(frozenset((pair["response_a"], pair["response_b"])), ()):
                swapped = verdict["response_a"] != pair["response_a"]
                better = {"a": int(swapped), "b": int(not swapped), "n": "tie"}
                yield {
                    "id": f"cragc_pairs-{i}",
                    "mode": verdict["inference"],
                    "order": "swapped" if swapped else "given",
                    "preferred": {name: better[verdict[field]] for field, name in CRAGC_NAMES.items()},
                }


def hh_rlhf(folder: Path) -> Iterator[Row]:
    """Map pairs of dialogues, whose prompt ends at the last turn of the assistant that both begin."""
    turn = "\n\nAssistant:"
    for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        for pair in read_lines(folder / f"data/{part}/test.jsonl.gz"):
            sides = pair["chosen"], pair["rejected"]
            before, shared, _ = os.path.commonprefix(sides).rpartition(turn)  # noqa: RUF071  (of characters)
            start = len(before) + len(turn)
            responses = [side[start:].strip() for side in sides]
            if shared and responses[0] != responses[1]:
                yield {
                    "task": "harmlessness" if part == "harmless-base" else "helpfulness",
                    "prompt": sides[0][:start].strip(),
                    "responses": responses,
                    "scores": [1.0, 0.0],
                }


def pandalm_pairs(folder: Path) -> Iterator[Row]:
    """Map pairs with three votes; the scores are the vote of two or three people, otherwise a tie."""
    points = ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0))
    for pair in read_json(folder / "data/testset-v1.json"):
        votes = [points[pair[f"annotator{i}"]] for i in (1, 2, 3)]
        ((vote, count),) = Counter(votes).most_common(1)
        yield {
            "task": "instruction_following",
            "prompt": f"{pair['instruction']}\n\n{pair['input']}".strip(),
            "responses": [pair["response1"], pair["response2"]],
            "scores": list(vote if count > 1 else points[0]),
            "annotators": {"overall": transposed(votes)},
        }


def llmbar_pairs(folder: Path) -> Iterator[Row]:
    """Map the pairs of LLMBar, and of the sets that its authors processed."""
    for file in sorted((folder / "Dataset").rglob("dataset.json")):
        for pair in read_json(file):
            yield {
                "task": "instruction_following",
                "prompt": pair["input"],
                "responses": [pair["output_1"], pair["output_2"]],
                "scores": [float(pair["label"] == 1), float(pair["label"] != 1)],
            }


MAPPINGS: dict[str, Mapping] = {
    "topical_chat": topical_chat,
    "sfres": partial(data_to_text, "SFRES"),
    "sfhot": partial(data_to_text, "SFHOT"),
    "bagel": partial(data_to_text, "BAGEL"),
    "summeval": summeval,
    "summeval_op": summeval_op,
    "mrbench_v2": mrbench_v2,
    "cragc_pairs": cragc_pairs,
    "hh_rlhf": hh_rlhf,
    "pandalm_pairs": pandalm_pairs,
    "llmbar_pairs": llmbar_pairs,
}
SETS: dict[str, Mapping] = {name: partial(published_rows, name, mapping) for name, mapping in MAPPINGS.items()}
SETS["cragc_llm_verdicts"] = cragc_llm_verdicts
"""Name → the function that yields the rows of the set's file."""
