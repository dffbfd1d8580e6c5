"""How large noise is, compared with what is claimed, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.interactions import Effect
from cifar_ablate.analysis.power import NoiseFloor, points_detected
from cifar_ablate.analysis.sentences import count, in_points, points
from cifar_ablate.analysis.verdicts import RULED
from cifar_ablate.report.families import Families
from cifar_ablate.report.formatting import duration, listed, run_command
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.tuned import between
from cifar_ablate.report.types import ArmRow, Comparison


def noise_text(floors: Mapping[str, NoiseFloor | None]) -> str:
    """The noise floor of each family, and the differences that are claimed."""
    known = {name: floor for name, floor in floors.items() if floor is not None}
    if not known:
        return "The noise floor is not known: it needs two arms, each with at least two finished seeds that differ."
    return " ".join(_of_family(name if len(floors) > 1 else "", floor) for name, floor in known.items())


def _of_family(name: str, floor: NoiseFloor) -> str:
    said = (
        f"Noise floor{f' {name}' if name else ''}: with this spread and {_seeds(floor)}, two equal "
        f"arms differ by more than {points(floor.of_one, signed=False)} points{_uneven(floor)} in 1 of 20 studies"
    )
    if floor.num_comparisons > 1:
        said += (
            f", and the largest of {floor.num_comparisons} such differences exceeds "
            f"{points(floor.of_largest, signed=False)}"
        )
    if floor.largest_claimed is None or floor.smallest_claimed is None:
        return f"{said}; no difference is claimed."
    low, high = (points(one, signed=False) for one in (floor.smallest_claimed, floor.largest_claimed))
    return f"{said}; {f'{low} is' if low == high else f'{low} to {high} are'} claimed."


def _uneven(floor: NoiseFloor) -> str:
    """The range of floors, where the highest is over twice the lowest."""
    low, high = floor.of_one_range
    return f" ({points(low, signed=False)} to {points(high, signed=False)}, by the arm)" if 2 * low < high else ""


def _seeds(floor: NoiseFloor) -> str:
    fewest, most = floor.num_seeds
    return count(most, "seed") if fewest == most else f"{fewest} to {most} seeds (the median of the comparisons)"


def next_steps(
    study: RecordedStudy, families: Families, rows: Sequence[ArmRow], effects: Sequence[Effect]
) -> Iterator[str]:
    """What to do now, the most urgent first."""
    yield from _missing(study, families, rows)
    yield from _no_verdict(families)
    yield from _open(study, families, rows)
    yield from _confounded(study, families, effects)
    if study.document["variant"]:
        yield (
            f"This is a variant ({study.document['variant']}) of the study: its verdicts hold for the variant only. "
            "`cifar-ablate run` without the overlay answers the question for the recipes as written."
        )


def _confounded(study: RecordedStudy, families: Families, effects: Sequence[Effect]) -> Iterator[str]:
    """Arms whose every comparison is confounded, in a design that estimates no effects."""
    clear = {one.contrast.arm for one in families.comparisons if not one.is_confounded}
    clear |= {arm for effect in effects for arm in effect.weights}
    closest = {one.contrast.arm: one.contrast for one in families.comparisons}  # the parent's family is the last one
    said: list[str] = []
    for arm, contrast in closest.items():
        if arm not in clear:
            keys = [one.key for one in between(study, contrast.reference, arm).changes]
            verb = "" if said else " differs"
            said.append(f"{arm}{verb} from {contrast.reference} in {len(keys)} ({listed(keys, most=4)})")
    if said:
        yield (
            f"To know what a difference is due to, add arms that differ in one thing each. Now {listed(said, '; ')}."
        )


def _no_verdict(families: Families) -> Iterator[str]:
    """Too few seeds, diverged runs, no spread, or nothing left to decide."""
    contrasts = [one.contrast for one in families.comparisons]
    if any(_is_too_short(one) for one in contrasts):
        yield "Too few seeds for a verdict: state `seeds: 5` or more; `cifar-ablate plan` says what they can detect."
    if names := sorted({one.arm for one in contrasts if one.num_diverged}):
        yield f"Look at why runs diverged ({', '.join(names)}): a lower learning rate or a warmup is the usual cure."
    if names := sorted({one.reference for one in contrasts if one.num_diverged_reference}):
        yield (
            f"Runs of {', '.join(names)} diverged, so comparisons with it have no verdict: compare with a recipe that "
            "trains."
        )
    if any(_has_no_spread(one) and not one.is_even_by_chance for one in contrasts):
        yield "No spread between seeds: check that the seed changes something in these trainings."
    if contrasts and all(one.verdict in CLEAR for one in contrasts):
        yield (
            "All comparisons are decided. Repeat the ones that matter on other data or with another network before you "
            "rely on them there."
        )


def _has_no_spread(one: Contrast) -> bool:
    return one.ci95 is None and one.estimate is not None and min(one.num_seeds, one.num_seeds_reference) > 1


def _is_too_short(one: Contrast) -> bool:
    is_provisional = one.verdict is Verdict.PROVISIONAL and one.estimate is not None
    return one.verdict is Verdict.SINGLE_RUN or (is_provisional and bool(one.ci95 or one.is_even_by_chance))


CLEAR = (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT)


def _missing(study: RecordedStudy, families: Families, rows: Sequence[ArmRow]) -> Iterator[str]:
    waiting = missing_runs(study, families)
    if not rows or not waiting:
        return
    counts = Counter(run.outcome for run in study.runs if (run.arm, run.seed) in waiting)
    said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    retry = " --retry failed" if counts["failed"] else ""
    yield (
        f"{count(len(waiting), 'planned run')} {'has' if len(waiting) == 1 else 'have'} no result yet"
        f"{f' ({said})' if said else ''}: `{run_command(study.document)}{retry}` does what is left."
        f"{'' if families.looks is not None else ' Until then all verdicts are interim.'}"
    )


def missing_runs(study: RecordedStudy, families: Families) -> list[tuple[str, int]]:
    """Runs (arm, seed) that the study plans at present and that have no result."""
    there = {(run.arm, run.seed) for run in study.ended}
    numbers = {name: len(arm["seeds"]) for name, arm in study.arms.items()}
    if families.looks is not None:
        numbers = {name: families.looks.wanted.get(name, 0) for name in study.arms}
    wanted = [(name, seed) for name, arm in study.arms.items() for seed in arm["seeds"][: numbers[name]]]
    return [run for run in wanted if run not in there]


def _open(study: RecordedStudy, families: Families, rows: Sequence[ArmRow]) -> Iterator[str]:
    if families.looks is not None and families.looks.pending is not None:
        yield (
            f"The look at {families.looks.pending.num_seeds} seeds is next: `{run_command(study.document)}` buys its "
            "seeds for the arms that are open."
        )
        return
    margin = study.document["margin"]
    open_ones = [one.contrast for one in _unique(families) if _is_open(one.contrast)] if margin > 0 else []
    near = [one for one in open_ones if one.num_more_seeds is not None and one.num_more_seeds <= MANY_SEEDS]
    far = [one for one in open_ones if one not in near]
    if near:
        named = [f"{one.arm} against {one.reference} (about {one.num_more_seeds})" for one in near]
        how = (
            "Train a study with fresh seeds, and looks further out"
            if study.looks
            else "Declare them before the first run, as `seeds: {looks: [...]}`, or train a study with fresh seeds"
        )
        yield (
            f"Open, with the additional seeds per arm to detect {in_points(margin)}: {listed(named)}"
            f"{_cost(near, rows)}. {how}: seeds added after a verdict was read are a second look at the same data, and "
            "are marked as such."
        )
    if far:
        named = [f"{one.arm} against {one.reference}" for one in far]
        yield (
            f"Not a matter of seeds: {listed(named)}. With this spread a difference of {in_points(margin)} takes "
            f"{_range([one.num_more_seeds for one in far])} more seeds per arm{_now(far)}. State the margin that "
            "really matters, if it is larger, or lower the spread: longer trainings and more images spread less."
        )


MANY_SEEDS = 100
"""Maximum number of additional seeds per arm to recommend."""


def _is_open(contrast: Contrast) -> bool:
    return contrast.verdict in RULED and not contrast.verdict.is_decided


def _range(numbers: Sequence[int | None]) -> str:
    """``545 to 3,445``; None is over 100,000."""
    known = [one for one in numbers if one is not None]
    if not known:
        return "over 100,000"
    most = "over 100,000" if len(known) < len(numbers) else f"{max(known):,}"
    return most if f"{min(known):,}" == most else f"{min(known):,} to {most}"


def _now(open_ones: Sequence[Contrast]) -> str:
    """The differences that the present seeds detect."""
    shown = [found for found in map(points_detected, open_ones) if found is not None]
    if not shown:
        return ""
    fewest, most = (points(one, signed=False) for one in (min(shown), max(shown)))
    return f"; the present ones detect {fewest if fewest == most else f'{fewest} to {most}'}"


def _unique(families: Families) -> list[Comparison]:
    """Comparisons of both families, each once."""
    return list({(one.contrast.arm, one.contrast.reference): one for one in families.comparisons}.values())


def _cost(open_ones: Sequence[Contrast], rows: Sequence[ArmRow]) -> str:
    """Training time of the additional seeds of all open arms and their references, at the recorded pace."""
    seconds = {row.name: row.train_seconds for row in rows}
    more: dict[str, int] = {}
    for one in open_ones:
        for arm in (one.arm, one.reference):
            more[arm] = max(more.get(arm, 0), one.num_more_seeds or 0)
    known = [num * (seconds[arm] or 0) for arm, num in more.items() if seconds.get(arm)]
    return f"; about {duration(sum(known))} of training at the recorded pace in all" if len(known) == len(more) else ""
