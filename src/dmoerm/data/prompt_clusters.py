"""Group prompts by their words, to propose tasks for data that names none.

    prompts → TF-IDF of their words → 24 directions (latent semantic analysis) → k-means, k by the silhouette

Shapes: P prompts, W words, D directions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from ..names import ONE_TASK

MAX_CLUSTERS = 8
MIN_SILHOUETTE = 0.2
"""Below it, the prompts are one cluster: splitting costs pairs per task."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\d_\u3040-\uffff]{3,}")
_FIRST_WORDS = 300  # of a prompt
_VOCABULARY, _DIRECTIONS = 4000, 24
_SAMPLE, _PAIRWISE, _STARTS = 5000, 1500, 4
_NEAR = 0.9  # the silhouette rises slowly with the number of clusters
_COMMON = frozenset(
    _WORD.findall(
        "about after also and any are because been but can could did does for from get had has have here him his how "
        "into its just like make more not now one only other our out please some than that the their them then there "
        "these they this use was were what when where which while who why will with would you your user"
    )
)


def cluster_prompts(prompts: Sequence[str], min_size: int, count: int | None = None) -> list[str]:
    """Return each prompt's cluster, named by its telling words; `ONE_TASK` for all if they do not fall into several.

    Args:
        prompts: distinct texts.
        min_size: the fewest prompts of a cluster.
        count: the number of clusters; None: that with the highest silhouette, up to `MAX_CLUSTERS`.
    """
    words = [[w for w in _WORD.findall(text.lower())[:_FIRST_WORDS] if w not in _COMMON] for text in prompts]
    spread = Counter(word for row in words for word in set(row))
    kept = [w for w, n in spread.most_common(_VOCABULARY) if 1 < n <= len(prompts) / 2]
    if len(kept) < 2 * _DIRECTIONS or len(prompts) < 2 * max(min_size, _DIRECTIONS):
        return [ONE_TASK] * len(prompts)
    index = {word: i for i, word in enumerate(kept)}
    cells = [(row, index[word]) for row, content in enumerate(words) for word in content if word in index]
    counts = csr_matrix((np.ones(len(cells)), np.array(cells).T), (len(prompts), len(kept)))  # (P, W)
    labels = _clusters(_directions(counts), min_size, count)
    names = _names(counts, kept, labels)
    return [names[label] for label in labels]


def _directions(counts: Any) -> np.ndarray:
    """Return the prompts' coordinates along the main directions of their TF-IDF, rows of length 1 or 0, (P, D)."""
    weighted = counts.copy()
    weighted.data = (1 + np.log(counts.data)) * np.log(counts.shape[0] / _spread(counts))[counts.indices]
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)))
    left, values, _ = svds(
        weighted.multiply(1 / np.maximum(lengths, 1e-12)).tocsr(), k=_DIRECTIONS, v0=np.ones(min(counts.shape))
    )
    points = left * values
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _spread(counts: Any) -> np.ndarray:
    """Return the number of rows in which each word is, (W,)."""
    return np.asarray((counts > 0).sum(0)).ravel()


def _clusters(points: np.ndarray, min_size: int, count: int | None) -> np.ndarray:
    """Return the cluster of each point, (P,): of the fewest clusters whose silhouette is near the highest."""
    random = np.random.default_rng(0)
    sample = points[random.permutation(len(points))[:_SAMPLE]]
    large: list[tuple[float, np.ndarray]] = []
    for k in range(2, MAX_CLUSTERS + 1) if count is None else [count]:
        starts = [kmeans2(sample, k, minit="++", rng=random)[0] for _ in range(_STARTS)]
        tried = [(_silhouette(sample[:_PAIRWISE], vq(sample[:_PAIRWISE], centers)[0]), centers) for centers in starts]
        worth, centers = max(tried, key=lambda each: each[0])
        labels = vq(points, centers)[0]
        if np.bincount(labels).min() >= min_size:
            large.append((worth, labels))
    highest = max((worth for worth, _ in large), default=-1.0)
    if not large or (count is None and highest < MIN_SILHOUETTE):
        return np.zeros(len(points), dtype=int)
    return next(labels for worth, labels in large if worth >= min(_NEAR * highest, highest))


def _silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of (b − a) / max(a, b): distances to the own cluster (a) and to the nearest other one (b)."""
    distances = 1 - points @ points.T
    present = np.unique(labels)
    if len(present) < 2:
        return -1.0
    member = labels[:, None] == present  # (P, k)
    mean = (distances @ member) / np.maximum(member.sum(0) - member, 1)
    within, nearest = mean[member], np.where(member, np.inf, mean).min(1)
    return float(np.mean((nearest - within) / np.maximum(np.maximum(within, nearest), 1e-12)))


def _names(counts: Any, kept: Sequence[str], labels: np.ndarray) -> list[str]:
    """Name each cluster by the two words that tell it most from all prompts; different clusters, different words."""
    if not labels.any():
        return [ONE_TASK]
    overall = _spread(counts) / counts.shape[0]
    names, used = list[str](), set[str]()
    for label in range(labels.max() + 1):
        share = _spread(counts[labels == label]) / (labels == label).sum()
        telling = share * np.log(np.maximum(share, 1e-9) / overall)
        words = [word for i in np.argsort(-telling) if (word := kept[int(i)]) not in used][:2]
        used.update(words)
        names.append("_".join(words))
    return names
