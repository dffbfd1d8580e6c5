"""Random numbers keyed by (seed, purpose, epoch).

Nothing in a training draws from a shared stream: equal seeds give every arm the same initial weights and the same order
of the data, an arm that adds CutMix does not shift the flips, and a resumed run needs no generator state, since the
start of epoch e is the start of epoch e.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def key(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit integer (so that any library takes it as a seed) that depends on all three and nothing else."""
    digest = blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, epoch: int = 0) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based, equal on every platform) for one purpose in one epoch."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, epoch)))
