"""The sets of a second final test, which nothing was chosen or trained with: a function maps a source's files to rows.

They hold all prompts, with clean texts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .rows import Mapping, Row, all_rows, columns, grouped, mean, read_json, read_lines, read_table, transposed

STORY_WORDS = 400  # of a story's beginning in the prompts of squality
AGENCIES = {"Australia": "the Australian government", "CDC": "the CDC", "UK": "the UK government", "WHO": "the WHO"}


def squality(folder: Path) -> Iterator[Row]:
    """Map answers about a story, whose beginning is in the prompt, with the grades of three people from 0 to 100."""
    stories = {story["metadata"]["passage_id"]: story for story in read_lines(folder / "data/v1-3/txt/test.jsonl")}
    fields = {"overall": "overall", "correctness": "correctness", "coverage": "selection"}
    for passage in read_lines(folder / "data/human-eval/all-responses.jsonl"):
        story = stories[passage["passage-id"]]
        beginning = " ".join(story["document"].split()[:STORY_WORDS])
        for number, answers in passage["questions"].items():
            question = story["questions"][int(number)]["question_text"].strip()
            reviews = [answer["reviews"] for answer in answers.values()]
            people = {
                name: [[float(review[f"{field}-rating"]) for review in group] for group in reviews]
                for name, field in fields.items()
            }
            grades = {name: [mean(values) for values in answers] for name, answers in people.items()}
            yield {
                "task": "story_question",
                "prompt": f"A story begins:\n\n{beginning}\n\nAnswer a question about the whole story.\n\n{question}",
                "responses": [answer["response"] for answer in answers.values()],
                "scores": grades.pop("overall"),
                "capabilities": grades,
                "annotators": people,
                "systems": list(answers),
            }


def wqrm(folder: Path) -> Iterator[Row]:
    """Map a model's draft of a paragraph and two edited ones, ranked by experienced writers: 2, 1 and 0."""
    points = {"Most Preferred": 2.0, "Second Favorite": 1.0, "Least Preferred": 0.0}
    systems = ["first_draft", "random_cot", "best_cot"]
    for row in read_json(folder / "WritingRewards/WQRM_annotations.json"):
        wanted = row["instruction"]
        if row["genre"] == "marketing":
            product = wanted["plot"].split("_marketing_")[1].replace("_", " ")
            prompt = f"Write a marketing text for a product of your choice. Kind of product: {product}"
        else:
            length = f"about {wanted['word_count']} words in the {wanted['voice']}"
            prompt = f"Write a paragraph of {row['genre']} of {length}.\n\n{wanted['plot']}"
        votes = [
            [points[person[system].removesuffix(" Writing Option")] for system in systems]
            for person in row["annotations"]
        ]
        people = transposed(votes)
        yield {
            "task": "creative_writing",
            "prompt": prompt,
            "responses": [row[system]["candidate"] for system in systems],
            "scores": [mean(values) for values in people],
            "annotators": {"overall": people},
            "systems": systems,
            "category": row["genre"],
        }


def haluquest(folder: Path) -> Iterator[Row]:
    """Map the answers of a person and of GPT-4 to a question; an expert preferred one and marked the faults of both.

    A capability is the share of the sentences without its fault. References are 1 or 0: whether the answer has helpful
    ones; where no reference is marked, both answers have 1.
    """
    fields = {"factuality": "factuality", "relevance": "relevance", "completeness": "completeness"}
    fields |= {"references": "reference"}
    for row in read_table(folder / "src/data/HaluQuestQA.csv", delimiter="\t"):
        systems = [row[f"ans{i}_label"].removesuffix("_answer") for i in (1, 2)]
        yield {
            "task": "long_form_answer",
            "prompt": row["question_text"],
            "responses": [row["ans1_text"], row["ans2_text"]],
            "scores": [float(row[f"ans_preference_{system}_score"]) for system in systems],
            "capabilities": {
                name: [float(row[f"{field}_{system}_score"]) for system in systems] for name, field in fields.items()
            },
            "systems": systems,
            "category": row["category"],
        }


