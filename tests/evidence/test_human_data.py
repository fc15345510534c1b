"""Sets of human-labeled data are built from repositories: here from one of small files, which stands for them all."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from evidence.human_data import __main__ as command
from evidence.human_data import cleaned, rows, second

Row = dict[str, Any]
Build = Callable[..., tuple[int, str, str]]


def table(*lines: Row, delimiter: str = ",") -> str:
    out = io.StringIO()
    fields = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(out, fields, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def lines(*values: Any) -> bytes:
    return gzip.compress("".join(json.dumps(value) + "\n" for value in values).encode())


def dialogue_acts(*acts: tuple[str, str, float]) -> bytes:
    scores = ({"informativeness": grade + 1, "naturalness": grade + 2, "quality": grade} for *_, grade in acts)
    sentences = ({"src": act, "sys_summ": text, "scores": s} for (act, text, _), s in zip(acts, scores, strict=True))
    return pickle.dumps(dict(enumerate(sentences)))


def git(folder: Path, words: str) -> str:
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-C", str(folder), *words.split()]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def reply(system: str, text: str, overall: float) -> Row:
    scores = {"Engaging": 3, "overall": overall}
    return {"source": "hi \n", "context": "a fact\n", "system_id": system, "system_output": text, "scores": scores}


def five(label: str, accepted: str, *texts: str, **more: str) -> Row:
    samples = {f"Input.source_sample_{i}": str(i) for i in range(1, 6)}
    explanations = {f"Input.explanation_{i}": text for i, text in enumerate(texts, start=1)}
    return {"Input.gold_label": label, **more, **samples, **explanations, "Answer.acceptable": accepted}


def graded(label: str, text: str, grade: str, acceptable: str | None = None, **more: str) -> Row:
    names = ("generality_factuality", "grammar", "new_info", "supports_label")
    answers = {f"Answer.{name}": grade for name in names} | {"Answer.amount_info": ""}
    votes = {} if acceptable is None else {"Answer.acceptable": acceptable}
    return {"Input.gold_label": label, **more, "Input.explanation": text, **answers, **votes}


def halie_vote(text: str, model: str, kind: str, coherence: int) -> Row:
    likert = {
        f"Answer.{name}_{i}": str(i == grade).lower()
        for name, grade in (("coherence.cohere", coherence), ("relevance.rel", 0))
        for i in range(1, 6)
    }
    source = {"Input.source_article": "News.\u00a0", "Input.output_text": text}
    return {
        **source,
        "Input.model": model,
        "Input.output_type": kind,
        **likert,
        "Answer.consistency.consistent": "true",
    }


def workbook(*votes: Row) -> bytes:
    book, out = openpyxl.Workbook(), io.BytesIO()
    sheet = book.worksheets[0]
    for values in (list(votes[0]), *(list(vote.values()) for vote in votes)):
        sheet.append(values)
    book.save(out)
    return out.getvalue()


def tulu_vote(evaluator: str, minute: int, models: str, preference: str, acceptable: str) -> Row:
    sides = {f"model_{side}": model for side, model in zip("ab", models, strict=True)}
    texts = {f"completion_{side}": f"text of {model}" for side, model in zip("ab", models, strict=True)}
    accepted = {f"completion_{s}_is_acceptable": a for s, a in zip("ab", acceptable.split(), strict=True)}
    time = datetime(2023, 5, 1, 12, minute)
    start = {"instance_id": "i", "evaluator": evaluator, "prompt": "Go.", "timestamp": time, **sides, **texts}
    return {**start, "preference": preference, **accepted}


def mqm(system: str, seg: int, target: str, category: str, severity: str) -> Row:
    start = {"system": system, "doc": "talk.1", "doc_id": "1", "seg_id": seg, "rater": "r", "source": f"S {seg}"}
    return {**start, "target": target, "category": category, "severity": severity}


def reviews(system: str, *overall: int) -> Row:
    grades = ({"overall-rating": x, "correctness-rating": x + 1, "selection-rating": x + 2} for x in overall)
    return {"response": f"text of {system}", "reviews": list(grades)}


def ranked(genre: str, instruction: Row, *orders: str) -> Row:
    ranks = ("Most Preferred Writing Option", "Second Favorite Writing Option", "Least Preferred Writing Option")
    systems = {"f": "first_draft", "r": "random_cot", "b": "best_cot"}
    votes = [{systems[s]: rank for s, rank in zip(order, ranks, strict=True)} for order in orders]
    texts = {system: {"candidate": f"text of {system}"} for system in systems.values()}
    return {"genre": genre, "instruction": instruction, **texts, "annotations": votes}


def preferred(better: str, worse: str) -> Row:
    grades = {f"{name}_model_score": "1.0" for name in ("factuality", "relevance", "completeness", "reference")}
    grades |= {name.replace("model", "human"): "0.5" for name in grades}
    grades |= {f"ans_preference_{better}_score": "1.0", f"ans_preference_{worse}_score": "0.0"}
    sides = {"ans1_label": "human_answer", "ans2_label": "model_answer", "ans1_text": "By hand.", "ans2_text": "Made."}
    return {"question_text": "Why?", "category": "law", **sides, **grades}


def triples(number: str, *cells: str) -> Row:
    return {number: "".join(f'<td class="tg-0lax">{cell}</td>\n' for cell in cells)}


def webnlg_result(system: str, number: str, grade: float) -> Row:
    names = ("Correctness", "DataCoverage", "Fluency", "Relevance", "TextStructure")
    return {"submission_id": system, "sample_id": number, "category": "City", **dict.fromkeys(names, grade)}


def simplified(system: str, text: str, grade: int, field: str = "generation") -> Row:
    ratings = {f"rating_{i}": grade + i for i in range(1, 6)}
    return {"original_id": "3", "original": "Long.", "system": system, field: text, **ratings}


def passage(question: str, text: str, *rating: str) -> Row:
    reference = {"section_headers": ["FAQ", "Masks?"], "section_content": text}
    return {"question": question, "passage": {"reference": reference}, "rating": rating}


MQM = table(
    mqm("A", 2, "B", "No-error", "No-error"),
    mqm("B", 2, "C", "Source error", "Major"),
    mqm("A", 1, "<v>x</v> y", "Fluency/Punctuation", "Minor"),
    mqm("A", 1, "x <v>y</v>", "Accuracy/Omission", "Major"),
    mqm("B", 1, "z", "Non-translation!", "Major"),
    delimiter="\t",
)
ARGUMENT = "<{0}><stance>Yes </stance><text>{1}</text></{0}>"
VOTE = "<mTurkAssignment><value>{}</value></mTurkAssignment>"
CONVARG = f"""<list><annotatedArgumentPair>{ARGUMENT.format("arg1", "a  b&lt;br/&gt;c")}{ARGUMENT.format("arg2", "d")}
<debateMetaData><title>U </title></debateMetaData>
<mTurkAssignments>{VOTE.format("a2")}{VOTE.format("equal")}</mTurkAssignments><goldLabel>a2</goldLabel>
</annotatedArgumentPair></list>"""
CRAGC = ("correctness_topical", "coherence_logical", "coherence_stylistic", "coverage_broad", "coverage_deep")
CRAGC += ("consistency_internal", "quality_overall")
PANE = {"query": "q", "question": "Which?", "option_1": "a", **{f"option_{i}": "" for i in range(2, 6)}}
BIRDS = {"Input.question": "Who flies? "}
SKY = {"Input.premise": "It is day.", "Input.hypothesis": "It is light."}
MRBENCH = {"Tutor_Tone": "Neutral", "Revealing_of_the_Answer": "No"}

SOURCES: dict[str, Any] = {
    "reproduce/data/dialogue/topical_chat.json": [reply("A", "ok ", 1.5), reply("B", "no", 2)],
    "D2T/SFRES/data.pkl": dialogue_acts(("a()", "one", 1), ("b()", "alone", 2), ("a()", "one", 5), ("a()", "two", 2)),
    "D2T/SFHOT/data.pkl": dialogue_acts(("a()", "one", 1), ("a()", "two", 2)),
    "D2T/BAGEL/data.pkl": dialogue_acts(("a()", "one", 1), ("a()", "two", 2)),
    "SUM/SummEval/data.pkl": pickle.dumps(
        {"d": {"src": "News", "sys_summs": {"s": {"sys_summ": "N", "scores": {"fluency": 1 / 3}}}}}
    ),
    "annotated_dataset/summeval-op-detailed.jsonl": {
        "reviews": ["Good.", "Bad."], "summaries": ["G", "B"],
        **{name: [[1, 2], [3, 5]] for name in ("fl", "co", "re", "fa", "ac", "sc", "sp")},
    },
    "MRBench/MRBench_V2.json": [
        {"conversation_history": "\u00a0S: 2", "anno_llm_responses": {
            "A": {"response": "No. ", "annotation": MRBENCH},
            "B": {"response": "3", "annotation": {"Tutor_Tone": "Offensive",
                                                  "Revealing_of_the_Answer": "Yes (and the answer is correct)"}},
        }},
    ],
    "data/raw/study1_responses_human.jsonl.gz": lines(
        {"response": "h", "timestamp": 2, "text": "By hand [1, 2]."}, {"response": "h", "timestamp": 1, "text": "By"}
    ),
    "data/raw/study1_responses_llm.jsonl.gz": lines({"response": "m", "text": "Made [3]"}),
    "data/raw/study1_retrieval.jsonl.gz": lines({"topic": "t", "query": "which?"}, {"topic": "u", "query": "no 2"}),
    "data/artifacts/ratings.jsonl.gz": lines(*(
        {"query_id": topic, "response_a": "h", "response_b": "m",
         **{f"{name}_gold": "a" for name in CRAGC}, **{f"{name}_vote": ["A", "N"] for name in CRAGC}}
        for topic in "tu"
    )),
    "data/artifacts/llm_ratings.jsonl.gz": lines(
        {"response_a": "m", "response_b": "h", "inference": "combined", **dict.fromkeys(CRAGC, "a")},
        {"response_a": "h", "response_b": "m", "inference": "combined", **dict.fromkeys(CRAGC, "n")},
    ),
    **{
        f"data/{part}/test.jsonl.gz": lines(
            {"chosen": f"\n\nHuman: {part}\n\nAssistant: yes", "rejected": f"\n\nHuman: {part}\n\nAssistant: no"},
            {"chosen": "\n\nHuman: x\n\nAssistant: ", "rejected": "\n\nHuman: x\n\nAssistant: z"},
        )
        for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    },
    "data/testset-v1.json": [
        {"instruction": "Do.", "input": text, "response1": "a", "response2": "b",
         "annotator1": 1, "annotator2": votes[0], "annotator3": votes[1]}
        for text, votes in (("", (1, 2)), ("Now", (0, 2)))
    ],
    **{
        f"Dataset/{part}/dataset.json": [{"input": part, "output_1": "a", "output_2": "b", "label": 2}]
        for part in ("LLMBar/Natural", "Processed/FairEval")
    },
    "data/acceptability_annotations/commonsenseqa_train.csv": table(five("owl", "1|2", *"abcd", "a", **BIRDS)),
    "data/acceptability_annotations/commonsenseqa_test.csv": table(
        *(five(bird, accepted, *"abcde", **BIRDS) for bird, accepted in (("eagle", "1"), ("eagle", "2"), ("kite", "3")))
    ),
    "data/acceptability_annotations/snli_train.csv": table(five("TRUE", "", *"abcde", **SKY)),
    "data/acceptability_annotations/snli_test.csv": table(five("neither", "5", *"abcde", **SKY)),
    "data/acceptability_annotations/snli_test_group2.csv": table(five("neither", "4", *"abcde", **SKY)),
    **{
        f"data/fine_grained_absolute_quality_annotations/{name}.csv": table(*votes)
        for name, votes in {
            "commonsenseqa/cose": [graded("eagle", "x", "-9", "1", **BIRDS), graded("kite", "y", "0", "-1", **BIRDS)],
            "commonsenseqa/gpt3_greedy": [graded("eagle", "b", "1", **BIRDS), graded("kite", "z", "1", **BIRDS)],
            "snli/esnli": [graded("neither", "w", "1", "1", **SKY)],
        }.items()
    },
    "data/UKPConvArg1Strict-XML/t_yes.xml": CONVARG,
    "data/task1/train.csv": table({"original": "A <dog/> barks", "edit": "cat", "grades": "00", "meanGrade": "1.2"}),
    "data/task1/dev.csv": table({"original": "A <dog/>  barks", "edit": "tree", "grades": "00", "meanGrade": "2.0"}),
    "data/task1/truth_task_1.csv": table({"original": "A dog <barks/>", "edit": "", "grades": "", "meanGrade": "0"}),
    "data/to-grade/conala/conala-human-grades.json": [
        {"intent": " sort", "snippet": ["x.sort()"], "codex": "sort(x)", "none": "x", "grade-snippet": {"g": 4, "h": 3},
         "grade-codex": {"g": 1}, "grade-none": {}},
    ],
    "Data/Task1-OfflineRating.tsv": table(
        *({**PANE, "option_2": text, "offline rating": 3} for text in "bc"),
        delimiter="\t",
    ),
    "Data/Task3-AspectLabelling.tsv": table(
        *({**PANE, "option_2": text, "Coverage": 1, "Diversity": 2, "Understandability": 3, "Importance Order": 4}
          for text in "bc"),
        delimiter="\t",
    ),
    "human_eval/data/eval_annotations_tulu_1.xlsx": workbook(
        tulu_vote("p", 2, "MN", "tie", "yes no"), tulu_vote("p", 1, "NM", "a-is-better", "no no"),
        tulu_vote("q", 1, "NM", "b-is-slightly-better", "no yes"),
    ),
    "data/raw/summarization/eval/third_party_batch1_results.csv": table(
        halie_vote("S", "m", "final", 4), halie_vote("R", "reference", "human", 2)
    ),
    "data/raw/summarization/eval/third_party_batch2_results.csv": table(halie_vote("S ", "m", "final", 5)),
    "ted/ende/mqm_ted_ende.tsv": MQM,
    "ted/zhen/mqm_ted_zhen.tsv": MQM,
    "data/v1-3/txt/test.jsonl": {
        "metadata": {"passage_id": "7"}, "document": "Once \n\n upon", "questions": [{"question_text": "Who? "}],
    },
    "data/human-eval/all-responses.jsonl": {
        "passage-id": "7", "questions": {"0": {"bart": reviews("bart", 10, 20), "human": reviews("human", 90, 95)}},
    },
    "WritingRewards/WQRM_annotations.json": [
        ranked("marketing", {"plot": "gpt_marketing_air_fryer"}, "brf", "bfr"),
        ranked("fiction", {"plot": "It ends.", "voice": "first person", "word_count": 20}, "frb", "fbr", "rfb"),
        ranked("marketing", {"plot": "gpt_marketing_vacuum"}, "brf", "frb"),
    ],
    "src/data/HaluQuestQA.csv": table(preferred("model", "human"), delimiter="\t"),
    "submissions/rdf2text/en/A/primary.en": 'other\n"A ""big"" city."\n',
    "submissions/rdf2text/en/B/primary.en": "other\nA city.\n",
    "evaluation/human-evaluation/amt-scripts/data/en/tables/tables_xml.json": triples(
        "2", "Bonn", "is", "city", "Bonn &amp; co", "size", "big"
    ),
    "evaluation/human-evaluation/results/en/english_humeval_data_all_teams.json": [
        webnlg_result("A", "2", 90), webnlg_result("B", "2", 200 / 3), webnlg_result("WebNLG-2020-reference", "2", 99),
    ],
    "data/simpeval_past.csv": table(
        simplified("copy", "Long.", 10, "processed_generation"), simplified("T5", "Brief", 60, "processed_generation"),
        simplified("scramble_words", ". Long", 0, "processed_generation"),
    ),
    "data/simpeval_2022.csv": table(simplified("Muss", "Short.", 70), simplified("T5", "Brief.", 60)),
    "data/simplikert_2022.csv": table(*(
        {"Input.id": "3", "Input.system": system, "Answer.adequacy": x, "Answer.fluency": x, "Answer.simplicity": 1}
        for system, x in (("Muss", 5), ("Muss", 4), ("T5", 3))
    )),
    **{f"experiments/feedbackQA_data/{agency}/feedback_test.json": [] for agency in second.AGENCIES},
    "experiments/feedbackQA_data/WHO/feedback_test.json": [
        passage("Masks?", "Yes.", "Excellent", "Acceptable"), passage("Masks?", "No.", "Bad", "Could be Improved"),
        passage("Masks?", "word " * 701, "Bad", "Bad"),
    ],
}  # fmt: skip

EXPECTED: dict[str, list[str]] = {}  # set → the lines of its file
for line in Path(__file__).with_name("human_rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
    EXPECTED.setdefault(json.loads(line).get("source", "cragc_llm_verdicts"), []).append(line)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files of all sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name, content in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict | list) else content
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.fixture(scope="module")
def hosts(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for GitHub: its repositories are links to one, which has all files, and one more."""
    folder = tmp_path_factory.mktemp("hosts")
    shutil.copytree(files, folder / "all")
    other = folder / "all" / "Dataset" / "CaseStudy" / "dataset.json"
    other.parent.mkdir()
    other.write_text("[")  # nobody reads it
    for words in (
        "init --quiet",
        "config uploadpack.allowFilter true",
        "config uploadpack.allowAnySHA1InWant true",
        "add .",
        "-c user.name=a -c user.email=a@b commit --quiet --message=files",
    ):
        git(folder / "all", words)
    for source in command.read_sources():
        (folder / source.repository).parent.mkdir(exist_ok=True)
        (folder / f"{source.repository}.git").symlink_to(folder / "all" / ".git")
    return folder


