"""Between the commands and the terminal: what is printed, and how the process ends."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from cifar_ablate.signals import stopping_on
from cifar_ablate.temporary import remove_all
from cifar_ablate.text_safety import redact, sanitize

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    """A console that a closed terminal does not break."""
    from rich.console import Console

    from cifar_ablate.terminal import Quiet

    class Harmless(Console):
        """What is printed may name what others wrote, and rich takes only some control characters out.

        It may quote a server's error, too, and with it the address that was asked.
        """

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(redact(sanitize(one)) if isinstance(one, str) else one for one in objects), **options)

    return Harmless(file=cast("IO[str]", Quiet(sys.stdout)), soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """End the process with a sentence."""
    with suppress(OSError):  # a terminal that was closed
        sys.stdout.flush()
        sys.stderr.write(f"{redact(sanitize(message))}\n")
    raise SystemExit(code)


def write(text: str) -> None:
    """Print a whole document; a full disk is one sentence, and a reader that has seen enough is none."""
    try:
        sys.stdout.write(sanitize(text))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  or Python tries again at its end
        fail(f"cannot write the report: {error.strerror}; write it where there is room", 1)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """A signal ends the process with 130 and a sentence, wherever it is; only a training has something to tidy up.

    Files are written whole or not at all, and an exception in the middle of an import comes out as anything.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        with suppress(OSError):
            rest = "; the same command again does what is left" if sys.argv[1:2] == ["run"] else ""
            os.write(2, f"{show_cursor}interrupted{rest}\n".encode())
        remove_all()
        os._exit(130)

    sys.excepthook = _tell
    with stopping_on(leave):
        yield


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of what is ours to mend all that Python tells, without passwords: libraries quote the address they got."""
    with suppress(OSError):
        sys.stderr.write(redact(sanitize("".join(traceback.format_exception(kind, error, trace)))))


@contextmanager
def without_collecting() -> Iterator[None]:
    """No garbage is looked for in the block: a fifth of the time of a large report, of which nothing outlives it."""
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


EVERY = 250
"""Lines of a count that is written where there is no terminal."""


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count up on the error stream, ``total`` in all: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        done = 0

        def say(num: int) -> None:
            nonlocal done
            done += num
            if total > EVERY and (done % EVERY == 0 or done == total):
                with suppress(OSError):
                    sys.stderr.write(f"{done:,} of {total:,} {what}\n")

        yield say
        return
    from rich.console import Console
    from rich.progress import Progress

    from cifar_ablate.terminal import Quiet

    with Progress(console=Console(file=cast("IO[str]", Quiet(sys.stderr))), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num: progress.advance(task, num)
