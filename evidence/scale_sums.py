"""Count operations, time and weights of scoring for docs/scale.md: no model is read, nothing is measured.

python evidence/scale_sums.py --prompt 512 --response 256

    T = P + N R                             tokens; the prompt once for all its responses
    M = b + (k + p)(L - b - 1)              layers that every token passes; the last layer computes only keys and values
    linear = 2 (T W M + (k + p)(2 T d d_kv + N S W));  attention = 4 d_q (P²/2 + N R (P + R)) M
    LoRA = 2 T rank (2 d + d_q + d_kv) k (L - b)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

RATE, LAYER_SECONDS, PASS_TOKENS = 0.4 * 989e12, 3e-4, 8192
"""An H100: 40 % of its dense bfloat16 rate, and about 30 kernels of 10 µs per layer call; both assumed."""


@dataclass(frozen=True)
class Shape:
    """A decoder: L layers of width d, feed-forward f, query width d_q, key width d_kv."""

    layers: int
    width: int
    feed_forward: int
    queries: int
    keys: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """W, the weights of a layer's linear parts."""
        return self.width * (2 * self.queries + 2 * self.keys + 3 * self.feed_forward)


SHAPES = {
    "Qwen3 0.6B": Shape(28, 1024, 3072, 2048, 1024, 151936),
    "Llama 3.1 8B": Shape(32, 4096, 14336, 4096, 1024, 128256),
    "Llama 3.1 70B": Shape(80, 8192, 28672, 8192, 1024, 128256),
}
EXPERTS = {"fast": 0, "LoRA experts": 5}
"""Row → experts with a LoRA of rank 8 (k); both pass the branch once more without an expert (p = 1)."""


def scoring_flops(shape: Shape, prompt: int, responses: int, tokens: int, experts: int, rank: int = 8) -> float:
    """Return the operations of scoring one prompt's responses; S = R, as in pooling `both`."""
    trunk, passes, total = shape.layers * 4 // 5, experts + 1, prompt + responses * tokens
    top = shape.layers - trunk
    whole = trunk + passes * (top - 1)
    pooled = responses * tokens
    linear = total * shape.weights * whole + passes * (2 * total * shape.width * shape.keys + pooled * shape.weights)
    pairs = prompt**2 / 2 + responses * tokens * (prompt + tokens)
    last = pooled * (prompt + tokens)
    lora = total * rank * (2 * shape.width + shape.queries + shape.keys) * experts * top
    return 2.0 * (linear + lora) + 4.0 * shape.queries * (pairs * whole + last * passes)


def plain_flops(shape: Shape, prompt: int, responses: int, tokens: int) -> float:
    """Return the operations of a plain reward model, which reads the prompt again with every response."""
    length = prompt + tokens
    layer = 2.0 * length * shape.weights + 2.0 * shape.queries * length**2
    return responses * shape.layers * layer


def main() -> None:
    """Print the table of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", type=int, default=256)
    prompt, tokens = (options := parser.parse_args()).prompt, options.response
    print("| backbone | recipe | N | TFLOP per response | of a plain model's | H100 hours for 10⁶ | weights, GB |")
    print("|---|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        top = shape.layers - shape.layers * 4 // 5
        for recipe, experts in EXPERTS.items():
            for responses in (2, 4, 16):
                flops = scoring_flops(shape, prompt, responses, tokens, experts) / responses
                packed = (prompt + responses * tokens) * max(experts, 1)
                passes = 1e6 / responses * min(1.0, packed / PASS_TOKENS)
                calls = passes * (shape.layers - top + top * (1 + bool(experts)))
                hours = (1e6 * flops / RATE + calls * LAYER_SECONDS) / 3600
                # LoRA experts are on six branches in float32: those of five tasks and of the general model.
                trained = 4 * 6 * top if experts else 2 * top
                weights = 2 * (shape.vocabulary * shape.width + (shape.layers - top) * shape.weights)
                weights += trained * shape.weights
                ratio = responses * flops / plain_flops(shape, prompt, responses, tokens)
                row = f"{flops / 1e12:.2f} | {ratio:.2f} | {hours:.1f} | {weights / 1e9:.1f}"
                print(f"| {name} | {recipe} | {responses} | {row} |")


if __name__ == "__main__":
    main()
