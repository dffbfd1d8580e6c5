"""Looks: what they spend, what they decide and keep, what they ask for, and what they refuse to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.looks import LooksTaken, spend, take_looks
from cifar_ablate.errors import UsageError
from tests.accuracies import DIVERGED, runs

LOOKS = (5, 8, 12)
SEEDS = tuple(range(12))
RNG = np.random.default_rng(20)
BASE = 94 + RNG.normal(0, 0.22, 12)
CLEAR = BASE + 1.5 + RNG.normal(0, 0.05, 12)
OPEN = 94.1 + RNG.normal(0, 0.25, 12)
ALL: Mapping[str, Sequence[float]] = {"base": tuple(BASE), "clear": tuple(CLEAR), "open": tuple(OPEN)}
FAMILY = {"clear": "base", "open": "base"}


def first(num: int, arms: Mapping[str, Sequence[float]] = ALL) -> dict[str, Sequence[float]]:
    return {arm: of_arm[:num] for arm, of_arm in arms.items()}


def looked(arms: Mapping[str, Sequence[float | None]], **options: Any) -> LooksTaken:
    given = {"looks": LOOKS, "seeds": SEEDS, "families": [FAMILY], **options}
    return take_looks(runs(arms), **given)


def by_arm(taken: LooksTaken, family: int = 0) -> dict[str, Contrast]:
    return {one.arm: one for one in taken.families[family]}


def test_the_whole_alpha_is_spent_most_of_it_late() -> None:
    spent = spend([5, 8, 12])
    assert [look.num_seeds for look in spent] == [5, 8, 12]
    assert [look.alpha for look in spent] == pytest.approx([0.0024, 0.0140, 0.0336], abs=5e-5)
    assert sum(look.alpha for look in spent) == pytest.approx(0.05)
    (only,) = spend([6])
    assert only.alpha == pytest.approx(0.05)
    assert spend([5, 8, 12], 0.01)[0].alpha == pytest.approx(
        2 * stats.norm.sf(stats.norm.isf(0.005) / np.sqrt(5 / 12)), rel=1e-9
    )


def test_a_decided_contrast_stops_and_the_other_asks_for_more_of_itself_and_its_reference() -> None:
    taken = looked(first(5))
    found = by_arm(taken)
    assert found["clear"].verdict is Verdict.BETTER
    assert found["clear"].look == 5
    assert not found["open"].verdict.is_decided
    assert found["open"].notes[-1] == "open: goes on to the look at 8 seeds"
    assert taken.wanted == {"base": 8, "clear": 5, "open": 8}
    assert taken.pending is not None
    assert taken.pending.num_seeds == 8
    assert [look.num_seeds for look in taken.taken] == [5]


def test_the_level_of_a_look_is_in_its_sentence() -> None:
    assert "(99.76% CI +" in by_arm(looked(first(5)))["clear"].sentence


def test_a_decided_contrast_keeps_its_look_when_more_runs_come() -> None:
    early, late = by_arm(looked(first(5))), by_arm(looked(ALL))
    assert late["clear"] == early["clear"]
    assert late["open"].look == 12
    assert late["open"].notes == ()


def test_open_arms_and_their_references_are_fitted_on_one_seed_set() -> None:
    some = {"base": ALL["base"][:8], "clear": ALL["clear"][:5], "open": ALL["open"][:8]}
    found = by_arm(looked(some))["open"]
    assert found.look == 8
    assert found.is_paired
    assert (found.num_seeds, found.num_seeds_reference, found.df) == (8, 8, 7)


def test_a_look_counts_what_an_earlier_one_has_closed() -> None:
    found = by_arm(looked(first(8)))["open"]
    pair = {arm: first(8)[arm] for arm in ("base", "open")}
    (alone,) = compare(runs(pair), baseline="base", alpha=spend(LOOKS)[1].alpha)
    assert found.num_comparisons == 2
    assert found.se == alone.se
    assert found.ci95 is not None
    assert alone.ci95 is not None
    sidak = 1 - (1 - spend(LOOKS)[1].alpha) ** 0.5
    assert found.se is not None
    assert found.ci95[1] - found.ci95[0] > alone.ci95[1] - alone.ci95[0]
    # with 7 degrees of freedom t statistics are not independent though their numerators are: a little under Sidak
    critical = (found.ci95[1] - found.ci95[0]) / 2 / found.se
    assert stats.t.isf(spend(LOOKS)[1].alpha / 2, 7) < critical <= stats.t.isf(sidak / 2, 7) + 1e-4


def test_runs_that_no_look_has_asked_for_change_nothing() -> None:
    needed = {"base": ALL["base"][:8], "clear": ALL["clear"][:5], "open": ALL["open"][:8]}
    beside = {**needed, "clear": (*ALL["clear"][:5], *(80.0,) * 7), "base": (*ALL["base"][:8], 80.0, 80.0)}
    assert looked(beside) == looked(needed)
    unlisted = pd.concat([runs(needed), runs({"open": (None,) * 20 + (10.0,)})])
    assert take_looks(unlisted, looks=LOOKS, seeds=SEEDS, families=[FAMILY]) == looked(needed)


def test_nothing_is_said_before_the_first_look() -> None:
    taken = looked({"base": ALL["base"][:4], "clear": ALL["clear"][:5], "open": ALL["open"][:2]})
    assert taken.taken == ()
    assert taken.pending is not None
    assert taken.pending.num_seeds == 5
    assert taken.wanted == {"base": 5, "clear": 5, "open": 5}
    for one in taken.families[0]:
        assert one.verdict is Verdict.PROVISIONAL
        assert one.ci95 is one.p_adjusted is one.num_more_seeds is None
    assert by_arm(taken)["clear"].sentence == (
        "clear against base: no verdict before the look at 5 seeds (5 of clear and 4 of base are there)."
    )


def test_no_run_at_all_waits_for_the_first_look() -> None:
    taken = looked({})
    assert taken.pending is not None
    assert "0 of open and 0 of base" in by_arm(taken)["open"].sentence


def test_after_the_last_look_nothing_is_open_or_pending() -> None:
    taken = looked(ALL)
    assert taken.pending is None
    assert [look.num_seeds for look in taken.taken] == [5, 8, 12]
    assert all("open" not in note for one in taken.families[0] for note in one.notes)


def test_when_all_is_decided_no_look_is_left() -> None:
    taken = looked(first(5), families=[{"clear": "base"}])
    assert taken.pending is None
    assert taken.wanted == {"base": 5, "clear": 5}


def test_an_arm_that_diverged_stops_and_the_others_go_on() -> None:
    arms = {**ALL, "clear": (94.0, DIVERGED, 94.1, 94.2, 94.0)}
    taken = looked(arms)
    found = by_arm(taken)
    assert (found["clear"].verdict, found["clear"].look) == (Verdict.DIVERGED, 5)
    assert (found["open"].look, found["open"].num_comparisons) == (12, 1)
    assert taken.wanted == {"base": 12, "clear": 5, "open": 12}


def test_two_families_each_have_the_whole_alpha_and_share_their_runs() -> None:
    families = [{"clear": "base"}, {"open": "base", "clear": "open"}]
    taken = looked(ALL, families=families)
    for number, family in enumerate(families):
        alone = looked(ALL, families=[family])
        assert by_arm(taken, number) == by_arm(alone)
    assert by_arm(taken, 0)["clear"].look == 5
    assert by_arm(taken, 0)["clear"].num_comparisons == 1
    assert by_arm(taken, 1)["open"].num_comparisons == 2


def test_seeds_are_taken_in_the_order_of_the_study() -> None:
    order = (7, 3, 11, 0, 5, *(seed for seed in SEEDS if seed not in (7, 3, 11, 0, 5)))
    some = {arm: [a if seed in order[:5] else None for seed, a in enumerate(of_arm)] for arm, of_arm in ALL.items()}
    taken = take_looks(runs(some), looks=LOOKS, seeds=order, families=[FAMILY])
    assert [look.num_seeds for look in taken.taken] == [5]
    assert by_arm(taken)["clear"].num_seeds == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"looks": (5, 5)}, "looks at 5, 5 seeds; give increasing numbers of seeds"),
        ({"looks": (0, 5)}, "looks at 0, 5 seeds; give increasing numbers of seeds"),
        ({"looks": ()}, "looks at no seeds; give increasing numbers of seeds"),
        ({"looks": (5, 20)}, "the last look is at 20 seeds and the study has 12; name more seeds"),
        ({"families": [{"open": "open"}]}, "arm 'open' is its own reference; name another one"),
    ],
)
def test_looks_that_cannot_be_taken_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        looked(ALL, **options)
    assert str(refused.value) == said


def test_a_table_without_seeds_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a column 'seed'"):
        take_looks(runs(ALL).drop(columns="seed"), looks=LOOKS, seeds=SEEDS, families=[FAMILY])
