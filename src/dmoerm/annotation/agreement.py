"""Agreement between annotators: how often two of them gave the same verdict, and Cohen's κ."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..labeling.quality import kappa
from ..labels import OVERALL, PROBABILITIES
from .store import AnnotationStore

ALL_CAPABILITIES = "all capabilities"
_VERDICTS = list(PROBABILITIES)


@dataclass(frozen=True)
class AnnotatorAgreement:
    """The agreement of two annotators on one question.

    Attributes:
        first, second: the annotators.
        capability: `overall`, the name of a capability, or `all capabilities`.
        pairs: the number of verdicts of both, ties included, skipped questions left out.
        agreement: the share of them that are the same.
        kappa: Cohen's κ over first better, second better and tie; None if both always gave the same one.
    """

    first: str
    second: str
    capability: str
    pairs: int
    agreement: float
    kappa: float | None


def annotator_agreement(store: AnnotationStore, annotator: str | None = None) -> list[AnnotatorAgreement]:
    """Return an entry per two annotators and question, `overall` and `all capabilities` first.

    Args:
        annotator: return only the entries of this annotator with others; None: all entries.
    """
    tables: dict[tuple[str, str, str], NDArray[np.float64]] = defaultdict(lambda: np.zeros((3, 3)))
    for first, second, capability, verdict, other_verdict, count in store.compared(annotator):
        cell = _VERDICTS.index(verdict), _VERDICTS.index(other_verdict)
        tables[first, second, capability][cell] += count
        if capability != OVERALL:
            tables[first, second, ALL_CAPABILITIES][cell] += count
    return [_entry(*key, tables[key]) for key in sorted(tables, key=_order)]


def _order(key: tuple[str, str, str]) -> tuple[str, str, bool, bool, str]:
    return key[0], key[1], key[2] != OVERALL, key[2] != ALL_CAPABILITIES, key[2]


def _entry(first: str, second: str, capability: str, table: NDArray[np.float64]) -> AnnotatorAgreement:
    value = float(kappa(table))
    share = float(np.trace(table) / table.sum())
    return AnnotatorAgreement(first, second, capability, int(table.sum()), share, value if np.isfinite(value) else None)
