"""Every mistake a user or their machine can make, as one tree; each message says what to do next.

Programmer mistakes are assertions and never pass through here. Only ``cli.py`` turns an error into an exit code.
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
"""Likeness (0 to 1) from which a known name is taken for a typing mistake of another."""
MAX_TOLD = 50
"""Problems of one study that are told at once; whoever has more has one mistake many times."""
MAX_NAME = 100
"""Characters up to which a name is compared with others, and shown whole."""


class AblateError(Exception):
    """Base of all errors that a user can act on; ``str(error)`` is one paragraph that ends with the cure."""

    exit_code = 1


class UnknownNameError(AblateError, KeyError):
    """A name that no registry entry has."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} {short(name)!r}{suggest(name, self.known)}")

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class DuplicateNameError(AblateError, ValueError):
    """Two entries of one registry claim the same name."""


class UsageError(AblateError, ValueError):
    """Options of a command that cannot be carried out as given."""

    exit_code = 2


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file with line and column (from 1), or a command-line option."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a study: where it stands, its dotted path in that file, and what to do."""

    origin: Origin
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.path}: {self.message}" if self.path else f"{self.origin}: {self.message}"


class StudyError(AblateError, ValueError):
    """A study, profile or override that cannot be used; carries every problem found, in file order."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        told = [str(problem) for problem in self.problems[:MAX_TOLD]]
        left = len(self.problems) - len(told)
        super().__init__("\n".join(told + ([f"and {left:,} more; mend these first"] if left else [])))


class DataError(AblateError, ValueError):
    """Images that are missing, damaged, hostile or of an unusable shape."""


class DeviceError(AblateError, RuntimeError):
    """A device that is not there, or too small for the recipe."""


class RecordError(AblateError, LookupError):
    """A record (MLflow experiment, run folder, exported record) that is missing or not readable."""


class TrackingError(AblateError, ConnectionError):
    """A tracking server or database that does not answer or refuses."""


class TakenError(AblateError, RuntimeError):
    """A run that another process trains, or has trained."""


class BusyError(AblateError, RuntimeError):
    """A run that another process is just done with; to be asked for again in a moment."""


class OutputError(AblateError, OSError):
    """A place that cannot be written."""

    def __init__(self, path: Path, reason: str, cure: str) -> None:
        super().__init__(f"cannot write {path}: {reason}; {cure}")
        self.parts = (path, reason, cure)

    def __reduce__(self) -> tuple[type[OutputError], tuple[Path, str, str]]:  # it travels between processes
        return OutputError, self.parts

    def __str__(self) -> str:
        return str(self.args[0])


CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, or run where there is more"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "run where you may write"),
    errno.ENOENT: "its folder was removed; the same command makes it again",
    errno.ENOTDIR: "a file is in the place of a folder; move it away, or run elsewhere",
}
"""What helps where a place cannot be written, by error number."""


def not_written(path: Path, error: OSError) -> OutputError:
    """The error for a place that cannot be written, with the cure."""
    return OutputError(path, str(error.strerror or error), CURES.get(error.errno or 0, "look after that disk"))


def require_extra(extra: str, *modules: str) -> None:
    """Raise UsageError, with the pip command, if a module of an optional dependency is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UsageError(
            f"this needs {', '.join(missing)}, which is not installed; install it with: "
            f"pip install 'cifar-ablate[{extra}]'"
        )


def suggest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """A tail for a message about an unknown name: the nearest known one, else the known ones (at most ``limit``).

    Names are listed in the given order, and of two equally near ones the first is meant; a set has no order, so it is
    sorted. Upper and lower case count as equal.
    """
    names = tuple(sorted(known)) if isinstance(known, set | frozenset) else tuple(dict.fromkeys(known))
    return _suggestion(name, names, limit)


def short(name: str) -> str:
    """A name as messages show it: its beginning, where it is too long to be one."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


@functools.lru_cache(maxsize=4096)  # the same mistake in a recipe that a thousand arms share
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
