"""Reading a configuration from a YAML file and `key=value` words; writing it, comparing two, and the help text. A
loaded configuration is read-only."""
import dataclasses
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from utils import config_values as values
from utils import distributed
from utils.config_keys import (
    KEYS,
    NO_EFFECT,
    SECTION_DEFAULTS,
    SECTION_KEYS,
    Config,
    DataConfig,
    find_class,
    known_classes,
)
from utils.config_rules import check_rules
from utils.config_values import HELP_WIDTH, Key, nearest
from utils.errors import ConfigError
from utils.yaml_text import parse_yaml, read_text

_OWNERS = {"method": "method", "model": "network"}  # key that chooses a class -> what the class is


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = (), **fixed: Any) -> Config:
    """Read and check a configuration: the YAML file, then the `key=value` words in order (nested keys with dots), then
    `fixed`.

    Raises ConfigError that names the file or word, the key, what was found and what was expected.
    """
    return parse_config(read_text(values.expanded(str(path), "--config")), str(path), overrides, **fixed)


def parse_config(text: str, where: str, overrides: list[str] | tuple[str, ...] = (), **fixed: Any) -> Config:
    """`load_config` of a YAML text. where: its name in messages."""
    return config_of(parse_yaml(text, where), where, overrides, **fixed)


def config_of(content: dict, where: str, overrides: list[str] | tuple[str, ...] = (), **fixed: Any) -> Config:
    """`parse_config` of a file's content that has been read: key or section -> value."""
    tree = _Tree(where, {**_chosen(content, where, overrides), **fixed})
    for name, value in content.items():
        tree.enter(name, value)
    for word in overrides:
        tree.override(word)
    sections = MappingProxyType({name: _section(name, content) for name, content in tree.sections.items()})
    given = {**tree.given, **fixed}
    own = {name: given.pop(name) if name in given else k.read_default(name) for name, k in tree.own.items()}
    cfg = Config(**given, sections=sections, options=MappingProxyType(own),
                 ignored_keys=tuple(dict.fromkeys(tree.ignored)), other_keys=MappingProxyType(tree.other),
                 given_keys=frozenset({**tree.given, **fixed}))
    if not cfg.fix_seed and not cfg.resume and not distributed.launched():  # else the run draws one for all processes
        cfg = dataclasses.replace(cfg, seed=drawn_seed(), fix_seed=True)
    check_rules(cfg)
    for chosen in (cfg.method_class, cfg.network_class):
        chosen.check(cfg)
    return cfg


def drawn_seed() -> int:
    """A new random seed, 0..2^31-1."""
    return secrets.randbelow(2**31)


def differences(saved: Config, now: Config) -> list[str]:
    """`key: was x, is y` for every changed key that would change the results of a resumed run."""
    def compare(keys, old, new, prefix=""):
        return [f"{prefix}{name}: was {values.plain(old(name))}, is {values.plain(new(name))}"
                for name, k in keys.items() if not k.may_change and old(name) != new(name)]
    found = compare(KEYS, saved.value, now.value)
    if (saved.method, saved.model) == (now.method, now.model):  # else the keys differ as well
        found += compare(own_keys(now), saved.value, now.value)
    for side in ("source", "target") if now.method_class.needs_source else ("target",):
        name = getattr(now, side)
        if name == getattr(saved, side):
            old, new = saved.section(name), now.section(name)
            found += compare(SECTION_KEYS, old.__getattribute__, new.__getattribute__, f"{name}.")
    return found


def own_keys(cfg: Config) -> dict[str, Key]:
    """The keys that the method and the network of a configuration declare."""
    return {**cfg.method_class.keys, **cfg.network_class.keys}


def to_yaml(cfg: Config) -> str:
    """The configuration, all keys with their values, as YAML; `load_config` reads it back to an equal one."""
    tree = {name: values.plain(cfg.value(name)) for name in (*KEYS, *cfg.options)}
    tree |= {name: {k: values.plain(getattr(section, k)) for k in SECTION_KEYS if getattr(section, k) is not None}
             for name, section in cfg.sections.items()}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def config_remarks(cfg: Config) -> list[str]:
    """Lines for the log on what may surprise: keys without effect, and the default method if none was given."""
    lines = []
    if cfg.ignored_keys:
        lines.append(f"no effect on LDBE, ignored: {', '.join(cfg.ignored_keys)}")
    if cfg.other_keys:
        unused = ", ".join(f"{name} ({owners})" for name, owners in cfg.other_keys.items())
        lines.append(f"no effect on method {cfg.method} with model {cfg.model}: {unused}")
    if "method" not in cfg.given_keys:
        lines.append(f"method is not given, {cfg.method} is run: set method to one of {', '.join(_target_methods())}")
    return lines


def config_help(usual: Sequence[str] = ()) -> str:
    """The text of --help on keys: each key with type, default and meaning; the usual ones first, the rest by group."""
    declared = {**{name: k for name, k, _ in keys_by_owner("method")}, **KEYS}
    groups: dict[str, list[str]] = {"The usual keys": [declared[name].help_line(name) for name in usual]}
    lines: list[str] = []
    for name, k in KEYS.items():
        lines = groups.setdefault(k.group, []) if k.group else lines
        lines += [] if name in usual else [k.help_line(name)]
    for choosing, what in _OWNERS.items():
        groups[f"Keys of one {what} or several; those of another {what} than the one that runs have no effect"] = [
            f"{k.help_line(name)}\n      of: {', '.join(owners)}" for name, k, owners in keys_by_owner(choosing)]
    groups["Keys of a data-set section (gta5, synthia, cityscapes, or a name of your own with `type: folder`), set as "
           "section.key=value"] = [k.help_line(name) for name, k in SECTION_KEYS.items()]
    shown = ["\n".join([textwrap.fill(f"{title}:", HELP_WIDTH), *lines]) for title, lines in groups.items() if lines]
    return "\n\n".join([*shown, textwrap.fill(f"Accepted without effect: {', '.join(NO_EFFECT)}.", HELP_WIDTH)])