def webnlg(folder: Path) -> Iterator[Row]:
    """Map texts for some triples by the systems of WebNLG 2020, with the mean grades of workers from 0 to 100.

    The reference texts are left out: they are in another file. Texts that a system wrote as cells of a table are read
    as such.
    """
    names = {"correctness": "Correctness", "data_coverage": "DataCoverage", "fluency": "Fluency"}
    names |= {"relevance": "Relevance", "text_structure": "TextStructure"}
    files = sorted((folder / "submissions/rdf2text/en").glob("*/primary.en"))
    lines = {file.parent.name: file.read_text(encoding="utf-8").split("\n") for file in files}
    tables = read_json(folder / "evaluation/human-evaluation/amt-scripts/data/en/tables/tables_xml.json")
    results = read_json(folder / "evaluation/human-evaluation/results/en/english_humeval_data_all_teams.json")

    def text(result: Row) -> str:
        line = lines[result["submission_id"]][int(result["sample_id"]) - 1].strip()
        quoted = re.fullmatch(r'"(.+)"', line)
        return quoted[1].replace('""', '"') if quoted else line

    graded = (result for result in results if result["submission_id"] in lines)
    for number, group in grouped(graded, lambda result: result["sample_id"]).items():
        cells = [html.unescape(cell) for cell in re.findall(r'<td class="tg-0lax">(.*?)</td>', tables[number])]
        triples = "\n".join(" | ".join(cells[i : i + 3]) for i in range(0, len(cells), 3))
        yield {
            "task": "triples_to_text",
            "prompt": f"Write a text that states these facts and no others (subject | property | value).\n\n{triples}",
            "responses": [text(result) for result in group],
            "capabilities": {
                name: [round(float(result[field]), 6) for result in group] for name, field in names.items()
            },
            "systems": [result["submission_id"] for result in group],
            "category": group[0]["category"],
        }


def simpeval(folder: Path) -> Iterator[Row]:
    """Map simplifications of a sentence with the grades of people from 0 to 100; newer ones have workers' grades, too.

    Sentences in scrambled order, which were a control, are left out.
    """
    names = ("adequacy", "fluency", "simplicity")
    votes = read_table(folder / "data/simplikert_2022.csv")
    likert = grouped(votes, lambda vote: (vote["Input.id"], vote["Input.system"]))
    for part, field, raters in (("past", "processed_generation", 5), ("2022", "generation", 3)):
        rows = (row for row in read_table(folder / f"data/simpeval_{part}.csv") if row["system"] != "scramble_words")
        for number, group in grouped(rows, lambda row: row["original_id"]).items():
            people = [[float(row[f"rating_{i}"]) for i in range(1, raters + 1)] for row in group]
            grades = [
                {name: mean(float(vote[f"Answer.{name}"]) for vote in likert[number, row["system"]]) for name in names}
                for row in (group if part == "2022" else ())
            ]
            yield {
                "task": "simplification",
                "prompt": f"Rewrite this sentence so that it is easier to understand.\n\n{group[0]['original']}",
                "responses": [row[field] for row in group],
                "scores": [mean(values) for values in people],
                **({"capabilities": columns(grades)} if grades else {}),
                "annotators": {"overall": people},
                "systems": [row["system"] for row in group],
            }


def feedbackqa(folder: Path) -> Iterator[Row]:
    """Map passages with their headings that were found for a question, each with the grades of two or three workers."""
    points = {"Excellent": 4.0, "Acceptable": 3.0, "Could be Improved": 2.0, "Bad": 1.0}

    def passage(row: Row) -> str:
        found = row["passage"]["reference"]
        return "\n".join([*found["section_headers"], found["section_content"]])

    for agency, name in AGENCIES.items():
        rows = read_json(folder / f"experiments/feedbackQA_data/{agency}/feedback_test.json")
        for question, group in grouped(rows, lambda row: row["question"]).items():
            yield {
                "task": "passage_answer",
                "prompt": f"Answer this question about COVID-19 with a passage from the pages of {name}.\n\n{question}",
                "responses": [passage(row) for row in group],
                "scores": [mean(points[grade] for grade in row["rating"]) for row in group],
            }


MAPPINGS: dict[str, Mapping] = {
    "squality": squality,
    "wqrm": wqrm,
    "haluquest": haluquest,
    "webnlg": webnlg,
    "simpeval": simpeval,
    "feedbackqa": feedbackqa,
}
SETS: dict[str, Mapping] = {name: partial(all_rows, name, mapping) for name, mapping in MAPPINGS.items()}
"""Name → the function that yields the rows of the set's file."""
