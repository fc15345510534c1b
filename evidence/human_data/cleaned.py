"""The sets whose texts are cleaned: a function maps the files of a source to all rows of a set."""

from __future__ import annotations

import csv
import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openpyxl

from .rows import Mapping, Row, clean, cleaned_rows, columns, grouped, mean, read_json, read_table, transposed

CONVARG_ROWS = 4653  # of the file convarg.jsonl, drawn from the kept ones
EXPLANATIONS = (  # task, files of votes (those of one entry hold the same explanations), folder of grades
    ("commonsense_explanation", ("commonsenseqa_train",), None),
    ("commonsense_explanation", ("commonsenseqa_test",), "commonsenseqa"),
    ("nli_explanation", ("snli_train",), None),
    ("nli_explanation", ("snli_test", "snli_test_group2"), "snli"),
)


def explanation_prompt(row: dict[str, str]) -> str:
    """Return the prompt of a row of few_shot_explanations: of CommonsenseQA or of SNLI."""
    label = row["Input.gold_label"].strip()
    if question := row.get("Input.question"):
        return f'Explain why "{label}" is the right answer to this question.\n\nQuestion: {question.strip()}'
    label = {"TRUE": "true", "FALSE": "false", "neither": "neither certainly true nor certainly false"}[label]
    premise, hypothesis = row["Input.premise"].strip(), row["Input.hypothesis"].strip()
    start = f"Explain why the statement is {label}, given the description."
    return f"{start}\n\nDescription: {premise}\nStatement: {hypothesis}"


def explanation_grades(rows: list[dict[str, str]]) -> dict[str, float | None]:
    """Return the means over the annotators who answered. Enough information is 1; too little or too much is 0."""

    def answers(name: str) -> list[float]:
        return [float(row[f"Answer.{name}"]) for row in rows if row[f"Answer.{name}"] != ""]

    return {
        "factuality": mean(grade for grade in answers("generality_factuality") if grade != -9),
        "grammar": mean(answers("grammar")),
        "new_info": mean(answers("new_info")),
        "supports_answer": mean(answers("supports_label")),
        "amount_of_info": mean(float(amount == 0) for amount in answers("amount_info")),
    }


