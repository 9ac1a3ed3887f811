"""What the files of a data set hold: sizes, bands and values of its images, ids of its labels."""
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dataset import files, labels
from dataset.formats import Picture
from dataset.segmentation import Sample
from utils.errors import DataError

MOST_HEADERS, MOST_DECODED = 1000, 64  # images whose headers are read; images or labels that are decoded
_FEW, _FLAT = 64, 0.9  # a picture of at most so many values, and so many pixels equal to their neighbours, is of labels


@dataclass(frozen=True)
class Images:
    """What images are. read: of how many the header was read; unreadable: errors of those that cannot be.

    kinds: file ending -> images. sizes: (width, height) as displayed -> images. channels: number -> images. bands: for
    the key `bands`. value_range: for that key, None where it is not needed. deep: whether any has more than 8 bits.
    """

    total: int
    read: int
    unreadable: list[str]
    kinds: Counter
    sizes: Counter
    channels: Counter
    bands: int
    value_range: tuple[float, float] | None
    deep: bool


@dataclass(frozen=True)
class Labels:
    """What labels hold. there: how many images have one. read: how many were read; unreadable: errors of others.
    pixels: id -> pixels in those that were read."""

    there: int
    read: int = 0
    unreadable: list[str] = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)

    @property
    def ids(self) -> list[int]:
        """The ids found, but for 255, which is ignored."""
        return sorted(self.pixels.keys() - {labels.IGNORE_INDEX})


@dataclass(frozen=True)
class Meaning:
    """What label ids seem to stand for. count: of classes. label_ids: for that key, None where it is not needed. names:
    of the classes, None where they are not known. why: a remark for the configuration."""

    count: int
    label_ids: dict[int, int] | None
    names: tuple[str, ...] | None
    why: str


def survey_images(samples: Sequence[Sample]) -> Images:
    """What images are, from the headers of MOST_HEADERS of them at most. Raises DataError if none can be read."""
    kinds, sizes, channels, bands, unreadable, deep = Counter(), Counter(), Counter(), Counter(), [], []
    chosen = spread(samples, MOST_HEADERS)
    for sample in chosen:
        try:
            picture = files.look(sample.image, lambda picture: picture)
            if picture.rgb is None and picture.samples is None:
                files.read_size(sample.image)  # says why not
        except DataError as error:
            unreadable.append(str(error))
            continue
        width, height = picture.size
        sizes[(height, width) if picture.orientation > 4 else (width, height)] += 1
        channels[picture.channels] += 1
        bands[3 if picture.channels <= picture.colours + 1 else picture.channels] += 1
        if picture.deep:
            deep.append(sample)
    if not sizes:
        raise DataError(unreadable[0])
    kinds.update(os.path.splitext(s.image.name)[1].lower() for s in samples)
    count = bands.most_common(1)[0][0]
    needs_range = [s for s in deep if _needs_range(s, count)]
    return Images(len(samples), len(chosen), unreadable, kinds, sizes, channels, count,
                  _range(spread(needs_range, MOST_DECODED)) if needs_range else None, bool(deep))


def survey_labels(samples: Sequence[Sample]) -> Labels:
    """The ids in MOST_DECODED at most of the labels that are there."""
    there = [s.label for s in samples if s.label and os.path.isfile(s.label)]
    pixels, unreadable, read = Counter(), [], 0
    for path in spread(there, MOST_DECODED):
        try:
            counts = np.bincount(files.read_label_ids(path).ravel())
        except DataError as error:
            unreadable.append(str(error))
            continue
        pixels.update({int(i): int(counts[i]) for i in np.flatnonzero(counts)})
        read += 1
    return Labels(len(there), read, unreadable, pixels)


def meaning(found: Labels, count: int | None) -> Meaning | None:
    """What the ids of labels seem to stand for. count: the classes of the network, None if not known. None: nothing is
    known that fits so many classes."""
    ids, street = found.ids, labels.CITYSCAPES_CLASSES
    known = labels.CITYSCAPES_IDS.keys()
    if (count in (None, 19) and ids and ids[-1] > 18 and set(ids) <= {*known, *labels.CITYSCAPES_VOID}
            and sum(found.pixels[i] for i in known) > found.pixels.total() / 2):
        void = dict.fromkeys(sorted(labels.CITYSCAPES_VOID), labels.IGNORE_INDEX)
        return Meaning(19, {**labels.CITYSCAPES_IDS, **void}, street, "the ids are Cityscapes' label ids")
    if count in (None, 19) and ids and 16 <= ids[-1] <= 18 and len(ids) > 9:
        return Meaning(19, None, street, "the ids are Cityscapes' train ids")
    if ids == [0] and labels.IGNORE_INDEX in found.pixels and count in (None, 2):
        return Meaning(2, {0: 0, labels.IGNORE_INDEX: 1}, None, "masks of 0 and 255: 255 is the second class")
    if not ids:
        return None
    if count is None:
        last = ids[-1]
        if last < 2 * len(ids) and last < labels.IGNORE_INDEX:
            return Meaning(max(2, last + 1), None, None, "check whether 0 is a class, or means that none is there")
        if 2 <= len(ids) < labels.IGNORE_INDEX:
            return Meaning(len(ids), {i: c for c, i in enumerate(ids)}, None, "the ids found, in order: check them")
        return None
    if ids[-1] < count:
        return Meaning(count, None, None, "")
    if ids[-1] == count:
        return Meaning(count, {0: labels.IGNORE_INDEX, **{c + 1: c for c in range(count)}}, None,
                       f"taken for 0: no class, 1 to {count}: the classes; check that: if {count} is no class and 0 to "
                       f"{count - 1} are the classes, delete label_ids")
    if len(ids) == count:
        return Meaning(count, {i: c for c, i in enumerate(ids)}, None, "the ids found, in order: check them")
    return None


def look_like_labels(samples: Sequence[Sample], count: int = 12) -> list[Sample]:
    """Those of a few of the images, evenly spread, that look like labels: one lossless channel of few values, most of
    them equal to their neighbours'."""
    def of_labels(picture: Picture) -> bool:
        if picture.ids is None or picture.channels > 1 or picture.deep and picture.samples is None:
            return False
        ids = picture.ids()
        flat = np.mean(ids[:, 1:] == ids[:, :-1]) if ids.shape[1] > 1 else 0
        return flat >= _FLAT and len(np.unique(ids)) <= _FEW
    found = []
    for sample in spread(samples, count):
        try:
            if files.look(sample.image, of_labels):
                found.append(sample)
        except DataError:
            continue
    return found


def spread(items: Sequence, count: int) -> list:
    """`count` at most of the items, evenly spread."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _needs_range(sample, count):
    try:
        files.read_size(sample.image, files.Bands(count))
    except DataError:
        return True
    return False


def _range(samples):
    """(low, high) between which all but the outermost thousandths of the values of these images lie."""
    ends = []
    for sample in samples:
        try:
            values = files.look(sample.image, lambda picture: picture.samples())
        except DataError:
            continue
        values = values[np.isfinite(values)]
        if values.size:
            ends.append(np.quantile(values.ravel()[:: -(-values.size // 100_000)], (0.001, 0.999)))
    low, high = (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else (0, 1)
    low, high = _rounded(low), _rounded(high)
    return (low, high) if low < high else (low, low + 1)


def _rounded(value):
    """A number with three digits that count."""
    value = float(f"{value:.3g}")
    return int(value) if value == int(value) else value
