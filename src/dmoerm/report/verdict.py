"""The first screen: what the numbers say about the mixture, in words, for a reader who knows nothing of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..evaluation.results import MEAN, METHODS, Comparison, Difference, Results
from ..names import RESERVED_CAPABILITIES

_FILES = 3  # that are named
_WORDS = {"Loss": "less accurate than", "Gain": "more accurate than", "Level": "level with"}


def origin(results: Results | Comparison) -> str:
    """Return folder, data and date, as far as they are known."""
    rest = len(results.data) - _FILES
    files = [*results.data[:_FILES], *([f"{rest} more"] if rest > 0 else [])]
    parts = {"Folder": results.folder, "Data": _listed(files), "Date": results.date}
    return " · ".join(f"{name}: {value}" for name, value in parts.items() if value)


def headline(results: Results | Comparison) -> str:
    """Return whether the mixture is more accurate than the simpler models that could be used in its place."""
    kinds: dict[str, list[str]] = {}
    oracles = ""
    for method, difference in _differences(results):
        if not _is_oracle(results.methods.get(method, "")):
            kinds.setdefault(_kind(difference), []).append(_short(method))
        elif _kind(difference) == "Loss" and "Loss" not in kinds:
            oracles = " A simpler model that knows the kind of each prompt is more accurate."
    if not kinds:
        return "It is not known whether the mixture pays: it was not compared with a simpler model."
    pays = "pays" if "Gain" in kinds else "does not clearly pay"
    pays = "does not pay" if "Loss" in kinds else f"{pays} in part" if len(kinds) > 1 else pays
    than = "; ".join(f"{_WORDS[kind]} {_listed(names)}" for kind, names in kinds.items())
    return f"{'So far, the' if _missing(results) else 'The'} mixture {pays} on this data: it is {than}.{oracles}"


def findings(results: Results | Comparison) -> Iterator[tuple[str, str, str]]:
    """Yield a label, a text and its explanation: each difference, the highest loss first, then each other fact."""
    for method, d in _differences(results):
        points = f"{100 * d.value:+z.1f} points ({100 * d.low:+z.1f} to {100 * d.high:+z.1f})"
        yield _kind(d), f"{points} against {method}", results.methods.get(method, "")
    if missing := _missing(results):
        config = f"{results.config['output']}/config.yaml" if "output" in results.config else "CONFIG"
        command = "the same command without --method" if isinstance(results, Comparison) else f"dmoerm compare {config}"
        yield "Not compared", _listed(missing), f"{_listed([*map(_short, missing)])}. To measure all methods: {command}"
    if mean := results.accuracy["dmoerm"].get(MEAN):
        prompts = "held-out prompts" if isinstance(results, Comparison) else results.overlap.description
        text = f"{mean.value:.1%} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
        detail = (
            "of the pairs of responses are in the order of their labels (mean over the kinds of prompts; chance: 50%)"
        )
        yield "Accuracy", text, f"{detail}, on {mean.prompts} {prompts}"
    if (router := results.router).accuracy is not None:
        share, seeds = 1 - (router.fallback or 0), " of all seeds" if isinstance(results, Comparison) else ""
        others = "The general model scores the others. " if share < 1 else ""
        detail = f"{others}Its most probable kind is right for {router.accuracy:.1%}."
        yield "Router", f"recognizes {share:.1%} of {router.prompts} prompts{seeds}", detail
    experts = {
        f"{task}: {name}": weight
        for task, row in results.weights.items()
        for name, weight in row.items()
        if name not in RESERVED_CAPABILITIES
    }
    idle = [name for name, weight in experts.items() if round(weight, 2) == 0]
    none = "there are none, since no capability is graded" if results.weights else "their weights are not known"
    text = f"{len(idle)} of {len(experts)} have no weight in the reward" if experts else none
    yield "Experts", text, ", ".join(idle)
    yield from (("Note", "", remark) for remark in results.remarks)


def _differences(results: Results | Comparison) -> list[tuple[str, Difference]]:
    """Return method → mean accuracy of dmoerm minus the method's, the lowest first and oracles last."""
    means = {pair.removeprefix("dmoerm - "): row[MEAN] for pair, row in results.paired.items() if MEAN in row}
    return sorted(means.items(), key=lambda item: (_is_oracle(results.methods.get(item[0], "")), item[1].value))


def _missing(results: Results | Comparison) -> list[str]:
    """Return the product's deployable methods that were not measured."""
    known = {"dmoerm", *(method for method, _ in _differences(results))}
    return [method for method, text in METHODS.items() if method not in known and not _is_oracle(text)]


def _is_oracle(description: str) -> bool:
    return description.startswith("oracle")


def _kind(difference: Difference) -> str:
    return "Gain" if difference.low > 0 else "Loss" if difference.high < 0 else "Level"


def _short(method: str) -> str:
    return re.split("[:;]", METHODS.get(method, method))[0]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
