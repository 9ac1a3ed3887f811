"""Reading YAML files and `key=value` words into the declared keys, checking them, writing and comparing them. A loaded
configuration is read-only."""
import dataclasses
import re
import secrets
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Mapping

import yaml

from utils import config_values as values
from utils.config_keys import (
    KEYS, NO_EFFECT, SECTION_DEFAULTS, SECTION_KEYS, Config, DataConfig, find_class, known_classes)
from utils.config_values import Key, nearest
from utils.errors import ConfigError

_OWNERS = {"method": "method", "model": "network"}  # key that chooses a class -> what the class is


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = (), **fixed) -> Config:
    """Read a YAML file, set the `key=value` words (nested keys with dots) in order, then `fixed`, and check it all.

    Raises ConfigError that names the file or word, the key, what was found and what was expected.
    """
    return parse_config(values.read_text(path), str(path), overrides, **fixed)


def parse_config(text: str, where: str, overrides: list[str] | tuple[str, ...] = (), **fixed) -> Config:
    """`load_config` of a YAML text; `where` names it in messages."""
    content = values.parse_yaml(text, where)
    tree = _Tree(where, {**_chosen(content, where, overrides), **fixed})
    for name, value in content.items():
        tree.enter(name, value)
    for word in overrides:
        tree.override(word)
    sections = MappingProxyType({name: _section(name, content) for name, content in tree.sections.items()})
    given = {**tree.given, **fixed}
    own = {name: given.pop(name, k.default) for name, k in tree.own.items()}
    cfg = Config(**given, sections=sections, options=MappingProxyType(own),
                 ignored_keys=tuple(dict.fromkeys(tree.ignored)), other_keys=MappingProxyType(tree.other),
                 given_keys=frozenset({**tree.given, **fixed}))
    if not cfg.fix_seed and not cfg.resume:
        cfg = with_drawn_seed(cfg)
    _check(cfg)
    for chosen in (cfg.method_class, cfg.network_class):
        chosen.check(cfg)
    return cfg


def with_drawn_seed(cfg: Config) -> Config:
    """The configuration with a fresh seed, fixed from now on."""
    return dataclasses.replace(cfg, seed=secrets.randbelow(2**31), fix_seed=True)


def differences(saved: Config, now: Config) -> list[str]:
    """`key: was x, is y` of every key whose change would make a resumed run another one than the saved one."""
    def compare(keys, old, new, prefix=""):
        return [f"{prefix}{name}: was {values.plain(old(name))}, is {values.plain(new(name))}"
                for name, k in keys.items() if not k.may_change and old(name) != new(name)]
    found = compare(KEYS, saved.value, now.value)
    if (saved.method, saved.model) == (now.method, now.model):  # others have other keys
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
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    tree = {name: values.plain(cfg.value(name)) for name in (*KEYS, *cfg.options)}
    tree |= {name: {k: values.plain(getattr(section, k)) for k in SECTION_KEYS if getattr(section, k) is not None}
             for name, section in cfg.sections.items()}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def config_remarks(cfg: Config) -> list[str]:
    """What a reader of the configuration may not expect: keys without effect, a method that was not given."""
    lines = []
    if cfg.ignored_keys:
        lines.append(f"no effect on LDBE, ignored: {', '.join(cfg.ignored_keys)}")
    if cfg.other_keys:
        idle = ", ".join(f"{name} ({owners})" for name, owners in cfg.other_keys.items())
        lines.append(f"no effect on method {cfg.method} with model {cfg.model}: {idle}")
    if "method" not in cfg.given_keys:
        lines.append(f"method is not given, {cfg.method} is run: set method to one of {', '.join(_target_methods())}")
    return lines


