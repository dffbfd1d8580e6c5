"""Registries: the names that a study may use, and the functions behind them.

The signature is the schema: the keyword-only parameters of a registered callable are the options that YAML may set,
with their types, limits and defaults. Positional parameters are objects that the caller provides at run time. To add an
entry, put a registered function into any file of the registry's package: the first look-up imports the whole package.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, create_model

from cifar_ablate.errors import MAX_NAME, DuplicateNameError, UnknownNameError

Entry = Callable[..., Any]
F = TypeVar("F", bound=Entry)


class Options(BaseModel):
    """Base class of the option models that are derived from signatures: closed, strict and frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Registry:
    """Entries of one kind, registered by the modules of one package (or by one module).

    Args:
        kind: What messages call an entry, such as "augmentation".
        package: Dotted name of the package whose modules register the entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._checks: dict[str, Callable[..., None]] = {}
        self._fallback: Callable[[str], Entry | None] | None = None
        self._fallback_names: Callable[[], Iterable[str]] = lambda: ()
        self._loaded = False

    def register(self, name: str, *, check: Callable[..., None] | None = None) -> Callable[[F], F]:
        """Register the decorated callable under ``name``; raises DuplicateNameError if the name is taken.

        ``check`` receives the validated options, and raises ValueError with the cure if they contradict each other.
        """

        def decorate(entry: F) -> F:
            if name in self._entries:
                other = self._entries[name]
                raise DuplicateNameError(f"{self.kind} {name!r} is already {other.__module__}.{other.__qualname__}")
            self._entries[name] = entry
            if check is not None:
                self._checks[name] = check
            return entry

        return decorate

    def pass_through(self, find: Callable[[str], Entry | None], names: Callable[[], Iterable[str]]) -> None:
        """Let ``find`` resolve names that are not registered (None: unknown); ``names`` is used for suggestions."""
        self._fallback, self._fallback_names = find, names

    def names(self) -> list[str]:
        """All registered names, sorted, without pass-through names."""
        self._load()
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """The callable registered as ``name``; raises UnknownNameError with the most similar known name."""
        self._load()
        if name in self._entries:
            return self._entries[name]
        found = self._fallback(name) if self._fallback else None
        if found is None:
            raise UnknownNameError(self.kind, name, [*sorted(self._entries), *self._near(name)])
        return found

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - registries live as long as the program
    def _near(self, name: str) -> tuple[str, ...]:
        """Pass-through names similar to ``name``; cached, since comparing thousands of names takes 40 ms."""
        names = self._fallback_names() if len(name) <= MAX_NAME else ()
        begins = name[:1].lower(), name.rpartition("/")[2][:1].lower()
        return tuple(get_close_matches(name, [one for one in names if (one[:1], one.rpartition("/")[2][:1]) == begins]))

    def options(self, name: str) -> type[Options]:
        """The option model of ``name``, with one field per keyword-only parameter."""
        return options_of(self.get(name))

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise ValueError, with the options and the cure, if options are valid alone but not together."""
        if name in self._checks:
            self._checks[name](**options)

    def bind(self, name: str, options: Mapping[str, Any]) -> Entry:
        """The callable with its YAML options filled in; the caller passes the remaining arguments."""
        return functools.partial(self.get(name), **options)

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring, for help texts and the JSON schema."""
        return (inspect.getdoc(self.get(name)) or "").split("\n", 1)[0]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True  # set last: a module that fails to import fails again at the next look-up


@functools.cache
def options_of(entry: Entry) -> type[Options]:
    """The pydantic model of the keyword-only parameters of ``entry``."""
    hints = typing.get_type_hints(entry, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(entry).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return create_model(f"{getattr(entry, '__name__', 'entry')}_options", __base__=Options, **fields)


DATA = Registry("data set", "cifar_ablate.data")
MODELS = Registry("model", "cifar_ablate.models")
AUGMENTATIONS = Registry("augmentation", "cifar_ablate.augment")
OPTIMIZERS = Registry("optimizer", "cifar_ablate.training.optim")
SCHEDULES = Registry("schedule", "cifar_ablate.training.schedules")
SAMPLERS = Registry("sampler", "cifar_ablate.tuning.algorithms")
PRUNERS = Registry("pruner", "cifar_ablate.tuning.algorithms")
EXECUTORS = Registry("executor", "cifar_ablate.runner.executors")
FORMATS = Registry("report format", "cifar_ablate.report.formats")
