"""For commands under libfaketime: time.sleep by select.

libfaketime 0.9.10 refuses what time.sleep asks for (EINVAL) where it leaves the monotonic clock alone: it takes the
deadline, which is one of that clock, for one of the clock on the wall.
"""

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep
