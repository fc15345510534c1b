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


def cluster_prompts(prompts: Sequence[str], min_size: int, count: int | None = None, seed: int = 0) -> list[str]:
    """Return each prompt's cluster, named by its telling words; `ONE_TASK` for all if they do not fall into several.

    Args:
        prompts: distinct texts.
        min_size: the fewest prompts of a cluster.
        count: the number of clusters; None: that with the highest silhouette, up to `MAX_CLUSTERS`.
        seed: of the starts of k-means.
    """
    words = [[w for w in _WORD.findall(text.lower())[:_FIRST_WORDS] if w not in _COMMON] for text in prompts]
    spread = Counter(word for row in words for word in set(row))
    kept = [w for w, n in spread.most_common(_VOCABULARY) if 1 < n <= len(prompts) / 2]
    if len(kept) < 2 * _DIRECTIONS or len(prompts) < 2 * max(min_size, _DIRECTIONS):
        return [ONE_TASK] * len(prompts)
    counts = _counts(words, kept)
    labels = _clusters(_directions(counts), min_size, count, seed)
    names = _names(counts, kept, labels)
    return [names[label] for label in labels]


def _counts(words: Sequence[Sequence[str]], kept: Sequence[str]) -> csr_matrix:
    """Return how often each word is in each prompt, (P, W)."""
    index = {word: i for i, word in enumerate(kept)}
    cells = [(row, index[word]) for row, content in enumerate(words) for word in content if word in index]
    rows, columns = np.array(cells).T
    return csr_matrix((np.ones(len(cells)), (rows, columns)), (len(words), len(kept)))


def _directions(counts: csr_matrix) -> np.ndarray:
    """Return the prompts' coordinates along the main directions of their TF-IDF, rows of length 1 or 0, (P, D)."""
    weighted = counts.copy()
    spread: Any = counts > 0
    rarity = np.log((len(counts.indptr) - 1) / np.asarray(spread.sum(0)).ravel())
    weighted.data = (1 + np.log(weighted.data)) * rarity[weighted.indices]
    scaled = weighted.multiply(1 / _lengths(np.sqrt(weighted.multiply(weighted).sum(1)))).tocsr()
    left, values, _ = svds(scaled, k=_DIRECTIONS, v0=np.ones(min(scaled.shape)))
    points = left * values
    return points / _lengths(np.linalg.norm(points, axis=1, keepdims=True))


def _lengths(lengths: np.ndarray) -> np.ndarray:
    return np.maximum(np.asarray(lengths), 1e-12)


def _clusters(points: np.ndarray, min_size: int, count: int | None, seed: int) -> np.ndarray:
    """Return the cluster of each point, (P,): of the fewest clusters whose silhouette is near the highest."""
    random = np.random.default_rng(seed)
    sample = points[random.permutation(len(points))[:_SAMPLE]]
    tried = [_k_means(points, sample, k, random) for k in (range(2, MAX_CLUSTERS + 1) if count is None else [count])]
    large = [(worth, labels) for worth, labels in tried if np.bincount(labels).min() >= min_size]
    highest = max((worth for worth, _ in large), default=-1.0)
    if not large or (count is None and highest < MIN_SILHOUETTE):
        return np.zeros(len(points), dtype=int)
    return next(labels for worth, labels in large if worth >= _NEAR * highest or worth == highest)


def _k_means(points: np.ndarray, sample: np.ndarray, k: int, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return the best of several starts: its silhouette and the points' clusters (P,)."""
    centers = [kmeans2(sample, k, minit="++", rng=random)[0] for _ in range(_STARTS)]
    return max(
        ((_silhouette(sample[:_PAIRWISE], vq(sample[:_PAIRWISE], c)[0]), vq(points, c)[0]) for c in centers),
        key=lambda tried: tried[0],
    )


def _silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of (b − a) / max(a, b): distances to the own cluster (a) and to the nearest other one (b)."""
    distances = 1 - points @ points.T
    present = np.unique(labels)
    if len(present) < 2:
        return -1.0
    member = labels[:, None] == present  # (P, k)
    sizes = member.sum(0)
    mean = (distances @ member) / np.maximum(sizes - member, 1)
    within = mean[member]
    nearest = np.where(member, np.inf, mean).min(1)
    return float(np.mean((nearest - within) / np.maximum(np.maximum(within, nearest), 1e-12)))


def _names(counts: csr_matrix, kept: Sequence[str], labels: np.ndarray) -> list[str]:
    """Name each cluster by the two words that tell it most from all prompts; different clusters, different words."""
    if not labels.any():
        return [ONE_TASK]
    spread: Any = counts > 0
    present = spread.astype(float)
    overall = np.asarray(present.mean(0)).ravel()
    names, used = list[str](), set[str]()
    for label in range(labels.max() + 1):
        share = np.asarray(present[labels == label].mean(0)).ravel()
        telling = share * np.log(np.maximum(share, 1e-9) / overall)
        ordered = [kept[int(i)] for i in np.argsort(-telling)]
        words = [word for word in ordered if word not in used][:2]
        used.update(words)
        names.append("_".join(words))
    return names
