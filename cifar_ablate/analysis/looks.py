"""Pre-declared looks that spend a family's alpha (O'Brien-Fleming), so that seeds are added only where needed.

Without them, looking at any time and adding seeds until something shows finds differences between equal arms more
often than the level allows (docs/statistics.md, peeking). Each look spends its increment of alpha, and a contrast that
is decided keeps the interval of its look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special

from cifar_ablate.analysis.contrasts import checked, compare
from cifar_ablate.analysis.sentences import count
from cifar_ablate.analysis.verdicts import Contrast, Verdict
from cifar_ablate.errors import UsageError


@dataclass(frozen=True)
class Look:
    """A look at the first ``num_seeds`` seeds, with its part of the family's alpha."""

    num_seeds: int
    alpha: float


def spend(looks: Sequence[int], alpha: float = 0.05) -> tuple[Look, ...]:
    """The alpha of each look: increments of the O'Brien-Fleming spending function (Lan and DeMets 1983).

    For looks at 5, 8 and 12 seeds: 0.0024, 0.0140, 0.0336.
    """
    share = np.array(looks) / looks[-1]
    spent = 2 * special.ndtr(special.ndtri(alpha / 2) / np.sqrt(share))
    return tuple(Look(num, float(one)) for num, one in zip(looks, np.diff(spent, prepend=0.0), strict=True))


@dataclass(frozen=True)
class LooksTaken:
    """State of a study with looks."""

    families: tuple[tuple[Contrast, ...], ...]
    """Contrasts of each family, each from its own look."""
    taken: tuple[Look, ...]
    """Looks whose runs have all ended."""
    pending: Look | None
    """The look that waits for runs; None if everything is decided, or the last look was taken."""
    wanted: Mapping[str, int]
    """Number of seeds, counted from the first, that the looks have requested of each arm."""


def take_looks(
    frame: pd.DataFrame,
    *,
    looks: Sequence[int],
    seeds: Sequence[int],
    families: Sequence[Mapping[str, str]],
    margin: float = 0.2,
    alpha: float = 0.05,
) -> LooksTaken:
    """Take every look whose runs have ended; decided contrasts stop, the others request the seeds of the next look.

    Args:
        frame: As for ``compare``. Runs of seeds that no look has requested are ignored.
        looks: Increasing numbers of seeds.
        seeds: All seeds in their order; a look takes the first ones.
        families: The reference of each arm, for each family. Each family has the whole alpha, as without looks.
        margin: Smallest difference that matters, in points.
        alpha: Error level of each family.

    Raises:
        UsageError: The looks do not increase, or request more seeds than there are; and as for ``compare``.
    """
    if not looks or any(after <= before for before, after in zip((0, *looks), looks, strict=False)):
        raise UsageError(f"looks at {', '.join(map(str, looks)) or 'no'} seeds; give increasing numbers of seeds")
    if looks[-1] > len(seeds):
        raise UsageError(f"the last look is at {looks[-1]} seeds and the study has {len(seeds)}; name more seeds")
    frame = checked(frame)
    ended = {(str(arm), int(seed)) for arm, seed in zip(frame["arm"], frame["seed"], strict=True)}
    undecided = [dict(family) for family in families]
    found: list[dict[str, Contrast]] = [{} for _ in families]
    wanted: dict[str, int] = {}
    taken: list[Look] = []
    pending: Look | None = None
    for look in spend(looks, alpha):
        needed = {arm for family in undecided for pair in family.items() for arm in pair}
        if not needed:
            break
        wanted |= dict.fromkeys(sorted(needed), look.num_seeds)
        first = list(seeds[: look.num_seeds])
        if any((arm, seed) not in ended for arm in needed for seed in first):
            pending = look
            break
        taken.append(look)
        for open_pairs, results in zip(undecided, found, strict=True):
            _take(frame[frame["seed"].isin(first)], look, open_pairs, results, margin)
    complete = []
    for family, results, still_open in zip(families, found, undecided, strict=True):
        for arm, reference in family.items():
            if arm not in results:
                results[arm] = _before_first_look(arm, reference, frame, list(seeds[: looks[0]]))
            elif arm in still_open and pending is not None:
                note = f"open: goes on to the look at {count(pending.num_seeds, 'seed')}"
                results[arm] = _open(results[arm], note)
        complete.append(tuple(results[arm] for arm in family))
    return LooksTaken(tuple(complete), tuple(taken), pending, wanted)


def _take(
    frame: pd.DataFrame,
    look: Look,
    open_pairs: dict[str, str],
    results: dict[str, Contrast],
    margin: float,
) -> None:
    """One look of one family: compare open arms on the look's seeds with their references, and close the decided."""
    if not open_pairs:
        return
    mine = frame[frame["arm"].isin({*open_pairs, *open_pairs.values()})]
    closed = [one for arm, one in results.items() if arm not in open_pairs and one.verdict is not Verdict.DIVERGED]
    for contrast in compare(
        mine, baseline="", references=open_pairs, margin=margin, alpha=look.alpha, num_closed=len(closed)
    ):
        results[contrast.arm] = replace(contrast, look=look.num_seeds)
        if contrast.verdict.is_decided:
            del open_pairs[contrast.arm]


def _open(contrast: Contrast, note: str) -> Contrast:
    """A contrast that stays open, without the number of further seeds: an early look's level does not tell it."""
    sentence = re.sub(r": about [\d,]+ more seeds? [^:]*\.$", ".", contrast.sentence)
    notes = (*contrast.notes, note)
    return replace(contrast, num_more_seeds=None, num_more_seeds_range=None, notes=notes, sentence=sentence)


def _before_first_look(arm: str, reference: str, frame: pd.DataFrame, seeds: list[int]) -> Contrast:
    mine = frame[frame["arm"].isin({arm, reference}) & frame["seed"].isin(seeds)]
    (early,) = compare(mine, baseline="", references={arm: reference})
    there = [int((mine["arm"] == name).sum()) for name in (arm, reference)]
    said = (
        f"{arm} against {reference}: no verdict before the look at {count(len(seeds), 'seed')} "
        f"({there[0]} of {arm} and {there[1]} of {reference} are there)."
    )
    return replace(
        early,
        verdict=Verdict.PROVISIONAL,
        estimate=None,
        p_superior=None,
        error_change=None,
        ci95=None,
        ci90=None,
        p_adjusted=None,
        own_p_holm=None,
        num_more_seeds=None,
        num_more_seeds_range=None,
        num_comparisons=0,
        notes=(),
        sentence=said,
        look=len(seeds),
    )