def config_help() -> str:
    """Every key with type, default and meaning, by group."""
    lines = []
    for name, declared in KEYS.items():
        if declared.group:
            lines.append(f"\n{declared.group}:")
        lines.append(declared.help_line(name))
    for choosing, what in _OWNERS.items():
        lines.append(f"\nKeys of one {what} or several; those of another {what} than the one that runs have no effect:")
        lines += [f"{k.help_line(name)}\n      of: {', '.join(owners)}" for name, k, owners in keys_by_owner(choosing)]
    lines.append("\nA data-set section (gta5, synthia, cityscapes, or a name of your own with `type: folder`), set as "
                 "section.key=value:")
    lines += [declared.help_line(name) for name, declared in SECTION_KEYS.items()]
    lines.append(f"\nAccepted without effect: {', '.join(NO_EFFECT)}.")
    return "\n".join(lines).strip("\n")


def keys_by_owner(choosing: str) -> list[tuple[str, Key, list[str]]]:
    """(name, key, who declares it so) of the keys of all methods (`method`) or networks (`model`); a name whose default
    differs among them comes once for each."""
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


def _chosen(content, where, overrides) -> dict[str, str]:
    """The values of `method` and `model` in a file's content and the words behind it."""
    chosen = {}
    for name in _OWNERS:
        if name in content:
            chosen[name] = KEYS[name].read(content[name], f"{where}: {name}")
        for word in overrides:
            if word.startswith(f"{name}="):
                chosen[name] = KEYS[name].read_text(word.partition("=")[2], name)
    return chosen


class _Tree:
    """What a file and words give, read by the keys' declarations. chosen: the values of `method` and `model`."""

    def __init__(self, where: str, chosen: dict[str, str]):
        self.where, self.given, self.ignored = where, {}, []
        self.sections = {name: dict(d) for name, d in SECTION_DEFAULTS.items()}
        self.own: dict[str, Key] = {}
        self.others: dict[str, Key] = {}
        self.owners: dict[str, list[str]] = {}
        self.other: dict[str, str] = {}
        for choosing, what in _OWNERS.items():
            name = chosen.get(choosing, KEYS[choosing].default)
            cls = find_class(choosing, name)
            if clash := next((k for k in cls.keys if k in KEYS or k in self.own or k in NO_EFFECT), None):
                raise ConfigError(f"{choosing}: {name} declares the key {clash!r}, which exists already: rename it.")
            self.own |= cls.keys
        for choosing, what in _OWNERS.items():
            for name, k, owners in keys_by_owner(choosing):
                self.others.setdefault(name, k)
                self.owners.setdefault(name, []).extend(owners)

    def enter(self, name, value):
        """Take one top-level entry of the file: a key, a section, or one without effect."""
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
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: expected key=value, such as batch_size=2.")
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

    def _key(self, name) -> Key | None:
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


def _check(cfg):
    """Conditions between keys."""
    def require(condition, message):
        if not condition:
            raise ConfigError(message)
    require(cfg.note not in ("", ".", "..") and not set(cfg.note) & set("/\\"),
            f"note: {cfg.note!r} is no plain folder name.")
    require(not cfg.multigpu, "multigpu: True is not available in this version; set it to False.")
    require(cfg.restore_from is None, f"restore_from: {cfg.restore_from!r} is not used; give the file as init_weight.")
    for side in ("source", "target"):
        name = getattr(cfg, side)
        require(name in cfg.sections, f"{side}: no data-set section {name!r}{nearest(name, cfg.sections)}; "
                f"there are {', '.join(cfg.sections)}.")
        _check_section(cfg, name, require)
    require(not cfg.method_class.needs_source or cfg.source_data.bands == cfg.target_data.bands,
            f"{cfg.target}.bands: {cfg.target_data.bands}, but {cfg.source}.bands is {cfg.source_data.bands}; the "
            "network is trained on the one and validated on the other, so both need the same.")
    folders = [s for s in (cfg.source_data, cfg.target_data) if s.type == "folder"]
    require(len(folders) < 2 or folders[0].classes == folders[1].classes or cfg.target_data.protocols,
            f"{cfg.target}.classes: differ from {cfg.source}.classes; both data sets must have the same classes, or "
            f"{cfg.target}.protocols say which of the source's count as each.")


