"""The order in which a round takes its crops, a permutation of the samples in each epoch, and whose they are.

Nothing is kept of it but one permutation.
"""
from collections.abc import Iterator, Sequence

import numpy as np

Key = tuple[int, int, int]  # (round, epoch, index) of a crop


class CropKeys(Sequence[Key]):
    """The keys of the first `count` crops of a round. Each epoch is a permutation of the samples; the one that was used
    last is kept."""

    def __init__(self, seed: int, round_index: int, num_samples: int, count: int):
        self._seed, self._round, self._samples, self._count = seed, round_index, num_samples, count
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._key(number) for number in range(self._count)[index]]
        return self._key(range(self._count)[index])

    def __iter__(self) -> Iterator[Key]:
        return map(self._key, range(self._count))

    def __eq__(self, other):
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _key(self, number):
        epoch, place = divmod(number, self._samples)
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, self._round, epoch])
            self._epoch, self._order = epoch, generator.permutation(self._samples)
        return self._round, epoch, int(self._order[place])


def crop_keys(seed: int, round_index: int, num_samples: int, count: int) -> CropKeys:
    """(round, epoch, index) of the first `count` crops of a round. Each epoch is a permutation of the samples."""
    return CropKeys(seed, round_index, num_samples, count)


class StepKeys(Sequence[list[Key]]):
    """The crops that a process takes of each of `steps`, `count` in each.

    Those of step t are keys[t * n: (t + 1) * n], n = processes * count, of which process r takes the r-th `count`: so
    one process that takes n sees the same crops.
    """

    def __init__(self, keys: Sequence[Key], count: int, steps: range, rank: int, processes: int):
        self._keys, self._count, self._steps, self._rank, self._processes = keys, count, steps, rank, processes

    def __len__(self):
        return len(self._steps)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = (self._steps[index] * self._processes + self._rank) * self._count
        return self._keys[at: at + self._count]
