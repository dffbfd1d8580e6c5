"""Which arm the verdicts name best: nothing here looks at a run more closely than the report does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from cifar_ablate.analysis import Contrast, compare
from cifar_ablate.analysis.types import Verdict
from cifar_ablate.errors import RecordError
from cifar_ablate.records import StudyRecord
from cifar_ablate.report.accuracy import Study

NEAR = 1.02
"""Costs that differ by less count as equal."""


@dataclass(frozen=True)
class Choice:
    """The arm that was chosen, and why."""

    arm: str
    sentence: str


def best_arm(record: StudyRecord, cost: Callable[[str], float]) -> Choice:
    """The arm that no verdict names worse than another one; of several, the cheapest by ``cost`` (arm to any unit).

    An arm is out where a verdict of the report puts another one above it. Those left that were never compared with the
    one of the highest mean among them are compared with it here, as one more family.
    Raises RecordError where there are no verdicts.
    """
    study = Study(record, record.current())
    verdicts = [one for family in study.compared.families.values() for one in family]
    arms = _judged(record, verdicts)
    beaten = _beaten(verdicts)
    left = [arm for arm in arms if arm not in beaten]
    means = study.frame[study.frame.status == "finished"].groupby("arm").accuracy.mean()
    leader = max(left, key=lambda arm: float(means[arm]))
    told = {frozenset((one.arm, one.reference)) for one in verdicts}  # the report has said what these two are
    others = [arm for arm in left if arm != leader and {arm, leader} not in told]
    if others:
        pairs = dict.fromkeys(others, leader)
        extra = compare(study.frame, baseline=leader, references=pairs, margin=record.document["margin"])
        beaten |= {one.arm: leader for one in extra if one.verdict is Verdict.WORSE}
    tied = [arm for arm in left if arm not in beaten]
    chosen = _cheapest(tied, cost, means)
    return Choice(chosen, _sentence(chosen, tied, leader, cost, record))


def _judged(record: StudyRecord, verdicts: Sequence[Contrast]) -> list[str]:
    """Arms that verdicts speak of: with seeds enough, and none diverged."""
    open_kinds = (Verdict.SINGLE_RUN, Verdict.PROVISIONAL, Verdict.DIVERGED)
    judged = {name for one in verdicts if one.verdict not in open_kinds for name in (one.arm, one.reference)}
    found = [arm["name"] for arm in record.document["arms"] if arm["name"] in judged]
    if not found:
        raise RecordError(
            f"{record.label}: no verdict yet could name an arm best; run more seeds, or name one with --arm"
        )
    return found


def _beaten(verdicts: Sequence[Contrast]) -> dict[str, str]:
    """Arms that were shown to be worse, with the one that beat them."""
    found = {one.arm: one.reference for one in verdicts if one.verdict is Verdict.WORSE}
    return found | {one.reference: one.arm for one in verdicts if one.verdict is Verdict.BETTER}


def _cheapest(tied: Sequence[str], cost: Callable[[str], float], means: pd.Series) -> str:
    lowest = min(cost(arm) for arm in tied)
    return max((arm for arm in tied if cost(arm) <= lowest * NEAR), key=lambda arm: float(means[arm]))


def _sentence(chosen: str, tied: Sequence[str], leader: str, cost: Callable[[str], float], record: StudyRecord) -> str:
    if len(tied) == 1:
        return f"The verdicts of {record.label} name {chosen} best; chosen on this test set."
    others = _listed([arm for arm in tied if arm != chosen])
    costs = sorted(cost(arm) for arm in tied)
    if all(high <= low * NEAR for low, high in pairwise(costs)):
        why = "they cost the same, and its mean is the highest"
    elif chosen == leader:
        why = "it is the cheapest to train, and its mean is the highest"
    else:
        why = f"it is the cheapest to train; the mean of {leader} is higher, but not shown to be"
    return (
        f"The verdicts of {record.label} do not tell {chosen} from {others}; {chosen} was taken, for {why}; "
        "chosen on this test set."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
