"""Between the commands and the terminal: what is printed, and how the process ends."""

from __future__ import annotations

import gc
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn, TextIO, cast

from cifar_ablate.process import handle_signals, remove_temporary_folders
from cifar_ablate.text_safety import redact, sanitize

if TYPE_CHECKING:
    from rich.console import Console


class Quiet(io.TextIOBase):
    """A stream whose reader may leave (``| head``, a closed terminal); what is written after that is dropped.

    What is shown must not decide what is trained.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):  # the reader is gone, or the stream is closed
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def _give_up(self) -> None:
        with suppress(OSError, ValueError):  # at its end Python writes what it has not written yet
            number = self.stream.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def duration(seconds: float) -> str:
    """0:42, 12:07, 3:05:00; ? for nan."""
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def make_console() -> Console:
    """A console that a closed terminal does not break."""
    from rich.console import Console

    class SafeConsole(Console):
        """Removes control characters, which rich does only in part, and passwords in addresses that errors quote."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(redact(sanitize(one)) if isinstance(one, str) else one for one in objects), **options)

    return SafeConsole(file=cast("IO[str]", Quiet(sys.stdout)), soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """End the process with a message."""
    with suppress(OSError):  # the terminal was closed
        sys.stdout.flush()
        sys.stderr.write(f"{redact(sanitize(message))}\n")
    raise SystemExit(code)


def write(text: str) -> None:
    """Print a document. A full disk ends the process with a message; a closed pipe raises BrokenPipeError."""
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
    """In the block, a signal ends the process at once with exit code 130 and a message.

    Files are written completely or not at all, so only a training has to tidy up, and it sets its own handler. An
    exception raised in the middle of an import could come out as anything.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        with suppress(OSError):
            rest = "; the same command again does what is left" if sys.argv[1:2] == ["run"] else ""
            os.write(2, f"{show_cursor}interrupted{rest}\n".encode())
        remove_temporary_folders()
        os._exit(130)

    sys.excepthook = _tell
    with handle_signals(leave):
        yield


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, without passwords: libraries quote addresses."""
    with suppress(OSError):
        sys.stderr.write(redact(sanitize("".join(traceback.format_exception(kind, error, trace)))))


@contextmanager
def without_collecting() -> Iterator[None]:
    """Switch garbage collection off in the block: it takes a fifth of the time of a large report."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


EVERY = 250
"""Without a terminal, a line is written after this many items."""


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on the error stream: a bar on a terminal, else a line every 250 items."""
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

    with Progress(console=Console(file=cast("IO[str]", Quiet(sys.stderr))), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num: progress.advance(task, num)


@contextmanager
def reporting(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback (what, done, total) for loading data: a bar on a terminal, a line per task elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(24), TaskProgressColumn()]
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
            if not console.is_terminal:
                console.print(f"{what} ...", highlight=False, markup=False)
        progress.update(tasks[what], completed=done, total=total)

    with progress:
        yield report