def _check_section(cfg, name, require):
    section, count = cfg.section(name), cfg.num_classes
    for inner in ("images", "labels"):
        pattern = PurePosixPath(getattr(section, inner) or "")
        require(not pattern.is_absolute() and ".." not in pattern.parts,
                f"{name}.{inner}: {str(pattern)!r} leaves data_dir; give a path below it.")
    _check_patterns(name, section, require)
    by_protocols = bool(section.protocols) and name == cfg.target  # labels may have other classes than the network
    if section.network_classes is not None:
        require(section.protocols, f"{name}.network_classes: has no effect without {name}.protocols; leave it out.")
        require(len(section.network_classes) == count,
                f"{name}.network_classes: {len(section.network_classes)} names for num_classes {count}.")
    if section.type != "folder":
        require(count in (19, 16, 13) or by_protocols, f"num_classes: {count} does not fit {name}, whose class sets "
                f"are 19, 16 and 13; {name}.protocols can score other classes, where {name} is the target.")
        for inner in ("images", "labels", "classes", "label_ids", "palette"):
            require(getattr(section, inner) is None, f"{name}.{inner}: a section of type {section.type} has its own "
                    "files, classes and ids; leave the key out, or give the section `type: folder` and all keys of it.")
        require(section.bands == 3 and section.value_range is None, f"{name}.bands, {name}.value_range: a section of "
                f"type {section.type} has 8-bit RGB images; leave both out, or give the section `type: folder`.")
        return
    _check_range(name, section, require)
    labelled = len(section.classes)
    require(labelled == count or by_protocols, f"{name}.classes: {labelled} names for num_classes {count}" + (
        f": {name}.protocols must say which of the network's classes count as each." if name == cfg.target else
        ": the source's labels must have the network's classes; if it is not used, set source to the target's name."))
    require(labelled <= 255, f"{name}.classes: {labelled} names, at most 255 can be told apart.")
    for label_id, train_id in (section.label_ids or {}).items():
        require(0 <= label_id < 65536 and (0 <= train_id < labelled or train_id == 255), f"{name}.label_ids: {label_id}"
                f": {train_id}: expected an id in 0..65535 and a train id in 0..{labelled - 1}, or 255 to ignore it.")
    if section.palette is not None:
        require(len(section.palette) == labelled and all(len(c) == 3 for c in section.palette),
                f"{name}.palette: expected {labelled} colours of 3 numbers.")


def _check_range(name, section, require):
    values = section.value_range or (0, 1)
    require(len(values) in (2, 2 * section.bands), f"{name}.value_range: expected low, high, or low, high of each of "
            f"the {section.bands} bands ({2 * section.bands} numbers), found {len(values)} numbers.")
    for low, high in zip(values[::2], values[1::2]):
        require(low < high, f"{name}.value_range: expected low below high, found {low}, {high}.")


def _check_patterns(name, section, require):
    """That `{split}`, `{name}` and `*` stand in images and labels where they mean something."""
    stars = {}
    for inner in ("images", "labels"):
        pattern = getattr(section, inner) or ""
        unknown = [field for field in re.findall(r"{[^{}]*}?|}", pattern) if field not in ("{split}", "{name}")]
        require(not unknown, f"{name}.{inner}: {pattern!r} holds {unknown and unknown[0]!r}; only {{split}} and "
                "{name} are filled in.")
        before, _, after = pattern.partition("{name}")
        stars[inner] = before.split("/").count("*")
        require("{name}" not in after, f"{name}.{inner}: {pattern!r} holds {{name}} twice; give it once.")
        require(stars[inner] == pattern.count("*"), f"{name}.{inner}: in {pattern!r} a * is not one whole folder "
                "before {name}, as in 'images/*/{split}/{name}.png'.")
    require(not section.labels or stars["images"] == stars["labels"],
            f"{name}.labels: {section.labels!r} has {stars['labels']} *, {name}.images {stars['images']}: give both as "
            "many, since what a * stands for in an image's path is put in for that of its label.")
