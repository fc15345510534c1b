"""Measure the rows of scoring.py on a GPU in bfloat16, on random backbones of the shapes of Qwen3-0.6B and Llama-3-8B.

python -m evidence.speed.gpu          prints the rows and writes results/gpu.json; without a GPU, says so and exits
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dmoerm.model.backbone import bundled_backbone
from evidence.measure import Row, write
from evidence.speed.scoring import SHAPES, contest, measure_shape

BACKBONES: dict[str, dict[str, Any]] = {
    "qwen3_0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama_8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
}


def main() -> None:
    """Measure both backbones at all shapes."""
    if not torch.cuda.is_available():
        print("skipped: there is no GPU")
        return
    rows: list[Row] = []
    shares: dict[str, float] = {}
    for name, settings in BACKBONES.items():
        with tempfile.TemporaryDirectory() as folder:
            with torch.device("cuda"):
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16)
            model.save_pretrained(folder)
            del model
            AutoTokenizer.from_pretrained(str(bundled_backbone())).save_pretrained(folder)
            each = contest(folder, torch.bfloat16, settings["num_hidden_layers"] * 4 // 5, "cuda")
        for shape in SHAPES:
            shape_rows, share = measure_shape(each, shape)
            shares[f"{name}_{shape_rows[0]['work']}"] = share
            rows += [{**row, "work": f"{name}_{row['work']}"} for row in shape_rows]
        del each
        torch.cuda.empty_cache()
    write("gpu", "python -m evidence.speed.gpu", rows, share_of_machine=shares)


if __name__ == "__main__":
    main()
