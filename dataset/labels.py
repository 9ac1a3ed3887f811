"""Label conventions, each written once: ignore index, class names, colours, id tables, evaluation protocols.

Sources: the Cityscapes label table (Cordts et al., CVPR 2016); the SYNTHIA-RAND-CITYSCAPES class list (Ros et al.,
CVPR 2016) in the train-id mapping of the domain-adaptation literature.
"""
from dataclasses import dataclass

import numpy as np

IGNORE_INDEX = 255

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)

# Label id in the file -> train id. GTA5 uses the Cityscapes ids.
CITYSCAPES_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}
SYNTHIA_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15, 20: 16,
    12: 17, 11: 18,
}
# Ids of the published label files that belong to no class (ego vehicle, static, ...); any other is a surprise.
CITYSCAPES_VOID = frozenset(range(34)) - CITYSCAPES_IDS.keys()
SYNTHIA_VOID = frozenset((0, 13, 14, 22))

# Train ids of each street protocol: SYNTHIA never shows terrain, truck and train; the 13-class score leaves out wall,
# fence and pole as well.
STREET_PROTOCOLS = {
    19: tuple(range(19)),
    16: tuple(c for c in range(19) if c not in (9, 14, 16)),
    13: tuple(c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)),
}


@dataclass(frozen=True)
class Classes:
    """Names and colours (red, green, blue) of classes: number c is `names[c]`, drawn in `palette[c]`."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self):
        return len(self.names)


@dataclass(frozen=True)
class Protocol:
    """What is scored as one class: pixels labelled with a train id of `labelled[k]` are of class `names[k]`, and those
    that the network gives a class of `predicted[k]` are called so. No train id, and no class of the network, stands in
    two of them. A train id that stands in none is not scored; a predicted class that stands in none is wrong."""

    names: tuple[str, ...]
    labelled: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassSet(Classes):
    """The classes that a network tells apart (channel c of its logits is `names[c]`), those of the labels that it is
    compared with (train id c is `labels.names[c]`), and the protocols that score the one by the other, by name. Where
    labels have the network's own classes, the first protocol has all of them."""

    labels: Classes
    protocols: dict[str, Protocol]

    @property
    def main(self) -> Protocol:
        """The first protocol, by which the accuracy of pseudo labels is counted."""
        return next(iter(self.protocols.values()))


def own_class_set(names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...],
                  protocols: dict[str, tuple[int, ...]]) -> ClassSet:
    """The class set of labels that have the network's own classes; protocols: name -> the classes that it scores."""
    def scored(members):
        each = tuple((c,) for c in members)
        return Protocol(tuple(names[c] for c in members), each, each)
    return ClassSet(names, palette, Classes(names, palette), {name: scored(m) for name, m in protocols.items()})


def street_class_set(num_classes: int) -> ClassSet:
    """The 19 Cityscapes classes, or the 16 or 13 of them that a network without the others was trained on.

    Raises KeyError for any other number.
    """
    kept = STREET_PROTOCOLS[num_classes]
    protocols = {f"{n} classes": tuple(kept.index(c) for c in members)
                 for n, members in STREET_PROTOCOLS.items() if set(members) <= set(kept)}
    return own_class_set(tuple(CITYSCAPES_CLASSES[c] for c in kept), tuple(CITYSCAPES_PALETTE[c] for c in kept),
                         protocols)


def street_count(num_classes: int) -> int:
    """The street classes that labels are read with for a network of `num_classes`: all 19 where it has others."""
    return num_classes if num_classes in STREET_PROTOCOLS else 19


def street_table(label_ids: dict[int, int], num_classes: int) -> np.ndarray:
    """Look-up table of a street data set for a network of 19, 16 or 13 classes (see `lookup_table`)."""
    kept = STREET_PROTOCOLS[num_classes]
    return lookup_table({i: kept.index(t) for i, t in label_ids.items() if t in kept})


def lookup_table(label_ids: dict[int, int]) -> np.ndarray:
    """uint8 [65536]: label id (up to 16 bits) -> train id; every id not in `label_ids` -> IGNORE_INDEX."""
    table = np.full(65536, IGNORE_INDEX, np.uint8)
    for label_id, train_id in label_ids.items():
        table[label_id] = train_id
    return table


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours for a user's own classes: the PASCAL VOC colour map (Everingham et al., 2010), from entry 1 on
    (entry 0 is black, the colour of ignored pixels)."""
    def colour(index):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        return tuple(rgb)
    return tuple(colour(c + 1) for c in range(num_classes))
