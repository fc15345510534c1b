"""Conditions of an experiment: changed training data, and the testbed's groups, as files that the product reads.

A condition is a set of changes by name. `DATA` names the changes of the data; other names are settings (`a.b`).

    flip_scores, flip_capabilities            noise: about this share of a group's ordered pairs is reversed
    overall_fraction, capability_fraction     share of each task's training prompts that keep these labels
    max_capabilities, merge_tasks             fewer experts per task; one task, so no outer layer

Only the training part changes. Noise moves grades between the responses to a prompt, so that grades stay grades: with
two responses they are swapped; with more, they are assigned in the order of the ranks plus Gaussian noise. All draws
follow from hashes of the seed and the group's id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import held_out, load_splits
from dmoerm.errors import ConfigError
from dmoerm.evaluation.comparison import seed_config
from dmoerm.io.paths import write_file
from dmoerm.schema import Group, ordered_pairs, prompt_key
from dmoerm.taxonomy import Task, Taxonomy, load_taxonomy
from evidence import testbed

Changes = Mapping[str, Any]
"""Name of a change of the data, or setting, named `a.b` → value."""
MERGED = "all"
"""The task of all groups under `merge_tasks`."""
_TEST_FRACTION = 0.3
_SPREADS = np.geomspace(0.05, 20, 40)  # of the noise, in standard deviations of the ranks


@dataclass(frozen=True)
class Data:
    """The groups of a run and its taxonomy."""

    train: Sequence[Group]
    test: Sequence[Group]
    taxonomy: Taxonomy


def experiment_config(name: str, overrides: Sequence[str], output: Path | None) -> Config:
    """Load a config by name or path; `testbed` is the one of this folder."""
    own = Path(__file__).with_name(f"{name}.yaml")
    settings = load_config(str(own) if own.exists() else name, overrides)
    return changed(settings, {"output": str(output or f"{settings.output}-compare")})


def separated(config: Config, changes: Changes) -> tuple[Config, dict[str, Any]]:
    """Return the changed settings, and the changes of the data; raise `ConfigError` if a change is not possible."""
    if unknown := [name for name in changes if "." not in name and name not in DATA]:
        raise ConfigError(f"unknown change {unknown[0]!r}; use a setting, named a.b, or one of {', '.join(DATA)}")
    of_data = {name: changes[name] for name in DATA if changes.get(name, _NEUTRAL[name]) != _NEUTRAL[name]}
    config = changed(config, {name: value for name, value in changes.items() if name not in DATA})
    if config.data.capability_labels and set(of_data) - {"overall_fraction", "flip_scores"}:
        raise ConfigError("with data.capability_labels, the only changes are overall_fraction and flip_scores")
    return config, of_data


def prepared(config: Config, changes: Changes, folder: Path, prompts: int = 96, data: Data | None = None) -> Config:
    """Return the settings of a run under a condition; write its data to `folder` if they are not the settings' files.

    Args:
        prompts: testbed prompts of each task, which are the data without `data.files`.
        data: replaces the data of the settings.
    """
    config, data_changes = separated(config, changes)
    if config.data.files and not data_changes and data is None:
        return config
    data = data or run_data(config, prompts)
    for name, value in data_changes.items():
        data = DATA[name](data, value, config.seed)
    for file, groups in (("train.jsonl", data.train), ("test.jsonl", data.test)):
        rows = (group.model_dump_json(exclude_none=True, exclude={"judge_labels"}) for group in groups)
        write_file(folder / file, "".join(f"{row}\n" for row in rows))
    write_file(folder / "taxonomy.yaml", data.taxonomy.to_yaml())
    files = {"files": [str(folder / "train.jsonl")], "test_files": [str(folder / "test.jsonl")], "format": "auto"}
    files |= {"map": {}, "task": None, "skip_bad": False, "split": "train"}
    files |= {"groups_per_task": None, "test_fraction": _TEST_FRACTION}
    settings = {f"data.{name}": value for name, value in files.items()}
    return changed(config, {**settings, "taxonomy": str(folder / "taxonomy.yaml")})


def run_data(config: Config, prompts: int) -> Data:
    """Return the data of the settings with people's grades alone; a judge's labels join them in the run."""
    if not config.data.files:
        return generated(prompts, config.seed)
    data = load_splits(changed(config, {"data.capability_labels": [], "data.human_labels": True}))
    return Data(list(data.train), list(data.test), data.taxonomy)


def generated(prompts: int, seed: int) -> Data:
    """Return generated groups; training labels are the simulated annotators', test labels gold."""
    groups = testbed.generate(prompts, seed=seed)
    parts: tuple[list[Group], list[Group]] = [], []
    for group, is_test in zip(groups, held_out(groups, _TEST_FRACTION, seed), strict=True):
        parts[is_test].append(group)
    return Data(parts[0], [testbed.gold_group(group) for group in parts[1]], load_taxonomy("paper-en"))


