"""The images of a data set and their labels, as a sequence that stays small and cheap with millions of them."""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from dataset.columns import Column, sha256
from dataset.files import RGB, Bands

Rule = Callable[[int, "Sample"], Any]  # (number, sample) -> its label, or None


@dataclass(frozen=True)
class Sample:
    """An image and its label. `name` has no extension and is unique in its split; pseudo labels are named by it.

    image_roots, label_roots: real folders in one of which the file must lie; empty if it has been looked at before.
    """

    name: str
    image: Path
    label: Path | None
    bands: Bands = RGB
    image_roots: tuple[str, ...] = ()
    label_roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The samples of a list: columns of names, paths of images, and paths of labels (None: there are none). digest: of
    all that the samples depend on; empty if that is not known. The other fields are those of a Sample."""

    names: Column
    images: Column
    labels: Column | None
    bands: Bands = RGB
    image_roots: tuple[str, ...] = ()
    label_roots: tuple[str, ...] = ()
    digest: str = ""

    def __len__(self):
        return len(self.names)

    def name(self, number: int) -> str:
        """The name of a sample."""
        return self.names.text(number) or ""

    def sample(self, number: int) -> Sample:
        """A sample."""
        label = self.labels and self.labels.text(number)
        return Sample(self.name(number), Path(self.images.text(number) or ""), Path(label) if label else None,
                      self.bands, self.image_roots, self.label_roots)

    def image_keys(self) -> np.ndarray:
        """`Samples.image_keys` of all."""
        return self.images.keys()


@dataclass(frozen=True)
class _Given:
    """Samples that exist."""

    samples: Sequence[Sample]
    digest: str = ""

    def name(self, number):
        return self.samples[number].name

    def sample(self, number):
        return self.samples[number]

    def image_keys(self):
        return Column.of(str(sample.image) for sample in self.samples).keys()


@dataclass(frozen=True)
class _Relabelled:
    """Samples whose labels a rule gives."""

    samples: "Samples"
    rule: Rule
    digest: str

    def name(self, number):
        return self.samples.name(number)

    def sample(self, number):
        sample = self.samples[number]
        return replace(sample, label=self.rule(number, sample), label_roots=())

    def image_keys(self):
        return self.samples.image_keys()


class Samples(Sequence[Sample]):
    """A sequence of samples, each of which is made when it is asked for. A slice, and what the methods return, is such
    a sequence as well and copies no text.

    source: a Table, or what else knows the samples by their numbers. numbers: of those that the sequence has, in order.
    """

    def __init__(self, source: Any, numbers: range | np.ndarray):
        self._source, self._numbers = source, numbers

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Samples":
        """These samples, which are not copied."""
        return samples if isinstance(samples, Samples) else cls(_Given(samples), range(len(samples)))

    @classmethod
    def packed(cls, samples: Sequence[Sample]) -> "Samples":
        """A copy of these samples as a Table. Their bands and roots are those of the first, their labels paths."""
        first = samples[0] if samples else Sample("", Path(), None)
        table = Table(Column.of(s.name for s in samples), Column.of(str(s.image) for s in samples),
                      Column.of(str(s.label) if s.label else None for s in samples), first.bands, first.image_roots,
                      first.label_roots)
        return cls(table, range(len(samples)))

    def __len__(self):
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Samples": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Samples(self._source, self._numbers[index])
        return self._source.sample(int(self._numbers[index]))

    def __iter__(self) -> Iterator[Sample]:
        return (self._source.sample(int(number)) for number in self._numbers)

    def __eq__(self, other):
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self):
        return f"<{len(self)} samples>"

    @property
    def unseen(self) -> bool:
        """Whether their files have not been looked at: those of a long list are when they are read."""
        return len(self) > 0 and bool(self[0].image_roots)

    def name(self, index: int) -> str:
        """The name of a sample, cheaper than the sample."""
        return self._source.name(int(self._numbers[index]))

    def names(self) -> Iterator[str]:
        """The names of all, one after the other."""
        return (self._source.name(int(number)) for number in self._numbers)

    def take(self, indices: np.ndarray) -> "Samples":
        """Those with these indices."""
        at = self._numbers
        return Samples(self._source, np.arange(at.start, at.stop, at.step)[indices] if isinstance(at, range)
                       else at[indices])

    def with_labels(self, rule: Rule) -> "Samples":
        """The samples with rule(index, sample) as their labels; it is asked each time that a sample is made."""
        return Samples(_Relabelled(self, rule, self.digest()), range(len(self)))

    def without_labels(self) -> "Samples":
        """The samples without labels."""
        return self.with_labels(_no_label)

    def image_keys(self) -> np.ndarray:
        """uint64 [n]: a hash of the path of each image; equal paths have equal ones in all sequences."""
        return self._source.image_keys()[np.asarray(self._numbers, np.int64)]

    def digest(self) -> str:
        """Hexadecimal hash of the list that they are from and of those that are in the sequence; empty if the list is
        short."""
        source = self._source.digest
        if not source:
            return ""
        numbers = repr(self._numbers) if isinstance(self._numbers, range) else self._numbers.astype("<i8").tobytes()
        return sha256(source, numbers)


def shared_images(samples: Sequence[Sample], others: Sequence[Sample]) -> int:
    """How many of `samples` have an image that one of `others` has."""
    return int(np.isin(Samples.of(samples).image_keys(), Samples.of(others).image_keys()).sum())


@dataclass(frozen=True)
class Kept:
    """A rule for labels: those where `which` is False are none."""

    which: np.ndarray

    def __call__(self, index: int, sample: Sample) -> Any:
        """The label of a sample, or None."""
        return sample.label if self.which[index] else None


def _no_label(number, sample):
    return None
