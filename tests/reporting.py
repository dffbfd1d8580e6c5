"""Reports to render: of the committed pilot, and of the same runs under names that want to break out of a format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cifar_ablate.record.compact import load_record
from cifar_ablate.record.types import Details, Predictions, RecordedRun, StudyRecord

PILOT = Path(__file__).parent.parent / "reports" / "readme-augmentation-pilot" / "record"
NAMES = {
    "baseline": "None",
    "mixup+affine": "<script>alert(1)</script>",
    "+cutmix": r"$\input{/etc/passwd}$",
    "aggressive": "a|b",
    "label-smoothing": "=1+1",
}
LABEL = 'réseau@"><img src=x onerror=alert(1)> 数 \\end{document}'
QUESTION = (
    "</title><script>alert(1)</script> `x` ``y $\\input{x}$\n\n--^~#%&_{} − → ≤ ß ñ Œ ő Ļ 学 {{ 7*7 }} {% raw %} nan?"
)


@dataclass(frozen=True)
class Renamed:
    """Details of a record whose arms have other names."""

    details: Details
    names: Mapping[str, str]

    def curves(self, runs: Sequence[RecordedRun]) -> pd.DataFrame:
        curves = self.details.curves(runs)
        return curves.assign(arm=curves["arm"].map(self.names))

    def environments(self, runs: Sequence[RecordedRun]) -> Mapping[str, Mapping[str, Any]]:
        return self.details.environments(runs)

    def predictions(self, runs: Sequence[RecordedRun]) -> Predictions | None:
        return self.details.predictions(runs)


def pilot_record() -> StudyRecord:
    return load_record(PILOT)


def hostile_record() -> StudyRecord:
    """The pilot's runs, with one diverged, one failed for a reason that holds markup, and hostile names throughout."""
    pilot = pilot_record()
    document = pilot.document
    arms = [{**arm, "name": NAMES[arm["name"]], "parent": NAMES.get(arm["parent"])} for arm in document["arms"]]
    document = {
        **document,
        "file": "it's `x`\n```\n$(x) <script>alert(1)</script>.yaml",
        "question": QUESTION,
        "baseline": NAMES[document["baseline"]],
        "arms": arms,
        "published": {
            NAMES[arm]: {**figure, "note": "<b>best</b> & \\rm"} for arm, figure in document["published"].items()
        },
    }
    runs = [replace(run, arm=NAMES[run.arm]) for run in pilot.runs]
    runs[-1] = replace(runs[-1], outcome="diverged", reason="loss <i>nan</i> at \\step_1")
    runs[-6] = replace(runs[-6], outcome="failed", reason="=cmd|' /C calc'!A0 </table>")
    return replace(pilot, label=LABEL, document=document, runs=runs, details=Renamed(pilot.details, NAMES))


def empty_record() -> StudyRecord:
    """The pilot as planned, before its first run."""
    return replace(pilot_record(), runs=[])


def lonely_record() -> StudyRecord:
    """One arm with one run."""
    pilot = pilot_record()
    document = {**pilot.document, "arms": pilot.document["arms"][:1], "published": {}}
    return replace(pilot, document=document, runs=pilot.runs[:1])