def all_explanations(folder: Path) -> Iterator[Row]:
    """Map five explanations of an answer by GPT-3, which three or six people accepted or not, and graded ones.

    A graded explanation by a data set's author has votes too and joins the five. If a graded one has no votes, the
    graded ones of its prompt are a row apart, without scores.
    """
    five = range(1, 6)

    def texts_of(row: dict[str, str]) -> tuple[str, ...]:
        return explanation_prompt(row), *(row[f"Input.explanation_{i}"].strip() for i in five)

    for task, vote_files, grade_folder in EXPLANATIONS:
        graded: dict[str, dict[tuple[str, str], list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
        quality = folder / "data/fine_grained_absolute_quality_annotations"
        for file in sorted((quality / grade_folder).glob("*.csv")) if grade_folder else ():
            for row in read_table(file):
                graded[explanation_prompt(row)][file.stem, row["Input.explanation"].strip()].append(row)
        votes = (read_table(folder / f"data/acceptability_annotations/{name}.csv") for name in vote_files)
        for (prompt, *texts), rows in grouped(itertools.chain(*votes), texts_of).items():
            people = [[float(str(i) in row["Answer.acceptable"].split("|")) for row in rows] for i in five]
            row = {"task": task, "prompt": prompt, "responses": texts, "scores": [mean(grades) for grades in people]}
            systems = [f"gpt3_{rows[0][f'Input.source_sample_{i}']}" for i in five]
            if prompt not in graded:
                yield {**row, "annotators": {"overall": people}, "systems": systems}
                continue
            grades = {text: explanation_grades(rows) for (_, text), rows in graded[prompt].items()}
            for (system, text), rows in graded[prompt].items():
                if "Answer.acceptable" in rows[0]:
                    texts.append(text)
                    systems.append(system)
                    row["scores"].append(mean(float(graded_row["Answer.acceptable"] == "1") for graded_row in rows))
            if grades.keys() <= set(texts):
                names = next(iter(grades.values()))
                capabilities = {name: [grades.get(text, {}).get(name) for text in texts] for name in names}
                yield {**row, "capabilities": capabilities, "systems": systems}
            else:
                yield {**row, "systems": systems}
                yield {
                    "task": task,
                    "prompt": prompt,
                    "responses": list(grades),
                    "capabilities": columns(list(grades.values())),
                    "systems": [system for system, _ in graded[prompt]],
                }


def explanations(folder: Path) -> Iterator[Row]:
    """Yield the explanations with votes."""
    return (row for row in all_explanations(folder) if "scores" in row)


def explanations_graded(folder: Path) -> Iterator[Row]:
    """Yield the explanations with grades alone."""
    return (row for row in all_explanations(folder) if "scores" not in row)


def conala(folder: Path) -> Iterator[Row]:
    """Map code for an intent; each system's code has its own graders."""
    for intent in read_json(folder / "data/to-grade/conala/conala-human-grades.json"):
        fields = ((name.removeprefix("grade-"), grades) for name, grades in intent.items() if name.startswith("grade-"))
        graders = {system: grades for system, grades in fields if grades and isinstance(grades, dict)}
        code = [intent[system] for system in graders]
        yield {
            "task": "code_generation",
            "prompt": "Write Python code for this: " + intent["intent"].strip(),
            "responses": [text[0] if isinstance(text, list) else text for text in code],
            "scores": [mean(grades.values()) for grades in graders.values()],
            "systems": ["reference" if system == "snippet" else system for system in graders],
        }


def mimics_duo(folder: Path) -> Iterator[Row]:
    """Map clarifying questions with their options."""
    names = {"coverage": "Coverage", "diversity": "Diversity", "understandability": "Understandability"}
    names |= {"option_order": "Importance Order"}
    fields = ("query", "question", *(f"option_{i}" for i in range(1, 6)))
    ratings, aspects = (
        {
            tuple(row[field].strip() for field in fields): row
            for row in read_table(folder / f"Data/{name}.tsv", delimiter="\t")
        }
        for name in ("Task1-OfflineRating", "Task3-AspectLabelling")
    )
    ask = "Ask the user one clarifying question and offer a few options to choose from."
    for query, panes in grouped(ratings, lambda pane: pane[0]).items():
        yield {
            "task": "search_clarification",
            "prompt": f"Search query: {query}\n\n{ask}",
            "responses": ["\n- ".join([pane[1], *filter(None, pane[2:])]) for pane in panes],
            "scores": [float(ratings[pane]["offline rating"]) for pane in panes],
            "capabilities": {name: [float(aspects[pane][field]) for pane in panes] for name, field in names.items()},
        }


def halie(folder: Path) -> Iterator[Row]:
    """Map summaries of an article by systems, people and both together; coherence and relevance are from 1 to 5."""

    def likert(row: dict[str, str], field: str) -> float | None:
        return next((float(i) for i in range(1, 6) if row[f"Answer.{field}_{i}"] == "true"), None)

    files = (folder / f"data/raw/summarization/eval/third_party_batch{i}_results.csv" for i in (1, 2))
    votes = [vote for file in files for vote in read_table(file)]
    for article, group in grouped(votes, lambda vote: clean(vote["Input.source_article"])).items():
        summaries = grouped(group, lambda vote: clean(vote["Input.output_text"]))
        kinds = [(rows[0]["Input.model"], rows[0]["Input.output_type"]) for rows in summaries.values()]
        grades = [
            {
                "coherence": mean(likert(row, "coherence.cohere") for row in rows),
                "consistency": mean(float(row["Answer.consistency.consistent"] == "true") for row in rows),
                "relevance": mean(likert(row, "relevance.rel") for row in rows),
            }
            for rows in summaries.values()
        ]
        yield {
            "task": "summarization",
            "prompt": f"Summarize this article.\n\n{article}",
            "responses": list(summaries),
            "capabilities": columns(grades),
            "systems": [kind if model == "reference" else f"{model}/{kind}" for model, kind in kinds],
        }


def tulu(folder: Path) -> Iterator[Row]:
    """Map pairs of models' answers, in the order of the models' names; a person's last vote on a pair counts."""
    file = folder / "human_eval/data/eval_annotations_tulu_1.xlsx"
    header, *cells = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0].values
    steps = {"a-is-better": 2.0, "a-is-slightly-better": 1.0, "tie": 0.0, "b-is-slightly-better": -1.0}
    steps |= {"b-is-better": -2.0}
    rows: list[Row] = [dict(zip(map(str, header), row, strict=True)) for row in cells]

    def sides(vote: Row) -> list[str]:
        return sorted("ab", key=lambda side: vote[f"model_{side}"])

    def pair(vote: Row) -> tuple[str, ...]:
        return vote["prompt"], *(vote[f"{field}_{side}"] for field in ("model", "completion") for side in sides(vote))

    for (prompt, *systems, first, second), group in grouped(
        (vote for vote in rows if vote["instance_id"]), pair
    ).items():
        people = {vote["evaluator"]: vote for vote in sorted(group, key=lambda vote: vote["timestamp"])}
        last = [people[name] for name in sorted(people)]
        grades = [steps[vote["preference"]] * (1.0 if sides(vote) == ["a", "b"] else -1.0) for vote in last]
        accepted = transposed(
            [float(vote[f"completion_{side}_is_acceptable"] == "yes") for side in sides(vote)] for vote in last
        )
        score = mean(grades) or 0.0
        annotators = {"overall": [grades, [-grade + 0.0 for grade in grades]], "acceptable": accepted}
        yield {
            "task": "instruction_following",
            "prompt": prompt,
            "responses": [first, second],
            "scores": [score, -score + 0.0],
            "capabilities": {"acceptable": [mean(values) for values in accepted]},
            **({"annotators": annotators} if len(people) > 1 else {}),
            "systems": systems,
        }


def humour(folder: Path) -> Iterator[Row]:
    """Map headlines in which one word was replaced; the scores are from 0 (not funny) to 3."""
    edits = [row for name in ("train", "dev", "truth_task_1") for row in read_table(folder / f"data/task1/{name}.csv")]

    def headline(row: dict[str, str], word: str) -> str:
        return " ".join(re.sub(r"<(.*?)/>", lambda match: word or match[1], row["original"]).split())

    for original, group in grouped(edits, lambda row: headline(row, "")).items():
        yield {
            "task": "humour",
            "prompt": f"Make this headline funny by replacing one word.\n\n{original}",
            "responses": [headline(row, row["edit"]) for row in group],
            "scores": [float(row["meanGrade"]) for row in group],
        }


def mqm_ted(pair: str, task: str, languages: str, folder: Path) -> Iterator[Row]:
    """Map translations of a sentence; a score is minus the sum of the errors that one rater marked.

    The weights are those of the repository's README: minor 1, major 5, minor punctuation 0.1, non-translation 25.
    """

    def weight(category: str, severity: str) -> float:
        if category.startswith("non-translation"):
            return 25.0
        if category.startswith("source error"):
            return 0.0
        if (category, severity) == ("fluency/punctuation", "minor"):
            return 0.1
        return {"no-error": 0.0, "neutral": 0.0, "minor": 1.0, "major": 5.0}[severity]

    def unmarked(text: str) -> str:
        return re.sub(r"</?v>", "", text).strip()

    marks = read_table(folder / f"ted/{pair}/mqm_ted_{pair}.tsv", delimiter="\t", quoting=csv.QUOTE_NONE)
    sentences = grouped(marks, lambda row: (int(row["seg_id"]), row["doc"], row["doc_id"]))
    for (_, talk, _), group in sorted(sentences.items(), key=lambda item: item[0][0]):
        systems = grouped(group, lambda row: row["system"])
        errors: list[dict[str, float]] = [defaultdict(float) for _ in systems]
        for count, rows in zip(errors, systems.values(), strict=True):
            for row in rows:
                category = row["category"].lower()
                count[category.split("/")[0]] += weight(category, row["severity"].lower())
        yield {
            "task": task,
            "prompt": f"Translate this sentence from {languages}.\n\n{unmarked(group[0]['source'])}",
            "responses": [unmarked(rows[0]["target"]) for rows in systems.values()],
            "scores": [0.0 - round(sum(count.values()), 6) for count in errors],
            "capabilities": {
                name: [0.0 - round(count[name], 6) for count in errors]
                for name in ("accuracy", "fluency", "terminology", "style")
            },
            "systems": list(systems),
            "category": talk,
        }


def convarg(folder: Path) -> Iterator[Row]:
    """Map pairs of arguments for the same side of a debate, with five votes."""
    points = {"a1": (1.0, -1.0), "a2": (-1.0, 1.0), "equal": (0.0, 0.0)}

    def text(pair: ElementTree.Element, path: str) -> str:
        return (pair.findtext(path) or "").strip()

    def argument(pair: ElementTree.Element, name: str) -> str:
        lines = (" ".join(line.split()) for line in text(pair, f"{name}/text").splitlines())
        return re.sub(r"<br\s*/?>", "\n", "\n".join(lines))

    for file in sorted((folder / "data/UKPConvArg1Strict-XML").glob("*.xml")):
        for pair in ElementTree.parse(file).getroot():
            debate, side = text(pair, "debateMetaData/title"), text(pair, "arg1/stance")
            votes = pair.findall("mTurkAssignments/mTurkAssignment")
            yield {
                "task": "argument",
                "prompt": f"Debate: {debate}\nPosition: {side}\n\nWrite a convincing argument for this position.",
                "responses": [argument(pair, "arg1"), argument(pair, "arg2")],
                "scores": list(points[text(pair, "goldLabel")]),
                "annotators": {"overall": transposed(points[text(vote, "value")] for vote in votes)},
            }


def convarg_sample(folder: Path) -> list[Row]:
    """Return `CONVARG_ROWS` of the kept pairs, drawn at random."""
    rows = list(cleaned_rows("convarg", convarg, folder))
    order = list(range(len(rows)))
    random.Random(20).shuffle(order)
    return [rows[i] for i in sorted(order[:CONVARG_ROWS])]


MAPPINGS: dict[str, Mapping] = {
    "explanations": explanations,
    "explanations_graded": explanations_graded,
    "conala": conala,
    "mimics_duo": mimics_duo,
    "halie": halie,
    "tulu": tulu,
    "humour": humour,
    "mqm_ted_ende": partial(mqm_ted, "ende", "translation_de", "English into German"),
    "mqm_ted_zhen": partial(mqm_ted, "zhen", "translation_zh", "Chinese into English"),
}
SETS: dict[str, Mapping] = {name: partial(cleaned_rows, name, mapping) for name, mapping in MAPPINGS.items()}
SETS["convarg"] = convarg_sample
"""Name → the function that yields the rows of the set's file."""
