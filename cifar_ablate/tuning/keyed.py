"""A sampler whose draws for a trial depend on the trials before it and on nothing else.

Optuna's samplers draw from one stream for each process: a tuning that is taken up again would draw its first numbers
again, and propose the same values twice. Here each trial has a seed of its own, keyed by its place in the tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from cifar_ablate.rng import derive_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class KeyedSampler(BaseSampler):
    """Asks a fresh sampler for each trial, with a seed that follows from ``seed`` and the trial's place.

    Args:
        seed: Of the tuning.
        make: Makes the sampler of one trial from its seed.
        place_of: A trial's place among those that count: one that was lost and taken up again counts once.
    """

    def __init__(
        self, seed: int, make: Callable[[int], BaseSampler], place_of: Callable[[Study, FrozenTrial], int]
    ) -> None:
        self.seed, self.make, self.place_of = seed, make, place_of
        self.current: tuple[int, BaseSampler] | None = None

    def _of(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if self.current is None or self.current[0] != trial.number:
            self.current = trial.number, self.make(derive_seed(self.seed, "trial", self.place_of(study, trial)) % 2**32)
        return self.current[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)
