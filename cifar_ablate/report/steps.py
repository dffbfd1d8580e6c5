"""How large noise is beside what is claimed, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.noise import NoiseFloor, points_detected
from cifar_ablate.analysis.sentences import count, points
from cifar_ablate.report.accuracy import Study
from cifar_ablate.report.families import Families
from cifar_ablate.report.reproduce import run_command
from cifar_ablate.report.types import ArmRow, Comparison
from cifar_ablate.report.words import duration


def noise_text(floors: Mapping[str, NoiseFloor | None]) -> str:
    """The noise floor of each family, by its name, beside the differences that are claimed."""
    known = {name: floor for name, floor in floors.items() if floor is not None}
    if not known:
        return "The noise floor is not known: it needs two arms, each with at least two finished seeds that differ."
    return " ".join(_of_family(name if len(floors) > 1 else "", floor) for name, floor in known.items())


def _of_family(name: str, floor: NoiseFloor) -> str:
    said = (
        f"Noise floor{f' {name}' if name else ''}: with this spread and {count(floor.num_seeds, 'seed')}, two equal "
        f"arms differ by more than {points(floor.of_one, signed=False)} points in 1 of 20 studies"
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


def next_steps(study: Study, families: Families, rows: Sequence[ArmRow]) -> Iterator[str]:
    """What to do now, the most urgent first."""
    yield from _missing(study, families, rows)
    yield from _no_verdict(families)
    yield from _open(study, families, rows)
    told = {one.contrast.arm for one in families.comparisons if not one.is_confounded}
    confounded = [one for one in families.comparisons if one.contrast.arm not in told]
    if confounded:
        one = confounded[-1]  # against its parent, where it has one: fewer differences
        keys = " and ".join(one.differs[:2])
        yield (
            f"To know what a difference is due to, give {one.contrast.arm} and its reference one difference each: it "
            f"has {len(one.differs)} ({keys}{', ...' if len(one.differs) > 2 else ''})."
        )
    if study.document["variant"]:
        yield (
            f"This is a variant ({study.document['variant']}) of the study: what it shows holds for it. "
            f"`cifar-ablate run` without the overlay answers the question for the recipes as written."
        )


def _no_verdict(families: Families) -> Iterator[str]:
    """Where seeds are too few, runs diverged, or nothing varies."""
    contrasts = [one.contrast for one in families.comparisons]
    if any(one.verdict is Verdict.SINGLE_RUN or (one.ci95 and one.verdict is Verdict.PROVISIONAL) for one in contrasts):
        yield "Too few seeds for a verdict: state `seeds: 5` or more; `cifar-ablate plan` says what they can detect."
    if names := sorted({one.arm for one in contrasts if one.num_diverged}):
        yield f"Look at why runs diverged ({', '.join(names)}): a lower learning rate or a warmup is the usual cure."
    if names := sorted({one.reference for one in contrasts if one.num_diverged_reference}):
        yield f"Runs of {', '.join(names)} diverged: nothing compared with it has a verdict until none does."
    if any(
        one.ci95 is None and one.estimate is not None and min(one.num_seeds, one.num_seeds_reference) > 1
        for one in contrasts
    ):
        yield "No spread between seeds was seen: make sure that the seed changes anything in these trainings."
    if contrasts and all(one.verdict in CLEAR for one in contrasts):
        yield "All is decided. To be believed elsewhere, repeat what matters on other data or with another network."


CLEAR = (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT)


def _missing(study: Study, families: Families, rows: Sequence[ArmRow]) -> Iterator[str]:
    waiting = missing_runs(study, families)
    if not rows or not waiting:
        return
    counts = Counter(run.outcome for run in study.runs if (run.arm, run.seed) in waiting)
    said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    retry = " --retry failed" if counts["failed"] else ""
    yield (
        f"{count(len(waiting), 'planned run')} {'has' if len(waiting) == 1 else 'have'} no result yet"
        f"{f' ({said})' if said else ''}: `{run_command(study.document)}{retry}` does what is left. Until then all "
        "verdicts are interim."
    )


def missing_runs(study: Study, families: Families) -> list[tuple[str, int]]:
    """Runs (arm, seed) that the study wants at present and that have no result."""
    there = {(run.arm, run.seed) for run in study.ended}
    numbers = {name: len(arm["seeds"]) for name, arm in study.arms.items()}
    if families.looks is not None:
        numbers = {name: families.looks.wanted.get(name, 0) for name in study.arms}
    wanted = [(name, seed) for name, arm in study.arms.items() for seed in arm["seeds"][: numbers[name]]]
    return [run for run in wanted if run not in there]


def _open(study: Study, families: Families, rows: Sequence[ArmRow]) -> Iterator[str]:
    if families.looks is not None and families.looks.pending is not None:
        yield (
            f"The look at {families.looks.pending.num_seeds} seeds is next: `{run_command(study.document)}` buys its "
            "seeds for the arms that are open."
        )
        return
    open_ones = [one.contrast for one in _unique(families) if one.contrast.num_more_seeds is not None]
    margin = study.document["margin"]
    beyond = [one.contrast for one in _unique(families) if _is_out_of_reach(one.contrast)]
    if beyond and not open_ones and margin > 0:
        yield (
            f"With this spread no number of seeds that anyone trains shows a difference of {margin:g} points"
            f"{_now(beyond)}. Longer trainings and more images spread less; or state a larger margin."
        )
    if not open_ones:
        return
    fewest, most = (pick(one.num_more_seeds or 0 for one in open_ones) for pick in (min, max))
    names = ", ".join(dict.fromkeys(one.arm for one in open_ones))
    number = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    yield (
        f"Open: {names}. To detect {margin:g} points needs about {number} more seeds per arm{_cost(open_ones, rows)}"
        f"{_now(open_ones)}. "
        "Declare them before the first run, as `seeds: {looks: [...]}`, or train a study with fresh seeds: seeds added "
        "after a verdict was read are a second look at the same data, and are marked as such."
    )


def _is_out_of_reach(contrast: Contrast) -> bool:
    """Ruled, not decided, and more than 100,000 seeds away."""
    return contrast.ci95 is not None and not contrast.verdict.is_decided and contrast.num_more_seeds is None


def _now(open_ones: Sequence[Contrast]) -> str:
    """What the present seeds would have shown."""
    shown = [points_detected(one) for one in open_ones]
    largest = max((one for one in shown if one is not None), default=None)
    return "" if largest is None else f"; the present ones detect about {points(largest, signed=False)}"


def _unique(families: Families) -> list[Comparison]:
    """Contrasts without those that both families have."""
    return list({(one.contrast.arm, one.contrast.reference): one for one in families.comparisons}.values())


def _cost(open_ones: Sequence[Contrast], rows: Sequence[ArmRow]) -> str:
    """What the seeds cost at the recorded pace, all open arms and their references together."""
    seconds = {row.name: row.train_seconds for row in rows}
    more: dict[str, int] = {}
    for one in open_ones:
        for arm in (one.arm, one.reference):
            more[arm] = max(more.get(arm, 0), one.num_more_seeds or 0)
    known = [num * (seconds[arm] or 0) for arm, num in more.items() if seconds.get(arm)]
    return f" (about {duration(sum(known))} of training at the recorded pace)" if len(known) == len(more) else ""
