"""A value for a tuned field, asked of Optuna, as the field is trained and written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cifar_ablate.spec.schema import Choices, Parameter, Range, label_of

if TYPE_CHECKING:
    from optuna.trial import Trial

DIGITS = 4
"""Significant digits of a tuned number: enough for any learning rate, and it can be read."""


def suggest(trial: Trial, parameter: Parameter, *, exactly: bool = False) -> Any:
    """A value for a field, as it is trained: numbers with four digits, choices as the study writes them."""
    entry = parameter.entry
    if isinstance(entry, Choices):
        options = [as_choice(parameter, value) for value in entry.choices]
        return entry.choices[options.index(trial.suggest_categorical(parameter.name, options))]
    if parameter.kind == "int":
        return trial.suggest_int(
            parameter.name, int(entry.low), int(entry.high), log=entry.log, step=int(entry.step or 1)
        )
    value = trial.suggest_float(parameter.name, entry.low, entry.high, log=entry.log, step=entry.step)
    return value if exactly else readable(value, entry)


def readable(value: float, entry: Range) -> float:
    """The number with four significant digits, within its range."""
    rounded = float(f"{value:.{DIGITS}g}") if entry.step is None else float(f"{value:.12g}")
    return min(max(rounded, float(entry.low)), float(entry.high))


def as_choice(parameter: Parameter, value: Any) -> Any:
    """As Optuna keeps it: plain values as they are, mappings as text."""
    return label_of(value) if isinstance(parameter.entry, Choices) and isinstance(value, dict) else value
