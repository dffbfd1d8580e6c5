"""What a reader must know to judge the verdicts: the section "What you must know"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from cifar_ablate.analysis.contrasts import OUTLIER_MADS
from cifar_ablate.analysis.sentences import count, in_points, level_name
from cifar_ablate.record.types import LedgerEntry
from cifar_ablate.report.families import Families, seeds_added
from cifar_ablate.report.formatting import family_size, first_few
from cifar_ablate.report.recommendations import missing_runs
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.types import MAX_ARMS

ADDED = "Seeds added by hand"
TEST_SET_READ = re.compile(r'[\d,]+ runs? read it [^\n]*?, this one included\.|"ledger": ?\[[^]\n]*\]')
"""The parts of a report that change with each reading: one sentence, and in JSON the ledger."""
CORRECTION = (
    "simultaneous intervals from one linear model of all arms (multivariate t), with the larger one of the pooled and "
    "the contrast's own standard error; the t test of the two arms alone (Holm) is given as a check"
)


def caveats(study: RecordedStudy, families: Families, num_superseded: int) -> Iterator[tuple[str, str]]:
    """Keyword and text, in the order of reading."""
    document = study.document
    yield "Accuracy", "of the last epoch, never of the best one; the test curve is shown and nothing is selected by it."
    yield "Seeds", _seeds(study, families)
    yield from _not_finished(study)
    yield from _outliers(study)
    if num_superseded:
        yield "Left out", f"{count(num_superseded, 'run')} of recipes or seeds that this study no longer has."
    yield "Comparisons", _comparisons(families)
    if any(one.contrast.ci95 for one in families.comparisons):
        yield "Correction", f"{CORRECTION}. {_df(families)}"
    yield "Margin", _margin(study)
    yield from _looks(study, families)
    yield "Test set", _test_set(study)
    if study.predictions is not None and study.predictions.confidence is None:
        yield "Reliability", "not drawn: this record has no confidences."
    if study.why_no_predictions:
        yield "Predictions", f"not used: {study.why_no_predictions}."
    if study.why_no_curves:
        yield "Curves", f"not drawn: {study.why_no_curves}."
    if len(study.arms) > MAX_ARMS:
        yield "Figures", f"not drawn: there are more than {MAX_ARMS} arms."
    yield from _averaging(study)
    yield "Repeatability", _determinism(study)
    precision = ", ".join(dict.fromkeys(arm["precision"] for arm in document["arms"]))
    yield "Data and precision", f"{'; '.join(dict.fromkeys(arm['data'] for arm in document['arms']))}; {precision}."


def _seeds(study: RecordedStudy, families: Families) -> str:
    wanted = missing_runs(study, families)
    num_started = len(study.runs)
    num_finished = len(study.finished)
    said = f"{first_few(study.document['seeds'])}; {num_finished} of {num_started} started runs finished"
    said += f", {len(wanted)} planned ones have no result" if wanted else ", none is missing"
    numbers = {len(study.finished_of.get(arm, ())) for arm in study.arms}
    whole = [one.contrast for one in families.comparisons if one.contrast.ci95 and not one.contrast.is_diverged]
    if len(numbers) > 1 and any(not one.is_paired for one in whole):
        said += (
            f"; arms have unequal numbers of seeds ({min(numbers)} to {max(numbers)}), so they are compared unpaired"
        )
    return f"{said}. Equal seeds give all arms the same initial weights and the same order of the data."


def _not_finished(study: RecordedStudy) -> Iterator[tuple[str, str]]:
    for run in study.runs:
        if run.outcome == "diverged":
            yield (
                "Diverged",
                f"{run.arm} seed {run.seed}: {run.reason or 'no reason recorded'} (a result, not replaced).",
            )
        elif run.outcome == "failed":
            yield "Failed", f"{run.arm} seed {run.seed}: {run.reason or 'no reason recorded'}."
        elif run.outcome in ("killed", "running"):
            yield "Not finished", f"{run.arm} seed {run.seed}: {run.outcome}{f', {run.reason}' if run.reason else ''}."


def _outliers(study: RecordedStudy) -> Iterator[tuple[str, str]]:
    far = [
        f"{arm} seed {seed} ({study.accuracies(arm)[seed]:.2f}%)"
        for arm, seeds in study.outlying.items()
        for seed in seeds
    ]
    if far:
        yield (
            "Outliers",
            f"{', '.join(far)}: over {OUTLIER_MADS} scaled MAD from the median of the arm's runs. Every number "
            "includes them; a verdict that depends on one says so.",
        )


def _comparisons(families: Families) -> str:
    parts = []
    for family in families.families:
        named = ", ".join(f"{one.contrast.arm} - {one.contrast.reference}" for one in family.comparisons)
        parts.append(f"{len(family.comparisons)} {family.name} ({named}), {family_size(family)}")
    if not parts:
        return "none: a single arm has nothing to be compared with."
    return (
        f"{'; '.join(parts)}. The study declared all of them. Each family has an error rate of 5%; so have "
        "interactions and differences by class, where they are listed."
    )


def _df(families: Families) -> str:
    known = [one.contrast for one in families.comparisons if one.contrast.df is not None]
    if not known:
        return ""
    paired = {one.is_paired for one in known}
    how = "paired by seed" if paired == {True} else "unpaired" if paired == {False} else "paired where seeds are equal"
    dfs = dict.fromkeys(round(one.df or 0, 1) for one in known)
    return f"Residual degrees of freedom: {', '.join(f'{df:g}' for df in dfs)}; arms are {how}."


def _margin(study: RecordedStudy) -> str:
    margin = study.document["margin"]
    said = f"{in_points(margin)}, the smallest difference that matters, as the study states"
    entries = [entry for entry in study.record.ledger if entry.kind == "margin"]
    current = [entry for entry in entries if entry.detail == f"{margin:g}"]
    if not current:
        return f"{said}; the date was not recorded."
    first = min(current, key=lambda entry: entry.when)
    before = (
        "before any run had finished" if not first.num_runs else f"after {count(first.num_runs, 'run')} had finished"
    )
    changed = f"; it was {', '.join(entry.detail for entry in entries if entry not in current)} at another time"
    return f"{said}; recorded {first.when[:10]}, {before}{changed if len(entries) > len(current) else ''}."


def _looks(study: RecordedStudy, families: Families) -> Iterator[tuple[str, str]]:
    earlier = [entry for entry in study.record.ledger if entry.kind == "verdicts" and entry.num_runs]
    taken = families.looks
    if taken is None:
        yield from _added_by_hand(study, earlier)
        return
    declared = f"looks {', '.join(map(str, study.looks))}"
    before = [entry for entry in earlier if entry.detail != declared]
    if before:
        yield (
            "Looks declared late",
            f"verdicts had been read before ({before[0].when[:10]}, planned: {before[0].detail}); these looks were "
            "declared after results were known, and their levels do not hold.",
        )
    levels = ", ".join(f"{look.num_seeds} seeds at {level_name(look.alpha)}" for look in taken.taken) or "none yet"
    said = f"declared at {', '.join(map(str, study.looks))} seeds; taken: {levels}"
    said += (
        f"; next at {taken.pending.num_seeds}"
        if taken.pending
        else "; all comparisons are decided, or the last look was taken"
    )
    yield "Looks", f"{said}. Each interval has the level of its look (O'Brien and Fleming's spending of 5%)."
    beyond = [run for run in study.ended if run.seed in study.document["seeds"]]
    asked = {arm: set(study.document["seeds"][:num]) for arm, num in taken.wanted.items()}
    extra = Counter(run.arm for run in beyond if run.seed not in asked.get(run.arm, set()))
    if extra:
        named = ", ".join(f"{number} of {arm}" for arm, number in extra.items())
        yield ADDED, f"outside the looks: {named}. No verdict uses them."


def _added_by_hand(study: RecordedStudy, earlier: Sequence[LedgerEntry]) -> Iterator[tuple[str, str]]:
    """Caveats of a study without looks whose verdicts were read before all its runs had ended."""
    planned = len(study.document["seeds"])
    entry = seeds_added(study)
    if entry is not None:
        yield (
            ADDED,
            f"{planned - int(entry.detail)} per arm, after verdicts had been read at {entry.detail} seeds "
            f"({entry.when[:10]}), outside any pre-declared look. Adding seeds until something shows finds a "
            "difference between equal arms in up to 15% of studies instead of 5%; these intervals are too narrow.",
        )
    same = [one for one in earlier if not (one.detail.isdigit() and int(one.detail) < planned)]
    early = [one for one in same if one.num_runs < len(study.finished)]
    if early:
        yield (
            "Read early",
            f"verdicts were read {count(len(early), 'time')} before all planned runs had ended (first with "
            f"{count(early[0].num_runs, 'run')}, {early[0].when[:10]}). That is harmless if nothing was changed or "
            "stopped because of them.",
        )


def _test_set(study: RecordedStudy) -> str:
    said = (
        f"{count(len(study.ended), 'run')} read it {_num_evaluations(study):,} times for their curves and last epochs "
        "(run); nothing was chosen by that"
    )
    others = study.record.num_superseded()
    said += f"; so did {count(others, 'run')} of recipes or seeds that the study no longer has" if others else ""
    entries = study.record.ledger
    for kind, noun, what in (
        ("look", "look", "decided by it which arms get more seeds (run)"),
        ("plan", "time", "its seed spread was taken (plan)"),
        ("export", "time", "predictions were exported (export)"),
        ("promote", "promotion", "chose by it (promote)"),
    ):
        number = sum(entry.kind == kind for entry in entries)
        said += f"; {count(number, noun)} {what}" if number else ""
    states = count(_num_states_read(study), "state")
    return f"{said}; verdicts were read at {states} of the record (report), this one included."


def _num_states_read(study: RecordedStudy) -> int:
    """Number of states of the record at which verdicts were read, including the present one."""
    read = [entry for entry in study.record.ledger if entry.kind == "verdicts"]
    is_entered = any(entry.num_runs == len(study.finished) for entry in read)
    return len(read) + (not is_entered)


def _num_evaluations(study: RecordedStudy) -> int:
    """Number of evaluations on the test set; the planned number where curves cannot be read."""
    if study.curves is not None:
        return int(study.curves["test_accuracy"].notna().sum())
    recipes = [study.arms[run.arm]["recipe"] for run in study.ended]
    return sum(((one["epochs"] - 1) // one["eval_every"] if one.get("eval_every") else 0) + 1 for one in recipes)


def _averaging(study: RecordedStudy) -> Iterator[tuple[str, str]]:
    arms = study.arms
    if averaged := [name for name, arm in arms.items() if arm["recipe"].get("flip_averaging")]:
        yield (
            "Flip-averaged",
            f"{', '.join(averaged)}: test-time augmentation; a prediction is the mean over an image and its mirror "
            "image. Compare only with results of the same kind.",
        )
    if averaged := [name for name, arm in arms.items() if arm["recipe"].get("ema")]:
        yield "Averaged weights", f"{', '.join(averaged)}: evaluated with an exponential moving average of the weights."


def _determinism(study: RecordedStudy) -> str:
    kinds = Counter(environment.get("device_kind", "unknown") for environment in study.environments.values())
    if not kinds:
        return f"not known: {study.why_no_environments or 'no run has ended'}."
    threads = sorted({environment.get("threads", 1) for environment in study.environments.values()})
    said = []
    if kinds["cpu"]:
        said.append(
            f"{count(kinds['cpu'], 'run')} on a CPU (threads per run: {', '.join(map(str, threads))}): the same recipe "
            "and seed, versions and threads give the same bits on the same machine"
        )
    if others := sum(number for kind, number in kinds.items() if kind != "cpu"):
        said.append(
            f"{count(others, 'run')} on a GPU or another device, without flags for determinism: the same recipe and "
            "seed differ in their last bits"
        )
    return "; ".join(said) + "."
