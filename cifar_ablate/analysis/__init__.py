"""From accuracies to verdicts: pure functions of arrays and tables, without torch and without MLflow.

``contrasts.compare`` is the entry point. This file imports no numerical library, so that sentences cost nothing.
"""

from cifar_ablate.analysis.verdicts import Contrast, Interval, Verdict, label

__all__ = ["Contrast", "Interval", "Verdict", "label"]
