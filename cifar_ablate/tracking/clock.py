"""The clock that machines share: that of the tracking server, where there is one.

Claims are compared by their times, and clocks of machines differ: one that is an hour off takes every other machine for
dead. A server says its time with each answer (HTTP's ``Date``, in whole seconds), so a machine can tell that its own
clock is wrong. One that is right to a few seconds is believed: it tells the order of two claims, as ``Date`` cannot.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

RIGHT_SECONDS = 5.0
"""A clock that differs from the server's by less is taken for right."""
ASK_SECONDS = 600.0
"""So long an answer is good for, unless this machine's clock is set."""
RETRY_SECONDS = 30.0
"""After so long a server that did not answer is asked again."""
PATIENCE_SECONDS = 3.0
SET_SECONDS = 1.0
"""By so much the clock on the wall must leave the steady one before it counts as set."""


def steady() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the machine sleeps.

    On Linux ``time.monotonic`` stands still meanwhile: a sleep would look like a clock that was set.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass
class SharedClock:
    """Seconds since 1970 by the server's clock; where there is none, or it does not say, by this machine's."""

    uri: str = ""
    """Of the store that was asked last."""
    ahead: float = 0.0
    """The server's clock minus this machine's."""
    next: float = 0.0
    """When it is asked again, by the steady clock."""
    apart: float = 0.0
    """The clock on the wall minus the steady one when it was asked."""
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """The time; asks the server where that is due."""
        with self.one_at_a_time:
            uri, wall, since_start = _server(), time.time(), steady()
            was_set = abs(wall - since_start - self.apart) > SET_SECONDS
            if uri != self.uri or (uri and (was_set or since_start > self.next)):
                ahead = _server_ahead(uri) if uri else 0.0
                if ahead is not None:
                    self.ahead = ahead
                elif uri != self.uri:
                    self.ahead = 0.0
                elif was_set:  # what was right of it is right again
                    self.ahead -= wall - since_start - self.apart
                since_start = steady()
                self.uri, self.next = uri, since_start + (RETRY_SECONDS if ahead is None else ASK_SECONDS)
                self.apart = time.time() - since_start
            return time.time() + self.ahead


def _server() -> str:
    """The address of the tracking server; empty where the store is a database."""
    import mlflow

    uri: str = mlflow.get_tracking_uri()
    return uri if uri.startswith(("http://", "https://")) else ""


def _server_ahead(uri: str) -> float | None:
    """Seconds that a server's clock is ahead of this machine's; 0 where that is little, None where it does not say."""
    from mlflow.utils import credentials, rest_utils

    ask: Any = rest_utils.http_request  # without types
    who: Any = credentials.get_default_host_creds
    with suppress(Exception):  # away, or it says no time
        answer = ask(
            who(uri),
            "/health",
            "GET",
            timeout=PATIENCE_SECONDS,
            max_retries=0,
            raise_on_status=False,
        )
        ahead = parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5 - time.time()
        return ahead if abs(ahead) > RIGHT_SECONDS else 0.0
    return None


_clock = SharedClock()


def now() -> float:
    """The time by the clock that machines share, in seconds since 1970."""
    return _clock.now()
