"""Label conventions: ignore index, class names, colours, id tables, evaluation protocols.

Sources: the Cityscapes label table (Cordts et al., CVPR 2016); the SYNTHIA-RAND-CITYSCAPES class list (Ros et al.,
CVPR 2016) in the train-id mapping of the domain-adaptation literature.
"""
from collections.abc import Mapping
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
# Ids of the published label files that belong to no class (ego vehicle, static, ...). Any other id is reported.
CITYSCAPES_VOID = frozenset(range(34)) - CITYSCAPES_IDS.keys()
SYNTHIA_VOID = frozenset((0, 13, 14, 22))

# Train ids of each street protocol. SYNTHIA has no terrain, truck and train; the 13-class score leaves out wall, fence
# and pole as well.
STREET_PROTOCOLS = {
    19: tuple(range(19)),
    16: tuple(c for c in range(19) if c not in (9, 14, 16)),
    13: tuple(c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)),
}


@dataclass(frozen=True)
class Classes:
    """Names and colours of classes: class c is `names[c]`, drawn in `palette[c]` (red, green, blue in 0..255)."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self):
        return len(self.names)


@dataclass(frozen=True)
class Protocol:
    """Which classes a score has, and which train ids and network classes count as each.

    Class k is `names[k]`. Labelled as k are the pixels with a train id of `labelled[k]`, predicted as k those for which
    the network predicts a class of `predicted[k]`. No train id and no network class belongs to two classes. Pixels with
    a train id of no class are not scored; a prediction of no class is wrong.
    """

    names: tuple[str, ...]
    labelled: tuple[tuple[int, ...], ...]
    predicted: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassSet(Classes):
    """The classes of a network, those of the labels, and the protocols that score the network by the labels.

    Channel c of the network's logits is `names[c]`, train id c of the labels is `labels.names[c]`. protocols: name ->
    protocol. If the labels have the network's classes, the first protocol has all of them.
    """

    labels: Classes
    protocols: dict[str, Protocol]

    @property
    def main(self) -> Protocol:
        """The first protocol, by which the accuracy of pseudo labels is measured."""
        return next(iter(self.protocols.values()))


def own_class_set(names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...],
                  protocols: dict[str, tuple[int, ...]]) -> ClassSet:
    """The class set of a network with labels of the same classes. protocols: name -> numbers of the classes scored."""
    def scored(members):
        each = tuple((c,) for c in members)
        return Protocol(tuple(names[c] for c in members), each, each)
    return ClassSet(names, palette, Classes(names, palette), {name: scored(m) for name, m in protocols.items()})


def street_class_set(num_classes: int) -> ClassSet:
    """The class set of a network with the 19 Cityscapes classes, or with the usual 16 or 13 of them.

    Raises KeyError for any other number.
    """
    kept = STREET_PROTOCOLS[num_classes]
    protocols = {f"{n} classes": tuple(kept.index(c) for c in members)
                 for n, members in STREET_PROTOCOLS.items() if set(members) <= set(kept)}
    return own_class_set(tuple(CITYSCAPES_CLASSES[c] for c in kept), tuple(CITYSCAPES_PALETTE[c] for c in kept),
                         protocols)


def street_count(num_classes: int) -> int:
    """The number of street classes that labels are read with: `num_classes` of the network if it is 19, 16 or 13, for
    any other network 19."""
    return num_classes if num_classes in STREET_PROTOCOLS else 19


def street_table(label_ids: Mapping[int, int], num_classes: int) -> np.ndarray:
    """The `lookup_table` of a street data set for a network of 19, 16 or 13 classes."""
    kept = STREET_PROTOCOLS[num_classes]
    return lookup_table({i: kept.index(t) for i, t in label_ids.items() if t in kept})


def lookup_table(label_ids: Mapping[int, int]) -> np.ndarray:
    """uint8 [65536]: label id of up to 16 bits -> train id. Ids that are not in `label_ids` get IGNORE_INDEX."""
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
