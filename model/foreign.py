"""Checkpoints of other projects: finding the network in a file, behind any of the usual wrappers and prefixes."""
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from utils.constants import InputConvention
from utils.errors import CheckpointError

# Usual names of a network's entry in a file, and usual prefixes of its tensors' names.
_WORDS = frozenset(re.findall(r"\S+", """
    state_dict model_state_dict net_state_dict network_state_dict state_dict_ema ema_state_dict model_state net_state
    model_dict model_weights model net network params params_ema weights checkpoint module _forward_module
    ema ema_model model_ema ema_net net_ema ema_weights averaged_model swa_model online_model shadow
    teacher student teacher_model student_model model_teacher model_student ema_teacher
    generator net_g netg g segmentor seg_model segmenter base_model"""))
_TECHNICAL = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch's own wrappers
_RESIDUE = ("total_ops", "total_params")  # buffers that a FLOP counter leaves in every module
_BLOCK = re.compile(r"(.*?)(?:Scale\.)?layer1\.\d+\.conv1\.weight")  # a name by which a ResNet is found
_MOST_WRAPPERS = 8
_SHOWN = 4  # names listed in a message
_LOOKS = (  # parts of names, all of which must occur, and the network that has them
    (("backbone.layer", "classifier."), "torchvision's DeepLabV3 or FCN"),
    (("decode_head.",), "an mmsegmentation network"),
    (("segformer.",), "SegFormer"),
    (("patch_embed1.",), "SegFormer"),
    (("transition1.", "stage2."), "HRNet"),
    (("encoder.", "decoder."), "an encoder and decoder as segmentation_models_pytorch has them"),
    (("blocks.0.attn.",), "a vision transformer"),
    (("encoder.layer.0.attention.",), "a vision transformer"),
    (("features.0.",), "VGG, AlexNet or MobileNet"),
)


@dataclass(frozen=True)
class Network:
    """A network in a file.

    words: the entries and prefixes that lead to it. tensors: by the network's own names. others: names of the file's
    tensors that are no part of it. input: the input that the file says it was trained with, if it says so.
    """

    words: tuple[str, ...]
    tensors: dict[str, Tensor]
    others: tuple[str, ...] = ()
    input: str | InputConvention = ""

    @property
    def label(self) -> str:
        """The words as a user gives them after the # of a checkpoint."""
        return _printable(".".join(self.words))

    @property
    def whole(self) -> bool:
        """Whether it has a head, or is a known initialisation without one."""
        return any(name.startswith(("layer5.", "layer6.", "fc.", "Scale.")) for name in self.tensors)

    @property
    def unusual(self) -> bool:
        """Whether any word that leads to it is not a usual one."""
        return any(word.lower() not in _WORDS for word in self.words)

    def answers_to(self, entry: list[str]) -> bool:
        """Whether `entry` is a run of consecutive words of its own."""
        return any(list(self.words[i:i + len(entry)]) == entry for i in range(len(self.words)))


def find_network(content: object, path: str, entry: str | None = None) -> Network:
    """Find the DeepLabV2 or ResNet in a file's content, nested dictionaries of tensors and anything else.

    entry: names the network to take, by an entry or prefix, joined with dots where they are nested. Without it the file
    must have exactly one network, behind entries and prefixes of usual names. Raises CheckpointError, which starts with
    `path` and lists what the file holds.
    """
    tables = tables_of(content)
    if not tables:
        raise CheckpointError(f"{path}: holds no tensors under parameter names, not even behind {_MOST_WRAPPERS} "
                              f"wrappers{_entries(content)}: expected a state dict.")
    return _one_of(_usable(tables), tables, content, path, entry, "a DeepLabV2 on a ResNet", "DeepLabV2")


def other_network(content: object) -> str:
    """What kind of network a file's content seems to hold, if it is one that `find_network` does not find; else empty.
    """
    tables = tables_of(content)
    return "" if not tables or _usable(tables) else describe(_names(tables))


def find_named(content: object, path: str, expected: set[str], entry: str | None = None) -> Network:
    """`find_network` for a network whose tensors have the names `expected`, behind any prefix. It is the one with at
    least half of these names, else the one with most of them, so that an error can say which are missing."""
    tables = tables_of(content)
    if not tables:
        raise CheckpointError(f"{path}: holds no tensors under parameter names, not even behind {_MOST_WRAPPERS} "
                              f"wrappers{_entries(content)}: expected a state dict.")
    found = [(share, network) for words, table in tables for share, network in _named(words, table, expected, tables)]
    most = [network for share, network in found if share >= 0.5]
    best = [network for share, network in found if share == max(s for s, _ in found)]
    return _one_of(most or best[:1], tables, content, path, entry, "the configuration's", "such network")


def _one_of(found, tables, content, path, entry, what, short):
    """The one of the networks found that `entry` names; without an entry, the only one."""
    if entry is not None:
        words = [word for word in entry.split(".") if word and word not in _TECHNICAL]
        chosen = [n for n in found if list(n.words) == words] or [n for n in found if n.answers_to(words)]
        if len(chosen) != 1:
            many = f"{len(chosen)} networks go" if chosen else f"no {short} goes"
            raise CheckpointError(f"{path}: {many} by the name {entry!r}; it holds {_listing(found, tables)}: give "
                                  f"{'the name of one of these' if any(n.label for n in found) else path}.")
        return chosen[0]
    if not found:
        another = f"a {short} checkpoint" if short == "DeepLabV2" else "a checkpoint of that"
        raise CheckpointError(f"{path}: it fits nothing of the network, which is {what}: {describe(_names(tables))}; "
                              f"give {another}.")
    if len(found) > 1:
        name = next((n.label for n in found if n.label), "")
        raise CheckpointError(f"{path}: holds several networks, {_listing(found, tables)}: name the one to take, such "
                              f"as {path}#{name}.")
    if found[0].unusual:
        raise CheckpointError(f"{path}: holds a network under a name that is not usual for one, {found[0].label}"
                              f"{_entries(content)}: if it is the one that you mean, give {path}#{found[0].label}.")
    return found[0]


