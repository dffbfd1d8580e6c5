"""Which arm the verdicts name best: nothing here looks at a run more closely than the report does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.contrasts import Pair, all_pairs, mirrored
from cifar_ablate.analysis.verdicts import Interval, Verdict
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
    """The arm that nothing puts another one above; of several, the cheapest by ``cost`` (arm to any unit).

    An arm is out where a verdict puts another one above it. A choice has to be made where a verdict would wait, so an
    arm is out, too, where the report's interval at 90% lies on one side, unless within the margin; and, since not all
    arms were compared with each other, where that of all pairs puts the highest mean above it. The rest is a tie.
    Raises RecordError where there are no verdicts.
    """
    study = Study(record, record.current())
    verdicts = [one for family in study.compared.families.values() for one in family]
    arms, margin = _judged(record, verdicts), float(record.document["margin"])
    pairs = all_pairs(study.frame, arms)
    by_verdict = _beaten(verdicts)
    left = [arm for arm in arms if arm not in by_verdict | _below(verdicts, margin)]
    leader = next(arm for arm in left if all(pairs[arm, other].value >= 0 for other in left if other != arm))
    tied = [arm for arm in left if arm == leader or not _is_above(pairs[leader, arm].ci90, margin)]
    chosen = _cheapest(tied, leader, cost, pairs)
    by = f"The verdicts of {record.label}"
    if set(arms) - set(tied) - by_verdict:
        by += ", and intervals at 90% between its arms,"
    sentences = [_choice(by, chosen, tied, leader, cost, pairs), *_left_out(record, arms), "Chosen on this test set."]
    return Choice(chosen, " ".join(sentences))


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


def _beaten(verdicts: Sequence[Contrast]) -> set[str]:
    """Arms that a verdict puts another one above."""
    worse = {one.arm for one in verdicts if one.verdict is Verdict.WORSE}
    return worse | {one.reference for one in verdicts if one.verdict is Verdict.BETTER}


def _below(verdicts: Sequence[Contrast], margin: float) -> set[str]:
    """Arms that an interval at 90% puts another one above."""
    found = {one.reference for one in verdicts if _is_above(one.ci90, margin)}
    return found | {one.arm for one in verdicts if _is_above(mirrored(one.ci90), margin)}


def _is_above(interval: Interval | None, margin: float) -> bool:
    """Does an interval lie above 0, and not as a whole within the margin?"""
    return interval is not None and interval[0] > 0 and interval[1] >= margin


def _cheapest(
    tied: Sequence[str], leader: str, cost: Callable[[str], float], pairs: Mapping[tuple[str, str], Pair]
) -> str:
    """The lowest cost; of those that cost the same, the highest mean."""
    lowest = min(cost(arm) for arm in tied)
    cheap = [arm for arm in tied if cost(arm) <= lowest * NEAR]
    return min(cheap, key=lambda arm: 0.0 if arm == leader else pairs[leader, arm].value)


def _choice(
    by: str,
    chosen: str,
    tied: Sequence[str],
    leader: str,
    cost: Callable[[str], float],
    pairs: Mapping[tuple[str, str], Pair],
) -> str:
    if len(tied) == 1:
        return f"{by} name {chosen} best."
    others = _listed([arm for arm in tied if arm != chosen])
    if max(map(cost, tied)) <= min(map(cost, tied)) * NEAR:
        why = "they cost the same, and its mean is the highest"
    elif chosen == leader:
        why = "its mean is the highest, and it costs no more than they do"
    else:
        pair = pairs[leader, chosen]
        interval = "" if pair.ci95 is None else f", 95% CI {_points(pair.ci95[0])} to {_points(pair.ci95[1])}"
        why = (
            f"it is the cheapest to train; the mean of {leader} is higher, which is not shown to be more than chance "
            f"({_points(pair.value)}{interval})"
        )
    return f"{by} do not tell {chosen} from {others}; {chosen} was taken, for {why}."


def _left_out(record: StudyRecord, judged: Sequence[str]) -> list[str]:
    names = [arm["name"] for arm in record.document["arms"] if arm["name"] not in judged]
    return [f"Not judged, for want of seeds or because of diverged runs: {_listed(names)}."] if names else []


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