@pytest.fixture(scope="module")
def sources(hosts: Path) -> dict[str, command.Source]:
    """Repository → its entry of sources.yaml, with the commit and the digests of the small files."""
    commit = git(hosts / "all", "rev-parse HEAD")
    digests = {name: hashlib.sha256("".join(lines).encode()).hexdigest() for name, lines in EXPECTED.items()}
    return {
        source.repository: replace(source, commit=commit, sets={name: digests[name] for name in source.sets})
        for source in command.read_sources()
    }


@pytest.fixture
def build(hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Build:
    """Return a function that builds the sets of some sources; it returns the exit code, stdout and stderr."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def run(*chosen: command.Source, prefix: str = f"file://{hosts}/", options: tuple[str, ...] = ()) -> Any:
        monkeypatch.setattr(command, "read_sources", lambda: chosen)
        with pytest.raises(SystemExit) as stop:
            command.main([str(tmp_path / "data"), "--from", prefix, *options])
        return int(stop.value.code or 0), *capfd.readouterr()

    return run


@pytest.mark.parametrize("name", EXPECTED)
def test_a_set_is_mapped(name: str, files: Path) -> None:
    """Prompts whose digest says so are missing, and still count in the ids."""
    assert list(command.SETS[name](files)) == [json.loads(line) for line in EXPECTED[name]]


def test_every_set_has_a_source_and_stands_in_the_docs() -> None:
    sources = command.read_sources()
    names = [name for source in sources for name in source.sets]
    assert sorted(names) == sorted(command.SETS) == sorted(EXPECTED)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in page] == []
    assert all(len(source.commit) == 40 and source.license and source.citation for source in sources)


def test_all_sets_are_built(build: Build, sources: dict[str, command.Source], tmp_path: Path) -> None:
    """One source stands for all, to save time; it has the patterns of all."""
    patterns = [pattern for source in sources.values() for pattern in source.files]
    sets = {name: digest for source in sources.values() for name, digest in source.sets.items()}
    code, out, err = build(replace(sources["DaehanKim/EasyRLHF"], files=patterns, sets=sets), options=("--json",))
    assert (code, err) == (0, "")
    reports = [json.loads(line) for line in out.splitlines()]
    assert {report["name"]: report["rows"] for report in reports} == {n: len(EXPECTED[n]) for n in sets}
    for name in sets:
        assert (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8") == "".join(EXPECTED[name])
    table = (tmp_path / "data" / "SOURCES.md").read_text(encoding="utf-8")
    assert "| hh_rlhf.jsonl | 3 | https://github.com/DaehanKim/EasyRLHF/tree/" in table
    assert "MIT | Bai et al." in table
    assert len(list((tmp_path / "data").iterdir())) == 29


def test_a_build_goes_on_where_it_was_stopped(build: Build, sources: dict[str, command.Source], tmp_path: Path) -> None:
    source = sources["neulab/BARTScore"]
    for name in source.sets:
        file = tmp_path / "data" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(EXPECTED[name]))
    assert build(source, prefix="file:///nowhere/")[0] == 0  # nothing is fetched where nothing is missing
    (tmp_path / "data" / "sfres.jsonl").write_text("{}")  # of another version
    (tmp_path / "data" / "bagel.jsonl").unlink()
    before = (tmp_path / "data" / "sfhot.jsonl").stat()
    code, out, _ = build(source)
    assert (code, len(out.splitlines())) == (0, 4)
    assert (tmp_path / "data" / "sfhot.jsonl").stat().st_mtime_ns == before.st_mtime_ns
    assert all((tmp_path / "data" / f"{n}.jsonl").read_text() == "".join(EXPECTED[n]) for n in ("sfres", "bagel"))


def test_a_repository_that_is_gone_is_one_line(build: Build, sources: dict[str, command.Source]) -> None:
    gone = replace(sources["WeOpenML/PandaLM"], repository="WeOpenML/Gone")
    code, out, err = build(gone, sources["princeton-nlp/LLMBar"])
    assert code == 1
    assert out.startswith("llmbar_pairs: 1 rows; MIT; Zeng et al.")
    assert len(err.splitlines()) == 1
    assert err.startswith("pandalm_pairs not built: file://")
    assert "does not appear to be a git repository" in err


def test_a_commit_that_is_gone_is_one_line(build: Build, sources: dict[str, command.Source]) -> None:
    code, out, err = build(replace(sources["WeOpenML/PandaLM"], commit="0" * 40))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "at 0000000000: fatal: " in err


def test_other_rows_are_not_written(build: Build, sources: dict[str, command.Source], tmp_path: Path) -> None:
    code, out, err = build(replace(sources["WeOpenML/PandaLM"], sets={"pandalm_pairs": "0" * 64}))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("pandalm_pairs not built: the rows have changed")
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["SOURCES.md"]


def test_git_is_needed(build: Build, sources: dict[str, command.Source], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert build(sources["WeOpenML/PandaLM"])[::2] == (1, "pandalm_pairs not built: git is not installed\n")


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"x": os.getcwd}))
    with pytest.raises(pickle.UnpicklingError, match="not plain data"):
        rows.read_pickle(tmp_path / "data.pkl")


def test_a_prompt_of_tulu_goes_with_its_other_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = ["Go.", "Do it."]  # only the first is kept by its digest
    pairs = [{"task": "t", "prompt": prompt, "responses": ["a", "b"], "scores": [1.0, 0.0]} for prompt in prompts]
    monkeypatch.setattr(rows, "MOVED", " ".join(hashlib.sha256(p.encode()).hexdigest()[:8] for p in prompts))
    assert [row["prompt"] for row in rows.cleaned_rows("tulu", lambda _: pairs, tmp_path)] == ["Do it."]
    assert [row["prompt"] for row in rows.cleaned_rows("conala", lambda _: pairs, tmp_path)] == ["Go."]


def test_texts_are_cleaned_and_equal_ones_joined(tmp_path: Path) -> None:
    row = {
        "task": "t",
        "prompt": "Go.\r\n",
        "responses": ["a\u00a0b", "a  b", " ", "c"],
        "scores": [1.0, 2.0, 9.0, 0.0],
    }
    row |= {"capabilities": {"x": [None, 1.0, 9.0, 2.0]}, "systems": ["A", "B", "C", "D"]}
    single = {"task": "t", "prompt": "Go.", "responses": ["a", "a "], "scores": [1.0, 0.0]}
    again = {**row, "responses": ["c", "a b", "c", "a b"]}
    expected = {"id": "s-0", "task": "t", "prompt": "Go.", "responses": ["a b", "c"], "scores": [1.5, 0.0]}
    expected |= {"capabilities": {"x": [1.0, 2.0]}, "systems": ["A", "D"], "source": "s"}
    assert list(rows.cleaned_rows("s", lambda _: [single, row, again], tmp_path)) == [expected]


def test_rows_with_a_blank_response_are_left_out(tmp_path: Path) -> None:
    texts = (["a", " "], ["a", None], ["a", "b"])
    pairs = [{"task": "t", "prompt": "Go.", "responses": responses} for responses in texts]
    kept = list(rows.published_rows("s", lambda _: pairs, tmp_path))
    assert [(row["id"], row["responses"]) for row in kept] == [("s-0", ["a", "b"])]


def test_rows_whose_grades_order_no_pair_are_left_out(tmp_path: Path) -> None:
    row = {"task": "t", "prompt": "Go.", "responses": ["a", "b"]}
    grades = ({"scores": [1.0, 1.0]}, {"capabilities": {"x": [1.0, None]}}, {"capabilities": {"x": [1.0, 2.0]}})
    mapped = [{**row, "prompt": f"Go {i}.", **more} for i, more in enumerate(grades)]
    assert [kept["id"] for kept in rows.all_rows("s", lambda _: mapped, tmp_path)] == ["s-2"]


def test_some_pairs_of_convarg_are_drawn(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaned, "CONVARG_ROWS", 0)
    assert cleaned.convarg_sample(files) == []


def test_the_real_files_are_those_that_are_built(human_data: Path) -> None:
    sources = command.read_sources()
    sets = {name: digest for source in sources for name, digest in source.sets.items()}
    absent = {name for name in second.SETS if not (human_data / f"{name}.jsonl").exists()}  # the final test's are apart
    assert [n for n, digest in sets.items() if n not in absent and not command.is_complete(human_data, n, digest)] == []
