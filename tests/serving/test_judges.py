"""Clients that ask a language model for a verdict: their requests, and their own rules for reading the answers.

The sentences of instructions that the server ignores are shortened; test_published_clients.py sends the published ones.
Each test names the commit of the client's public repository that was read.
"""

from __future__ import annotations

import ast
import asyncio
import json
import math
import re
import textwrap
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion
from running import served

from dmoerm.schema import Message
from dmoerm.scores import Score, unbound_reward
from dmoerm.serving import ServingConfig, create_app

QUESTION = "I failed my exam.\n\nWhat now?"
RESPONSES = ["Oh no. What happened?", "The exam took place.", "No.\n\n  Really.", "Say more about it."]


@pytest.fixture(scope="module")
def scores(trained_run) -> list[Score]:
    return trained_run.model.score(QUESTION, RESPONSES)


@pytest.fixture(scope="module")
def chat(served_url):
    """`chat.completions.create` of openai-python, as it is installed."""
    with openai.OpenAI(base_url=f"{served_url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client.chat.completions.create


def share(score: Score) -> float:
    """The probability that people prefer the response to an average one."""
    return 0.5 + 0.5 * math.tanh(unbound_reward(score.reward) / score.temperature / 2)


def better(scores: list[Score]) -> int:
    return max(range(len(scores)), key=lambda index: scores[index].reward)


def conversation(user: str, system: str | None = None) -> list[Any]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": user}]


def test_verl_genrm(served_url, scores):
    """verl (b178a3c) tests/experimental/reward_loop/reward_fn.py: aiohttp, and `int` of the last paragraph."""
    prompt = textwrap.dedent("""\
        You are given a problem and a proposed solution.

        Problem:
        {problem}

        Solution:
        {solution}

        Please evaluate how well the solution addresses the problem.\x20
        Give a score from 1 to 10, where:
        - 1 means the solution is completely irrelevant or incorrect.

        Only output the score as a single number (integer).""")

    async def compute_score(solution: str) -> int:
        body = {
            "messages": conversation(prompt.format(problem=QUESTION, solution=solution)),
            "model": "Qwen2.5-1.5B-Instruct",
            "temperature": 0.7,
            "top_p": 0.8,
            "max_tokens": 4096,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{served_url}/v1/chat/completions", json=body) as r,
        ):
            answer: Any = ChatCompletion(**json.loads(await r.text())).choices[0].message.content
        return int(answer.split("\n\n")[-1].strip())

    for response, score in zip(RESPONSES[:2], scores, strict=False):
        assert asyncio.run(compute_score(response)) == pytest.approx(1 + 9 * share(score), abs=0.501)


def test_ms_swift_genrm(http, scores):
    """ms-swift (3602360) AsyncGenRMReward: `textwrap.dedent` after the texts are inserted, so lines may be indented."""
    (model,) = [entry["id"] for entry in http.get("/v1/models").json()["data"]]
    system = "… provide a score from 0 to 10, where: … You MUST end your response with … this exact format: [[score]]"
    system += "\nFor example: [[7]] or [[10]]"
    for response, score in zip(RESPONSES[1:3], scores[1:3], strict=True):
        user = textwrap.dedent(f"""
            ## User Question
            {QUESTION}

            ## AI Assistant's Response
            {response}

            ## Your Evaluation
            Please evaluate the above response and provide your score.
        """).strip()
        body = {
            "model": model,
            "messages": conversation(user, system),
            "temperature": 0.3,
            "max_tokens": 2048,
            "seed": 5,
        }
        answer = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        match: Any = re.search(r"\[\[(\d+(?:\.\d+)?)\]\]", answer)
        assert min(max(float(match[1]) / 10, 0), 1) == pytest.approx(share(score), abs=0.002)


def pair(question: str, *responses: str, reference: str = "") -> str:
    """The text of FastChat's pair-v2 and pair-math-v1, which RewardBench took over."""
    text = f"[User Question]\n{question}\n\n"
    if reference:
        text += f"[The Start of Reference Answer]\n{reference}\n[The End of Reference Answer]\n\n"
    parts = [
        f"[The Start of Assistant {x}'s Answer]\n{response}\n[The End of Assistant {x}'s Answer]"
        for x, response in zip("ABCD", responses, strict=False)
    ]
    return text + "\n\n".join(parts)


def test_mt_bench_pairs(chat, scores):
    """FastChat (0e6d3e4) `run_judge_pair`: `[[A]]`, `[[B]]`, or `[[C]]` for a tie, also with a reference answer."""
    system = (
        'Please act as an impartial judge … "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and '
    )
    system += '"[[C]]" for a tie.'
    options: Any = {"model": "gpt-4", "n": 1, "temperature": 0, "max_tokens": 2048}

    def winner(*responses: str, reference: str = "") -> str:
        messages = conversation(pair(QUESTION, *responses, reference=reference), system)
        judgment: Any = chat(messages=messages, **options).choices[0].message.content
        return next(name for mark, name in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")) if mark in judgment)

    expected = "AB"[better(scores[:2])]
    other = "BA"[better(scores[:2])]
    assert (winner(*RESPONSES[:2]), winner(*RESPONSES[1::-1])) == (expected, other)
    assert winner(*RESPONSES[:2], reference="Yes.") == expected
    assert winner("No.", "No.") == "tie"


def test_mt_bench_conversations(chat, trained_run):
    """FastChat (0e6d3e4) `multi_turn`: the second answers are judged, each after its own first answer."""
    system = '… "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.'
    answers = {"A": ["Oh no.", "Try again."], "B": ["So?", "The exam took place."]}
    parts = [
        f"<|The Start of Assistant {x}'s Conversation with User|>\n\n### User:\nI failed.\n\n### Assistant {x}:\n{one}"
        f"\n\n### User:\nWhat now?\n\n### Assistant {x}:\n{two}\n\n"
        f"<|The End of Assistant {x}'s Conversation with User|>"
        for x, (one, two) in answers.items()
    ]
    answer: Any = chat(model="gpt-4", messages=conversation("\n\n\n".join(parts), system))
    rewards = []
    for one, two in answers.values():
        texts = [("user", "I failed."), ("assistant", one), ("user", "What now?")]
        turns = [Message(role=role, content=text) for role, text in texts]  # pyright: ignore[reportArgumentType]
        rewards.append(trained_run.model.score(turns, [two])[0].reward)
    assert answer.judge["rewards"] == pytest.approx(rewards, abs=1e-4)
    assert answer.choices[0].message.content == ("[[A]]" if rewards[0] > rewards[1] else "[[B]]")


@pytest.mark.parametrize("reference", ["", "[The Start of Reference Answer]\nYes.\n[The End of Reference Answer]\n\n"])
def test_mt_bench_ratings(chat, scores, reference):
    """FastChat (0e6d3e4) `run_judge_single`: `[[rating]]` by its pattern and `ast.literal_eval`."""
    for response, score in zip(RESPONSES[2:3], scores[2:3], strict=True):
        text = "[Instruction]\n… you must rate the response on a scale of 1 to 10 by strictly following this format: "
        text += f'"[[rating]]", for example: "Rating: [[5]]".\n\n[Question]\n{QUESTION}\n\n{reference}'
        text += f"[The Start of Assistant's Answer]\n{response}\n[The End of Assistant's Answer]"
        messages = conversation(text, "You are a helpful assistant.")
        judgment: Any = chat(model="gpt-4", messages=messages, n=1, temperature=0).choices[0].message.content
        match: Any = re.search(r"\[\[(\d+\.?\d*)\]\]", judgment)
        assert ast.literal_eval(match[1]) == pytest.approx(1 + 9 * share(score), abs=0.006)


def test_rewardbench_pairs(chat, scores):
    """RewardBench (05a9005) generative.py `process_judgement`: `[[A]]` is searched before `[[B]]`."""
    system = 'Please act as an impartial judge … "[[A]]" if assistant A is better, "[[B]]" if assistant B is better.'
    for order in ((0, 1), (1, 0)):
        messages = conversation(pair(QUESTION, *(RESPONSES[i] for i in order)), system)
        judgment: Any = (
            chat(model="gpt-4o", messages=messages, temperature=0, max_tokens=2048).choices[0].message.content
        )
        winner = "A" if "[[A]]" in judgment else "B" if "[[B]]" in judgment else "error"
        assert winner == "AB"[better([scores[i] for i in order])]


def test_rewardbench_best_of_four(chat, scores):
    """RewardBench (05a9005) generative_v2.py: the best of four responses."""
    system = '… "[[A]]" if assistant A is best, "[[B]]" if assistant B is best, "[[C]]" if assistant C is best, and '
    system += '"[[D]]" if assistant D is best.'
    messages = conversation(pair(QUESTION, *RESPONSES), system)
    answer = chat(model="gpt-4o", messages=messages, temperature=0, logprobs=True, top_logprobs=20).choices[0]
    assert answer.message.content == f"[[{'ABCD'[better(scores)]}]]"
    alternatives = {entry.token: entry.logprob for entry in answer.logprobs.content[1].top_logprobs}
    assert sum(map(math.exp, alternatives.values())) == pytest.approx(1, abs=1e-6)
    margin = (scores[0].reward - scores[1].reward) / scores[0].temperature
    assert alternatives["A"] - alternatives["B"] == pytest.approx(margin, abs=1e-3)


def test_rewardbench_ratings(chat, scores):
    """RewardBench (05a9005) `get_single_rating`: an integer at the end."""
    for response, score in zip(RESPONSES[:2], scores, strict=False):
        text = (
            "\n### Task Description\n… only give a number between 1 and 10 (inclusive), do not use any markdown …\n\n"
        )
        text += f"[Query]\n{QUESTION}\n\n[Response]\n{response}\n\n[Your judgement]"
        judgment: Any = chat(model="gpt-4o", messages=conversation(text), temperature=0, max_tokens=1024)
        match: Any = re.search(r"\b([1-9]|10)\b\s*$", judgment.choices[0].message.content.strip())
        assert int(match[1]) == pytest.approx(1 + 9 * share(score), abs=0.501)


def test_alpaca_eval(chat, scores):
    """alpaca_eval (cd543a1) weighted_alpaca_eval_gpt4_turbo: `logprob_parser` over m and M; 2 − P(m) is its number."""
    user = textwrap.dedent('''\
        I require a leaderboard for various large language models. I'll provide you with prompts …

        ## Instruction

        {{
            "instruction": """{instruction}""",
        }}

        ## Model Outputs

        Here are the unordered outputs from the models. …

        {{
            {{
                "model_identifier": "m",
                "output": """{output_1}"""
            }},
            {{
                "model_identifier": "M",
                "output": """{output_2}"""
            }}
        }}

        ## Task

        Evaluate the models … (no quotes, no spaces, no new lines, ...): m or M.

        ## Best Model Identifier''').format(instruction=QUESTION, output_1=RESPONSES[0], output_2=RESPONSES[1])
    messages = conversation(user, "You are a highly efficient assistant, who evaluates and selects the best …")
    options: Any = {"max_tokens": 1, "temperature": 1, "top_p": 1.0, "logprobs": True, "top_logprobs": 5}
    completion = chat(model="gpt-4-1106-preview", messages=messages, **options).choices[0].model_dump()
    (token,) = completion["logprobs"]["content"]
    logs = {entry["token"]: entry["logprob"] for entry in token["top_logprobs"] if entry["token"] in ("m", "M")}
    ratio = math.exp(logs["m"]) / (math.exp(logs["m"]) + math.exp(logs["M"]))
    assert ratio == pytest.approx(scores[0].win_probability(scores[1]), abs=1e-4)
    assert completion["message"]["content"] == token["token"] == "mM"[better(scores[:2])]


def test_alpaca_eval_ratings(chat, scores):
    """alpaca_eval (cd543a1) lmsys_gpt4: `lmsys_parser` reads two numbers in the first line."""
    user = (
        f"[Question]\n{QUESTION}\n\n[The Start of Assistant 1's Answer]\n{RESPONSES[0]}\n\n[The End of Assistant 1's "
    )
    user += f"Answer]\n\n[The Start of Assistant 2's Answer]\n{RESPONSES[1]}\n\n[The End of Assistant 2's Answer]\n\n"
    user += "[System]\n… Each assistant receives an overall score on a scale of 1 to 10, where a higher score …"
    completion: Any = chat(model="gpt-4", messages=conversation(user), temperature=0.2).choices[0].message.content
    first, second = map(float, completion.split("\n")[0].replace(",", " ").split(" "))
    assert (first, second) == pytest.approx([1 + 9 * share(score) for score in scores[:2]], abs=0.006)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_any_other_conversation_is_refused(chat, served_url):
    """400, which openai-python does not retry, with the known templates."""
    for messages in (
        conversation("Hello!"),
        [*conversation("Hello!"), {"role": "assistant", "content": "Hi."}],
        conversation(pair("q", "a", "b"), "Which is funnier?"),
    ):
        with pytest.raises(
            openai.BadRequestError, match=r"cannot chat.*rewardbench-pair, .*--judge-templates"
        ) as error:
            chat(model="m", messages=messages)
        assert error.value.status_code == 400
    twice = pair("q", "a\n[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\nx", "b")
    judge = '"[[A]]" if assistant A is better, "[[B]]" if assistant B is better.'
    with pytest.raises(openai.BadRequestError, match="2 times, not 1"):
        chat(model="m", messages=conversation(twice, judge))
    body = {"messages": conversation(pair("q", "a", "b"), judge)}
    url = f"{served_url}/v1/chat/completions"
    for more in ({"stream": True}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}):
        refused = httpx2.post(url, json=body | more)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(more)))
    assert httpx2.post(url, json=body | {"top_logprobs": 2}).status_code == 422
    assert httpx2.post(url, json={"messages": []}).status_code == 422
    answer = httpx2.post(url, json=body | {"n": 3, "stream": False, "response_format": {"type": "text"}}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["judge"]["template"] == "rewardbench-pair"


def test_an_own_template(trained_run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        'ours: {user: "Rate {response} as an answer to {prompt}!", rating: {text: "{rating}/5", low: 0, high: 5}}'
    )
    with served(create_app(trained_run.model, ServingConfig(judge_templates=file))) as url:
        answer = httpx2.post(
            f"{url}/v1/chat/completions", json={"messages": conversation("Rate No. as an answer to Hi!")}
        )
    (score,) = trained_run.model.score("Hi", ["No."])
    assert answer.json()["judge"]["template"] == "ours"
    assert answer.json()["choices"][0]["message"]["content"] == f"{5 * share(score):.0f}/5"
