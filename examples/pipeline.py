"""Rewards by the Hugging Face pipeline, where only that fits; `DMoERM.score` also says what each capability got.

python examples/pipeline.py runs/demo/model
"""

from __future__ import annotations

import sys

from transformers import pipeline

import dmoerm  # noqa: F401  makes transformers know the model


def main(model: str) -> None:
    classify = pipeline("text-classification", model=model, function_to_apply="none", batch_size=8)
    prompt = {"role": "user", "content": "I failed my exam."}
    answers = ["Oh no, I am so sorry! What happened?", "The exam took place."]
    texts = [
        classify.tokenizer.apply_chat_template([prompt, {"role": "assistant", "content": answer}], tokenize=False)
        for answer in answers
    ]
    for answer, found in zip(answers, classify(texts), strict=True):
        print(f"{found['label']} {found['score']:+.3f}  {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