def keys_by_owner(choosing: str) -> list[tuple[str, Key, list[str]]]:
    """(name, key, names of the classes that declare it) for all keys of the methods or of the networks.

    choosing: "method" or "model". A key that is declared differently, with another default, say, comes once for each.
    """
    found: list[tuple[str, Key, list[str]]] = []
    for owner, cls in known_classes(choosing).items():
        for name, k in cls.keys.items():
            same = next((entry for entry in found if entry[:2] == (name, k)), None)
            if same:
                same[2].append(owner)
            else:
                found.append((name, k, [owner]))
    names = [name for name, *_ in found]
    return sorted(found, key=lambda entry: names.index(entry[0]))


def _target_methods():
    return [name for name, cls in known_classes("method").items() if not cls.needs_source]


def _chosen(content: dict, where: str, overrides: Sequence[str]) -> dict[str, str]:
    """The values of `method` and `model` from the file's content and the `key=value` words."""
    chosen = {}
    for name in _OWNERS:
        if name in content:
            chosen[name] = KEYS[name].read(content[name], f"{where}: {name}")
        for word in overrides:
            if word.startswith(f"{name}="):
                chosen[name] = KEYS[name].read_text(word.partition("=")[2], name)
    return chosen


class _Tree:
    """The values that the file and the words give, read by the declarations of the keys.

    chosen: the values of `method` and `model`. After reading, `given` has the general keys and those of the chosen
    classes, `sections` the data-set sections, `ignored` and `other` what has no effect.
    """

    def __init__(self, where: str, chosen: dict[str, str]):
        self.where, self.given, self.ignored = where, {}, []
        self.sections = {name: dict(d) for name, d in SECTION_DEFAULTS.items()}
        self.own: dict[str, Key] = {}  # keys of the chosen classes
        self.others: dict[str, Key] = {}  # keys of all methods and networks
        self.owners: dict[str, list[str]] = {}  # name of such a key -> the classes that declare it
        self.other: dict[str, str] = {}  # given key without effect -> the classes that it belongs to, in words
        for choosing in _OWNERS:
            name = chosen.get(choosing, KEYS[choosing].default)
            cls = find_class(choosing, name)
            if clash := next((k for k in cls.keys if k in KEYS or k in self.own or k in NO_EFFECT
                               or k in self.sections), None):
                raise ConfigError(f"{choosing}: {name} declares the key {clash!r}, which exists already: rename it.")
            self.own |= cls.keys
        for choosing in _OWNERS:
            for name, k, owners in keys_by_owner(choosing):
                self.others.setdefault(name, k)
                self.owners.setdefault(name, []).extend(owners)

    def enter(self, name, value):
        """Read one top-level entry of the file: a key, a section, or a key without effect."""
        where = self.where
        if found := self._key(name):
            self._set(name, found.read(value, f"{where}: {name}"))
        elif name in NO_EFFECT:
            self.ignored.append(name)
        elif isinstance(value, Mapping) and (name in self.sections or "type" in value):
            section = self.sections.setdefault(name, {})
            for inner, content in value.items():
                section[inner] = _section_key(inner, name, where).read(content, f"{where}: {name}.{inner}")
        elif name in self.sections:
            raise ConfigError(f"{where}: {name}: expected a section with keys such as data_dir, found {value!r}.")
        else:
            also = "; a data set of your own needs its `type`" if isinstance(value, Mapping) else ""
            raise ConfigError(f"{where}: unknown key {str(name)!r}{nearest(name, self._names())}{also}.")

    def override(self, word):
        """Read one `key=value` word of the command line."""
        name, equals, text = word.partition("=")
        if not equals:
            hint = f"; a configuration is given as --config {word}" if word.endswith((".yml", ".yaml")) else ""
            raise ConfigError(f"{word!r}: expected key=value, such as batch_size=2{hint}.")
        section, dot, inner = name.partition(".")
        if name in NO_EFFECT:
            self.ignored.append(name)
        elif dot and section in self.sections:
            self.sections[section][inner] = _section_key(inner, section, word).read_text(text, name)
        elif found := self._key(name):
            self._set(name, found.read_text(text, name))
        else:
            known = (*self._names(), *(f"{s}.{k}" for s in self.sections for k in SECTION_KEYS))
            raise ConfigError(f"{word!r}: unknown key {name!r}{nearest(name, known)}.")

    def _key(self, name: Any) -> Key | None:
        return next((keys[name] for keys in (KEYS, self.own, self.others) if name in keys), None)

    def _set(self, name, value):
        if name in KEYS or name in self.own:
            self.given[name] = value
        else:
            owners = self.owners[name]
            self.other[name] = f"of {', '.join(owners[:3])}{' and others' if owners[3:] else ''}"

    def _names(self):
        return (*KEYS, *self.own, *self.others, *self.sections, *NO_EFFECT)


def _section_key(inner, section, where):
    if inner not in SECTION_KEYS:
        raise ConfigError(f"{where}: unknown key {section}.{inner}{nearest(inner, SECTION_KEYS)}.")
    return SECTION_KEYS[inner]


def _section(name, content):
    needed = ("type", "data_dir", "input_size") + (("images", "classes") if content["type"] == "folder" else ())
    for inner in needed:
        if content.get(inner) is None:
            raise ConfigError(f"{name}.{inner}: missing; a section of type {content['type']} needs "
                              f"{', '.join(needed)}.")
    return DataConfig(**content)
