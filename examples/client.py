"""Request scores from a reward server, one prompt at a time and many at once.

dmoerm serve runs/demo/model &
python examples/client.py http://127.0.0.1:8000        # an API key is read from DMOERM_API_KEY
"""

from __future__ import annotations

import asyncio
import sys

import dmoerm

PROMPT = [{"role": "user", "content": "I failed my exam."}]
ANSWERS = ["Oh no, I am so sorry! What happened?", "The exam took place."]


def ask(url: str) -> None:
    """Score two answers to one prompt."""
    with dmoerm.Client(url) as rm:
        print("models:", ", ".join(rm.models()))
        first, second = rm.score(PROMPT, ANSWERS)
        print(f"{first.reward:+.3f} and {second.reward:+.3f}, scored as {first.task}: {first.capabilities}")
        print(f"probability that people prefer the first: {first.win_probability(second):.2f}")


async def ask_at_once(url: str) -> None:
    """Score 20 prompts with eight concurrent requests."""
    async with dmoerm.AsyncClient(url, concurrency=8) as rm:
        prompts = [f"Tell me about the number {number}." for number in range(20)]
        scores = await asyncio.gather(*[rm.score(prompt, ANSWERS) for prompt in prompts])
        mean = sum(first.reward for first, _ in scores) / len(scores)
        print(f"{len(scores)} prompts, mean reward of the first answer {mean:+.3f}")


if __name__ == "__main__":
    ask(*sys.argv[1:])
    asyncio.run(ask_at_once(*sys.argv[1:]))
