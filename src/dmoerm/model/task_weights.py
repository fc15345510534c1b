"""Which tasks' branches and experts are in memory, if a model reads them when a task is first scored."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch


class TaskWeights:
    """Read a task's weights when it is scored, and hold those of the tasks that were scored last.

    Args:
        read: reads a task's weights.
        release: frees the memory of a task's weights.
        limit: maximum number of tasks that are held, from 1 on.
    """

    def __init__(self, read: Callable[[str], None], release: Callable[[str], None], limit: int) -> None:
        self._read, self._release, self.limit = read, release, limit
        self._held: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held(self) -> list[str]:
        """The tasks in memory, the least recently used first."""
        return list(self._held)

    def require(self, task: str) -> None:
        """Have a task's weights in memory; the least recently used ones are evicted first.

        Raises:
            CheckpointError: a file is missing, damaged, or changed since the model was loaded.
        """
        with self._lock, torch.inference_mode(False):
            if task not in self._held:
                while len(self._held) >= self.limit:
                    self._release(self._held.popitem(last=False)[0])
                self._read(task)
            self._held[task] = None
            self._held.move_to_end(task)
