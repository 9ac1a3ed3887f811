"""The classes of a configuration's network and of its target's labels, and the protocols that compare the two."""
from collections.abc import Mapping
from typing import Any

from dataset import labels, segmentation
from dataset.labels import Classes, ClassSet, Protocol
from utils.config import Config, DataConfig
from utils.config_values import nearest
from utils.errors import ConfigError

_TAKEN = ("event", "step", "seconds")  # keys of a line of the log, beside the names of protocols


def label_classes(section: DataConfig, num_classes: int) -> ClassSet:
    """The classes of a section's labels, as the class set of a network with the same classes.

    Those of a folder are its `classes`; those of a street data set the 19, 16 or 13 of `num_classes`, for any other
    number all 19.
    """
    if section.type != "folder":
        return labels.street_class_set(labels.street_count(num_classes))
    count = len(section.classes)
    palette = section.palette or labels.default_palette(count)
    return labels.own_class_set(tuple(section.classes), tuple((r, g, b) for r, g, b in palette),
                                {f"{count} classes": tuple(range(count))})


def class_set(cfg: Config) -> ClassSet:
    """The classes of the network and of the target's labels, and the protocols that score the one by the other.

    Without the key `protocols`, labels and protocols have the network's classes. With it, the declared protocols are
    scored; before them the full set and its street protocols, if the labels have the network's classes.

    Raises ConfigError that names the key if a protocol names a class that is not there, or one twice.
    """
    section, key = cfg.target_data, f"{cfg.target}.protocols"
    own = label_classes(section, cfg.num_classes)
    if not section.protocols:
        return own
    network, origin = _network_classes(cfg, own)
    for names, where in ((own.names, f"the labels of {cfg.target}"), (network.names, origin)):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{key}: {where} have two classes {twice!r}: protocols need a name for each.")
    same = network.names == own.names
    protocols = dict(own.protocols) if same else {}
    for name, declared in section.protocols.items():
        if name in protocols or name in _TAKEN:
            raise ConfigError(f"{key}: {name!r} is the name of something else: choose another.")
        protocols[name] = _protocol(f"{key}: {name}", declared, own, network, origin, same)
    return ClassSet(network.names, network.palette, own.labels, protocols)


def described(cfg: Config) -> dict[str, Any]:
    """The network's classes in plain values: their names, `classes`; their colours, `palette`; and `label_ids`, id in
    the target's label files -> class, None where the id is the class or where the labels have other classes."""
    network, section = class_set(cfg), cfg.target_data
    ids = section.label_ids
    if section.type != "folder":
        table = segmentation.label_table(section, cfg.num_classes)
        ids = {i: int(table[i]) for i in sorted(segmentation.known_ids(section)) if table[i] != labels.IGNORE_INDEX}
    own = network.names == network.labels.names
    return {"classes": list(network.names), "palette": [list(colour) for colour in network.palette],
            "label_ids": {str(i): c for i, c in ids.items()} if ids and own else None}


def require_network_classes(cfg: Config, section_name: str) -> None:
    """Raise ConfigError if a section to be trained on has labels of other classes than the network."""
    network, found = class_set(cfg), label_classes(cfg.section(section_name), cfg.num_classes)
    if cfg.target_data.protocols and found.names != network.names:
        raise ConfigError(f"source: the labels of {section_name} have the classes {', '.join(found.names)}, which the "
                          f"network, with {', '.join(network.names)}, cannot be trained on: give a section that has "
                          "the network's classes.")


def _network_classes(cfg: Config, own: ClassSet) -> tuple[Classes, str]:
    """The network's classes, and where they come from, in words.

    The first of: the key `network_classes`; the classes of the source, if it is another section than the target; those
    of the target, if there are as many as the network has; those of Cityscapes, if the network has 19, 16 or 13.
    """
    section, count = cfg.target_data, cfg.num_classes
    if section.network_classes:
        names = tuple(section.network_classes)
        return (own if names == own.names else Classes(names, labels.default_palette(count)),
                f"{cfg.target}.network_classes")
    if cfg.source != cfg.target:
        return label_classes(cfg.source_data, count), f"the classes of the source, {cfg.source},"
    if len(own) == count:
        return own, f"the classes of {cfg.target}"
    if count in labels.STREET_PROTOCOLS:
        return labels.street_class_set(count), f"the {count} street classes"
    raise ConfigError(f"{cfg.target}.network_classes: missing: protocols name the network's classes, and nothing says "
                      f"what its {count} are: list them there, in the order of its outputs.")


def _protocol(where: str, declared: Mapping[str, tuple[str, ...]], own: ClassSet, network: Classes, origin: str,
              same: bool) -> Protocol:
    """A declared protocol with class numbers in place of names.

    same: the labels have the network's classes. Then the listed classes are merged in the labels too, and the merged
    class may have any name. Else a class of the protocol is the labels' class of that name.
    """
    claimed = {}
    for name, members in declared.items():
        if not same and name not in own.names:
            raise ConfigError(f"{where}: the labels have no class {name!r}{nearest(name, own.names)}; they have "
                              f"{', '.join(own.names)}.")
        for member in members:
            if member not in network.names:
                raise ConfigError(f"{where}: {name}: the network has no class {member!r}"
                                  f"{nearest(member, network.names)}; {origin} are {', '.join(network.names)}.")
            if member in claimed:
                raise ConfigError(f"{where}: {member!r} is listed under {claimed[member]!r} and under {name!r}: the "
                                  "network's class counts as one of them.")
            claimed[member] = name
    predicted = tuple(tuple(network.names.index(member) for member in members) for members in declared.values())
    labelled = predicted if same else tuple((own.names.index(name),) for name in declared)
    return Protocol(tuple(declared), labelled, predicted)