def tables_of(content: object) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """[(words, tensors)] of every dictionary of tensors in nested dictionaries and lists, each once even if it is found
    in several places. words: the keys that lead to it."""
    found: list[tuple[tuple[str, ...], dict[str, Tensor]]] = []
    waiting: list[Any] = [((), content)] if isinstance(content, (dict, list, tuple)) else []
    seen: set[int] = set()
    for words, node in waiting:  # which grows meanwhile
        if id(node) in seen or len(words) > _MOST_WRAPPERS:
            continue
        seen.add(id(node))
        if not isinstance(node, dict):
            node = {str(i): value for i, value in enumerate(node) if isinstance(value, dict)}
        tensors = {key: value for key, value in node.items() if isinstance(value, Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            found.append((words, tensors))
        waiting += [((*words, key), value) for key, value in node.items()
                    if isinstance(key, str) and isinstance(value, (dict, list, tuple))]
    return found


def _networks(tables):
    """Every ResNet in the tables, in the file's order. A table holds several if its names have several prefixes."""
    found = []
    for words, table in tables:
        table = _without_technical(table)
        fronts = dict.fromkeys(match[1] for name in table if (match := _BLOCK.fullmatch(name)))
        for front in fronts:
            inner = [f for f in fronts if f != front and f.startswith(front)]
            mine = {name.removeprefix(front): tensor for name, tensor in table.items()
                    if name.startswith(front) and not name.startswith(tuple(inner))}
            kept = {name: tensor for name, tensor in mine.items() if not _is_counter(name, tensor)}
            others = [name for name in table if name.removeprefix(front) not in kept or not name.startswith(front)]
            others += [".".join((*w, name)) for w, t in tables if w != words for name in t]
            path = ".".join((*words, front)).split(".")
            found.append(Network(tuple(w for w in path if w and w not in _TECHNICAL), kept, tuple(others)))
    return found


def _usable(tables):
    """The ResNets in the tables that may be meant: those with a head, or, if there are none, those of usual names."""
    found = _networks(tables)
    return [n for n in found if n.whole] or [n for n in found if not n.unusual]


def _named(words, table, expected, tables):
    """(share of `expected` that it has, network) for every prefix of a table's names behind which some of these are."""
    table = _without_technical(table)
    counts = Counter(".".join(parts[:i]) for name in table for parts in [name.split(".")] for i in range(len(parts))
                     if ".".join(parts[i:]) in expected)
    needed = max(1, sum(not name.endswith("num_batches_tracked") for name in expected))
    fronts, found = [f for f in counts if counts[f] >= needed / 2] or sorted(counts, key=counts.get)[-1:], []
    for front in fronts:
        start = f"{front}." if front else ""
        inner = tuple(f"{f}." for f in fronts if f != front and f.startswith(start))
        own = {name.removeprefix(start): name for name in table
               if name.startswith(start) and not name.startswith(inner)}
        kept = {name: table[n] for name, n in own.items() if name in expected or not _is_counter(name, table[n])}
        used = {own[name] for name in kept}
        others = [n for n in table if n not in used]
        others += [".".join((*w, name)) for w, t in tables if w != words for name in t]
        path = tuple(w for w in (*words, *front.split(".")) if w and w not in _TECHNICAL)
        found.append((len(expected & kept.keys()) / needed, Network(path, kept, tuple(others))))
    return found


def _without_technical(table):
    plain = {".".join(part for part in name.split(".") if part not in _TECHNICAL): t for name, t in table.items()}
    return plain if len(plain) == len(table) else table


def _is_counter(name, tensor):
    """Whether a tensor is a number beside a network: a FLOP counter's, or one without a module (n_averaged, ...)."""
    return name.split(".")[-1] in _RESIDUE or "." not in name and tensor.numel() <= 1


def _listing(networks, tables):
    if not networks:
        return describe(_names(tables))
    return some([f"{n.label or 'one without a name'} ({len(n.tensors)} tensors)" for n in networks], 8)


def _names(tables):
    return [".".join((*words, name)) for words, table in tables for name in table]


def _entries(content):
    keys = list(map(str, content)) if isinstance(content, dict) else []
    return f" (its entries: {some([key[:40] for key in keys], 8)})" if keys else ""


def describe(names: list[str]) -> str:
    """What kind of network a file seems to hold, by the names of its tensors; for a message."""
    text = "".join(f".{name}\n" for name in names)
    looks = next((what for marks, what in _LOOKS if all(f".{mark}" in text for mark in marks)), None)
    return f"its names begin with {some(names)}" + (f", which looks like {looks}" if looks else "")


def some(names: list[str] | tuple[str, ...], most: int = _SHOWN) -> str:
    """The first `most` of some names, for a message. Names out of a file may hold anything, so they are made
    printable."""
    shown = [_printable(name[:120]) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _printable(text):
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
