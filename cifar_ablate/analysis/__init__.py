"""From accuracies to verdicts: pure functions of arrays and tables, without torch and without MLflow."""

from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.types import Contrast, Interval, Verdict
from cifar_ablate.analysis.verdicts import label

__all__ = ["Contrast", "Interval", "Verdict", "compare", "label"]
