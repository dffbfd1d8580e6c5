"""The package's exceptions, as one tree; each message ends with what to do next.

User mistakes and failures of the machine raise one of these; programmer mistakes are assertions. Only ``cli.py`` turns
an exception into an exit code.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

_NEAR = 0.6
"""Minimum similarity (0 to 1) at which a message suggests a known name for an unknown one."""
MAX_PROBLEMS = 50
"""Maximum number of problems that one message lists."""
MAX_NAME = 100
"""Maximum length of a name that is compared with others, and shown in full."""


class AblateError(Exception):
    """Base class of all errors that a user can act on; ``str(error)`` ends with the cure."""

    exit_code = 1


class UnknownNameError(AblateError, KeyError):
    """A name that is not registered."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {short(name)!r}{suggest(name, self.known)}")

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class DuplicateNameError(AblateError, ValueError):
    """A name that is registered twice."""


class UsageError(AblateError, ValueError):
    """Invalid options of a command."""

    exit_code = 2


@dataclass(frozen=True)
class Location:
    """Where a value was written: a file with line and column (counted from 1), or a command-line option."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One mistake in a study: its location, its dotted path in that file, and a message with the cure."""

    location: Location
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.path}: {self.message}" if self.path else f"{self.location}: {self.message}"


class StudyError(AblateError, ValueError):
    """An invalid study, profile or override; ``problems`` holds every problem found, in file order."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_PROBLEMS]]
        if left := len(self.problems) - len(lines):
            lines.append(f"and {left:,} more; fix these first")
        super().__init__("\n".join(lines))


class DataError(AblateError, ValueError):
    """Images that are missing, damaged, unsafe or of an unsupported shape."""


class DeviceError(AblateError, RuntimeError):
    """A device that is missing, or too small for the recipe."""


class RecordError(AblateError, LookupError):
    """A record (MLflow experiment, run folder, exported record) that is missing or unreadable."""


class TrackingError(AblateError, ConnectionError):
    """A tracking server or database that does not answer, or refuses a request."""


class TakenError(AblateError, RuntimeError):
    """A run that another process is training or has trained."""


class BusyError(AblateError, RuntimeError):
    """A run that another process is finishing; try again in a moment."""


class OutputError(AblateError, OSError):
    """A file or folder that cannot be written."""

    def __init__(self, path: Path, reason: str, cure: str) -> None:
        super().__init__(f"cannot write {path}: {reason}; {cure}")
        self.parts = (path, reason, cure)

    def __reduce__(self) -> tuple[type[OutputError], tuple[Path, str, str]]:  # pickled between processes
        return OutputError, self.parts

    def __str__(self) -> str:
        return str(self.args[0])


CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, or run where there is more"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "run where you may write"),
    errno.ENOENT: "its folder was removed; the same command makes it again",
    errno.ENOTDIR: "a file is in the place of a folder; move it away, or run elsewhere",
}
"""Cures for a failed write, by error number."""


def not_written(path: Path, error: OSError) -> OutputError:
    """The OutputError for an OSError that was raised while writing ``path``."""
    return OutputError(path, str(error.strerror or error), CURES.get(error.errno or 0, "check that disk"))


def require_extra(extra: str, *modules: str) -> None:
    """Raise UsageError, with the pip command, if a module of an optional dependency is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UsageError(
            f"this needs {', '.join(missing)}, which is not installed; install it with: "
            f"pip install 'cifar-ablate[{extra}]'"
        )


def suggest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """The end of a message about an unknown name: the most similar known one, else up to ``limit`` known ones.

    Case is ignored. Names keep the given order, and the first of equally similar ones wins; a set is sorted.
    """
    names = tuple(sorted(known)) if isinstance(known, set | frozenset) else tuple(dict.fromkeys(known))
    return _suggestion(name, names, limit)


def short(name: str) -> str:
    """A name as messages show it: its beginning if it is longer than ``MAX_NAME``."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


@functools.lru_cache(maxsize=4096)  # a thousand arms may share one mistake in the recipe
def _suggestion(name: str, names: tuple[str, ...], limit: int) -> str:
    matcher = SequenceMatcher(None, b=name.casefold(), autojunk=False)

    def likeness(other: str) -> float:
        matcher.set_seq1(other.casefold())
        return matcher.ratio() if matcher.real_quick_ratio() >= _NEAR and matcher.quick_ratio() >= _NEAR else 0.0

    comparable = [other for other in names if len(other) <= MAX_NAME] if len(name) <= MAX_NAME else []
    nearest = max(comparable, key=likeness, default="")
    if nearest and likeness(nearest) >= _NEAR:
        return f"; did you mean {nearest!r}?"
    if not names:
        return ""
    listed = (short(other) if other.isprintable() else repr(short(other)) for other in names[:limit])
    return f"; known: {', '.join(listed)}" + (", ..." if len(names) > limit else "")
