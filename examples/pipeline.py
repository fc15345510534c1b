"""Get rewards from a Hugging Face pipeline. `DMoERM.score` also returns the capability scores.

python examples/pipeline.py runs/demo/model
"""

from __future__ import annotations

import sys

from transformers import pipeline

import dmoerm  # noqa: F401  registers the model with transformers


def main(model: str) -> None:
    classify = pipeline("text-classification", model=model, function_to_apply="none", batch_size=8)
    prompt = {"role": "user", "content": "I failed my exam."}
    answers = ["Oh no, I am so sorry! What happened?", "The exam took place."]
    texts = [
        classify.tokenizer.apply_chat_template([prompt, {"role": "assistant", "content": answer}], tokenize=False)
        for answer in answers
    ]
    for answer, result in zip(answers, classify(texts), strict=True):
        print(f"{result['label']} {result['score']:+.3f}  {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