def condition_run(
    config: Config, name: str, changes: Changes, seed: int, prompts: int = 96, data: Data | None = None
) -> Config:
    """Return the settings of one condition and seed, with a folder of its own below `config.output`."""
    folder = Path(config.output) / name / f"seed{seed}"
    named = changed(config, {"output": str(Path(config.output) / name)})
    return prepared(seed_config(named, seed), changes, folder / "data", prompts, data)


# --- label noise ---------------------------------------------------------------------------------------------------


def with_flipped_scores(data: Data, share: float, seed: int) -> Data:
    """Reverse about this share of the ordered pairs of each training group's overall grades."""

    def noisy(group: Group) -> Group:
        grades = moved(group.grades or (), share, f"{seed}/{group.id}")
        return group.model_copy(update={"scores": grades, "ranks": None}) if grades else group

    return replace(data, train=[noisy(group) for group in data.train])


def with_flipped_capabilities(data: Data, share: float, seed: int | str) -> Data:
    """Reverse about this share of the ordered pairs of each training group's grades on each capability."""

    def noisy(group: Group) -> Group:
        grades = {n: moved(g, share, f"{seed}/{group.id}/{n}") for n, g in group.capabilities.items()}
        return group.model_copy(update={"capabilities": grades})

    return replace(data, train=[noisy(group) for group in data.train])


def with_shuffled_capabilities(data: Data, share: float, seed: int) -> Data:
    """Reverse pairs independently of `flip_capabilities`; with a share of 0.5, capability labels mean nothing."""
    return with_flipped_capabilities(data, share, f"shuffled/{seed}")


def moved(grades: Sequence[float | None], share: float, seed_text: str) -> tuple[float | None, ...]:
    """Return the same grades in another order, in which about `share` of the ordered pairs are reversed."""
    if not 0 <= share <= 0.5:
        raise ConfigError(f"a share of reversed pairs must be between 0 and 0.5 (got {share}); 0.25 is 25 %")
    graded = [i for i, grade in enumerate(grades) if grade is not None]
    if len(graded) == 2:
        if chance(seed_text, f"{graded[0]} {graded[1]}") >= share:
            return tuple(grades)
        order = np.array([1, 0])
    elif len(graded) < 2 or not share:
        return tuple(grades)
    else:
        order = _noisy_order(np.array([grades[i] for i in graded], dtype=float), share, seed_text)
    result, known = list(grades), [grades[i] for i in graded]
    for place, source in zip(graded, order, strict=True):
        result[place] = known[source]
    return tuple(result)


def _noisy_order(values: np.ndarray, share: float, seed_text: str) -> np.ndarray:
    """Return, for each response, the response whose grade it gets.

    The number of reversed pairs is drawn so that its mean is `share` of them; the spread of the noise is the one that
    comes nearest to it. At 0.5, the order is a uniform permutation.
    """
    rng = np.random.default_rng(int(chance(seed_text) * (1 << 53)))
    if share == 0.5:
        return rng.permutation(len(values))
    noise, order = rng.standard_normal(len(values)), values.argsort(kind="stable")
    ranks = order.argsort() / np.arange(len(values)).std()
    pairs = [(pair.better, pair.worse) for pair in ordered_pairs(values.tolist())]
    wanted = int(share * len(pairs) + rng.random())
    best, smallest = np.arange(len(values)), wanted
    for spread in _SPREADS if wanted else ():
        sources = order[(ranks + spread * noise).argsort(kind="stable").argsort()]
        given = values[sources]
        distance = abs(sum(given[better] < given[worse] for better, worse in pairs) - wanted)
        if distance < smallest:
            best, smallest = sources, distance
    return best


