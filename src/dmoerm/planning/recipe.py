"""What a config trains and how it scores, and the shape of its backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import Config
from ..errors import BackboneError
from .work import EXPERTS_OF_A_LAYER, BackboneShape, Work

SHAPES = {
    "smollm2": BackboneShape(30, 576, 1536, 9, 3, 64, 49152),
    "HuggingFaceTB/SmolLM2-135M-Instruct": BackboneShape(30, 576, 1536, 9, 3, 64, 49152),
    "Qwen/Qwen3-0.6B": BackboneShape(28, 1024, 3072, 16, 8, 128, 151936),
    "meta-llama/Llama-3.1-8B-Instruct": BackboneShape(32, 4096, 14336, 32, 8, 128, 128256),
    "meta-llama/Llama-3.1-70B-Instruct": BackboneShape(80, 8192, 28672, 64, 8, 128, 128256),
    "meta-llama/Llama-3.3-70B-Instruct": BackboneShape(80, 8192, 28672, 64, 8, 128, 128256),
}
"""Shapes of packed backbones that need no download."""
QUANTIZED_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
"""Bytes of a weight of a quantized layer; 4 bits have a float32 scale per block of 64 weights."""


@dataclass(frozen=True)
class Recipe:
    """The part of a config on which its cost depends.

    Attributes:
        whole, shape: of the backbone, and of the layers that are used.
        trunk: b, the number of shared layers.
        base: as in the config.
        tasks, experts: number of tasks, and of experts per task.
        rank: of the experts' LoRA; 0: experts are heads.
        base_rank: of the LoRA of `base: lora`.
        plain: passes of the branch without an expert when scoring.
        pools_all: the pooling reads all tokens of a response.
        own_router: the router has its own language model.
        packed: the responses to a prompt share its pass; false: the backbone runs by its own forward.
        bytes_per_weight: of the backbone's dtype.
        bytes_per_frozen: of a weight of a frozen linear layer: the same, or that of its 8 or 4 bits with their scales.
        config: the settings of the steps.
    """

    whole: BackboneShape
    shape: BackboneShape
    trunk: int
    base: str
    tasks: int
    experts: int
    rank: int
    base_rank: int
    plain: int
    pools_all: bool
    own_router: bool
    packed: bool
    bytes_per_weight: float
    bytes_per_frozen: float
    config: Config

    @classmethod
    def of(
        cls,
        config: Config,
        shape: BackboneShape,
        tasks: int,
        experts: int,
        *,
        float32: bool = False,
        packed: bool = True,
    ) -> Recipe:
        """Read a config.

        Args:
            shape: of the whole backbone.
            tasks, experts: number of tasks, and of capabilities per task.
            float32: what `backbone.dtype: auto` is on the machine; bfloat16 on an accelerator.
            packed: false: the backbone runs by its own forward, whole and without a trunk.

        Raises:
            BackboneError: the backbone has fewer layers than the config uses, or cannot be split as it requests.
        """
        layers = config.backbone.num_layers or shape.layers
        branch_layer = config.backbone.branch_layer
        if not packed:
            _check_whole(config, layers, shape.layers)
            branch_layer = 0
        trunk = layers * 4 // 5 if branch_layer is None else branch_layer
        if layers > shape.layers or trunk >= layers:
            raise BackboneError(
                f"backbone.num_layers and branch_layer are {layers} and {trunk}, but the backbone has {shape.layers} "
                "layers; set lower numbers, or null for all layers and four fifths"
            )
        dtype = config.backbone.dtype
        size = 4.0 if dtype == "float32" or (dtype == "auto" and float32) else 2.0
        return cls(
            shape,
            replace(shape, layers=layers),
            trunk,
            config.base,
            tasks,
            experts,
            config.phase2.lora.rank,
            config.base_lora.rank if config.base == "lora" else 0,
            _plain_passes(config),
            config.encoding.pooling != "last",
            config.router.kind == "own",
            packed,
            size,
            QUANTIZED_BYTES.get(config.backbone.quantization, size),
            config,
        )

    @property
    def recomputed(self) -> float:
        """Forward passes of a trained layer in the backward pass: 1 with `gradient_checkpointing`, else 0."""
        return float(bool(self.config.gradient_checkpointing))

    @property
    def top(self) -> int:
        """Layers of the branch."""
        return self.shape.layers - self.trunk

    @property
    def lora_experts(self) -> int:
        """Experts that pass the layers of the branch."""
        return self.experts if self.rank else 0

    @property
    def branches(self) -> int:
        """Branches in the model: the general one, and one per task unless all share it."""
        return 1 if self.base == "frozen" else 1 + self.tasks

    def work(self, prompt: int, responses: int, tokens: int) -> Work:
        """Return the work of one prompt with its responses."""
        sizes = {"experts": self.lora_experts, "plain": self.plain, "rank": self.rank, "pools_all": self.pools_all}
        return Work(prompt, responses, tokens, self.trunk, **sizes, shared=self.packed)


def _check_whole(config: Config, layers: int, all_layers: int) -> None:
    """Raise `BackboneError` if training refuses the settings for a backbone that runs by its own forward."""
    hint = "the backbone runs by its own forward, whole and without a trunk (docs/backbones.md)"
    if config.backbone.branch_layer or layers != all_layers:
        raise BackboneError(f"{hint}; set backbone.branch_layer and backbone.num_layers to null")
    if config.router.kind == "trunk":
        raise BackboneError(f"router.kind is trunk, but {hint}; set router.kind to own")


def _plain_passes(config: Config) -> int:
    """Return how often scoring passes a branch without an expert; as `Mixture.outputs` decides."""
    if config.base == "frozen":
        return 1
    if config.phase3.inputs == "embeddings":
        return 0 if config.phase2.lora.rank else 1
    return 2 if "general" in config.phase3.base_scores else 1


def read_shape(path: str) -> BackboneShape:
    """Return the shape of a backbone: of a known name, or from the configuration of a folder or a hub name.

    Raises:
        BackboneError: the configuration cannot be read, is not that of a decoder with the usual fields, or is that of a
            mixture of experts.
    """
    if path in SHAPES:
        return SHAPES[path]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path).get_text_config()
        if any(getattr(config, name, None) for name in EXPERTS_OF_A_LAYER):
            raise BackboneError(f"backbone {path!r}: is a mixture of experts, whose cost the plan does not know")
        return BackboneShape.of(config)
    except BackboneError:
        raise
    except AttributeError as error:
        raise BackboneError(
            f"backbone {path!r}: its layers are not those of a usual decoder ({error}), so the plan cannot count them; "
            "`dmoerm models check` counts its weights"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"backbone {path!r}: its shape cannot be read: {reason}") from None


def check_shape(path: str, shape: BackboneShape, linear: int) -> BackboneShape:
    """Return the shape, with or without a gate, that has as many weights in its linear parts as the backbone.

    Args:
        linear: that number of weights.

    Raises:
        BackboneError: neither has.
    """
    if fitted := shape.fitted(linear):
        return fitted
    counts = [f"{shape.layers * replace(shape, gated=gated).layer / 1e6:,.2f} M" for gated in (True, False)]
    raise BackboneError(
        f"backbone {path!r}: its layers are not those of a usual decoder: their linear parts have "
        f"{linear / 1e6:,.2f} M weights and the plan counts {', or without a gate '.join(counts)}; "
        "`dmoerm models check` counts its weights"
    )
