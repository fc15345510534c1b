"""Set the clock off by $CHAOS_CLOCK seconds, with jumps of a day in both directions every tenth of a second."""

import os
import time

_time, _monotonic = time.time, time.monotonic
_OFFSET, _JUMP = float(os.environ["CHAOS_CLOCK"]), 86_400


def _jumping() -> float:
    return _time() + _OFFSET + (_JUMP if int(_monotonic() * 10) % 2 else -_JUMP)


time.time = _jumping