def chance(seed_text: str, text: str = "") -> float:
    """Return a number in [0, 1) that follows from the texts; its 53 bits are exact, so it never rounds up to 1."""
    return (int.from_bytes(_digest(seed_text, text)[:8], "big") >> 11) / (1 << 53)


def _digest(seed: object, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


# --- fewer labels, other taxonomies --------------------------------------------------------------------------------


def with_fewer_overall(data: Data, share: float, seed: int) -> Data:
    """Keep the overall labels of this share of each task's prompts; groups without any label are left out.

    The scores of the other groups tie, so that none are derived from their capability grades.
    """
    kept = take_prompts(data.train, share, f"{seed}/overall")

    def reduced(group: Group) -> Group:
        ties = (0.0,) * len(group.responses)
        return group.model_copy(update={"scores": ties, "ranks": None, "scores_derived": False})

    whole = [prompt_key(group.prompt) in kept for group in data.train]
    train = [g if keep else reduced(g) for g, keep in zip(data.train, whole, strict=True) if keep or g.capabilities]
    return replace(data, train=train)


def with_fewer_capabilities(data: Data, share: float, seed: int) -> Data:
    """Keep the capability labels of this share of each task's prompts; groups without any label are left out."""
    kept = take_prompts([group for group in data.train if group.capabilities], share, f"{seed}/all")
    reduced = [g if prompt_key(g.prompt) in kept else g.model_copy(update={"capabilities": {}}) for g in data.train]
    return replace(data, train=[group for group in reduced if group.pairs() or group.capabilities])


def take_prompts(groups: Sequence[Group], fraction: float, seed_text: str) -> set[str]:
    """Return the keys of about `fraction` of each task's prompts, at least one; a larger fraction adds to the same."""
    prompts: dict[str, set[str]] = {}
    for group in groups:
        prompts.setdefault(group.task or "", set()).add(prompt_key(group.prompt))
    ordered = [sorted(keys, key=lambda key: _digest(seed_text, key)) for keys in prompts.values()]
    return {key for keys in ordered for key in keys[: max(1, round(fraction * len(keys)))]}


def with_first_capabilities(data: Data, count: int, _: int) -> Data:
    """Keep the first capabilities of each task; 0 leaves no experts."""
    tasks = {
        name: task.model_copy(update={"capabilities": dict(list(task.capabilities.items())[:count])})
        for name, task in data.taxonomy.tasks.items()
    }

    def within(group: Group) -> Group:
        names = tasks[group.task].capabilities if group.task else group.capabilities
        return group.model_copy(update={"capabilities": {n: g for n, g in group.capabilities.items() if n in names}})

    parts = {name: list(map(within, getattr(data, name))) for name in ("train", "test")}
    return Data(**parts, taxonomy=data.taxonomy.model_copy(update={"tasks": tasks}))


def with_merged_tasks(data: Data, _: bool, __: int) -> Data:
    """Put all groups in one task; capabilities of different tasks stay different."""
    capabilities = {f"{t}_{n}": c for t, task in data.taxonomy.tasks.items() for n, c in task.capabilities.items()}
    whole = Task(title=MERGED, description="Prompts of any kind.", capabilities=capabilities)

    def merged(group: Group) -> Group:
        named = {f"{group.task}_{name}": grades for name, grades in group.capabilities.items()}
        return group.model_copy(update={"task": MERGED, "capabilities": named})

    parts = {name: list(map(merged, getattr(data, name))) for name in ("train", "test")}
    return Data(**parts, taxonomy=data.taxonomy.model_copy(update={"tasks": {MERGED: whole}}))


DATA: dict[str, Callable[[Data, Any, int], Data]] = {
    "overall_fraction": with_fewer_overall,
    "capability_fraction": with_fewer_capabilities,
    "max_capabilities": with_first_capabilities,
    "merge_tasks": with_merged_tasks,
    "flip_scores": with_flipped_scores,
    "flip_capabilities": with_flipped_capabilities,
    "shuffle_capabilities": with_shuffled_capabilities,
}
"""Name of a change of the data → the function that makes it, in the order in which they are made."""
_NEUTRAL = dict.fromkeys(DATA, 0) | {"overall_fraction": 1, "capability_fraction": 1, "max_capabilities": None}
