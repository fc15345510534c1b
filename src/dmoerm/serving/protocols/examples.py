"""Examples of each protocol's requests and answers, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

PROMPT = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
TEXT = PROMPT + "Fine, and you?<|im_end|>\n"
TURNS = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine, and you?"}]

CONVERSATION_REQUESTS: Any = [{"messages": TURNS, "use_activation": False}, {"input": [TEXT]}]
EMBEDDING_REQUEST: Any = {"input": TEXT}
PAIR_REQUESTS: Any = [{"text_1": "How are you?", "text_2": ["Fine, and you?", "No."]}]
TOKENIZE_REQUESTS: Any = [{"messages": TURNS}, {"prompt": "How are you?", "return_token_strs": True}]
RERANK_REQUESTS: Any = [
    {"query": "How are you?", "documents": ["Fine, and you?", {"text": "No."}], "top_n": 1, "return_documents": True},
    {"query": "How are you?", "texts": ["Fine, and you?", "No."], "raw_scores": True},
]
RANKING_REQUEST: Any = {"query": {"text": "How are you?"}, "passages": [{"text": "Fine, and you?"}, {"text": "No."}]}
SIMILARITY_REQUEST: Any = {"inputs": {"source_sentence": "How are you?", "sentences": ["Fine, and you?", "No."]}}
SAMPLE_REQUESTS: Any = [
    {"prompt": TURNS[:1], "response": "Fine, and you?", "label": None},
    {"prompt": PROMPT, "response": "Fine, and you?<|im_end|>"},
]
EVALUATION_REQUEST: Any = {"model": "model", "messages": [TEXT]}
REWARD_REQUEST: Any = {"query": [TEXT], "prompts": [PROMPT], "labels": [None]}
PREDICT_REQUESTS: Any = [
    {"inputs": TEXT, "raw_scores": True},
    {"inputs": [["How are you?", "Fine, and you?"], ["How are you?", "No."]], "raw_scores": True},
]

SCORE_REQUEST: Any = {
    "items": [
        {
            "prompt": [{"role": "user", "content": "I failed my exam."}],
            "responses": ["Oh no, I am so sorry! What happened?", "The exam took place."],
            "task": None,
        }
    ]
}
SCORE_REQUESTS: Any = [SCORE_REQUEST, SCORE_REQUEST | {"weights": {"empathy": 2}, "risk": 0.5}]
SCORE_RESPONSE: Any = {
    "model": "demo",
    "items": [
        {
            "id": "6a0b7c1e5d2f4a39",
            "scores": [
                {
                    "reward": 0.8,
                    "task": "chitchat",
                    "route": {"chitchat": 0.98, "objective_qa": 0.02},
                    "capabilities": {"empathy": 1.3, "proactivity": 0.4},
                    "uncertainty": 0.45,
                    "temperature": 1.2,
                    "truncated": False,
                },
                {
                    "reward": -0.9,
                    "task": "chitchat",
                    "route": {"chitchat": 0.98, "objective_qa": 0.02},
                    "capabilities": {"empathy": -1.1, "proactivity": -0.7},
                    "uncertainty": 0.2,
                    "temperature": 1.2,
                    "truncated": False,
                },
            ],
            "win_probabilities": [[0.5, 0.805], [0.195, 0.5]],
        }
    ],
    "usage": {"tokens": 41},
}
