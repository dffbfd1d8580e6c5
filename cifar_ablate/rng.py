"""Random numbers keyed by (seed, purpose, epoch).

No part of a training draws from a shared stream. So equal seeds give every arm the same initial weights and the same
order of the data, adding CutMix to an arm does not change its flips, and a run that resumes at an epoch needs no
generator state.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A seed in [0, 2**63) that depends on the three arguments only; 63 bits, so that every library accepts it."""
    digest = blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, epoch: int = 0) -> np.random.Generator:
    """A NumPy generator for one purpose in one epoch: Philox, which gives equal numbers on every platform."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, epoch)))
