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
from utils.config_keys import KEYS, NO_EFFECT, ROUNDS_ONLY, SECTION_DEFAULTS, SECTION_KEYS, Config, DataConfig
from utils.config_values import nearest
from utils.errors import ConfigError

# Keys that may differ when a run is resumed: they change no result, or only where it is computed and written.
MAY_CHANGE = ("train", "device", "multigpu", "resume", "overwrite", "restore_from", "init_weight", "init_input",
              "fix_seed", "checkpointing", "score_budget", "worker", "on_bad_sample", "print_freq", "save_freq", "keep",
              "val", "val_freq", "tensorboard", "screen", "snapshot", "result", "log", "plabel", "plabel_accuracy")
SECTION_MAY_CHANGE = ("data_dir", "data_list", "data_list_val", "images", "labels", "palette")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = (), **fixed) -> Config:
    """Read a YAML file, set the `key=value` words (nested keys with dots) in order, then `fixed`, and check it all.

    Raises ConfigError that names the file or word, the key, what was found and what was expected.
    """
    return parse_config(values.read_text(path), str(path), overrides, **fixed)


def parse_config(text: str, where: str, overrides: list[str] | tuple[str, ...] = (), **fixed) -> Config:
    """`load_config` of a YAML text; `where` names it in messages."""
    tree = {"top": {}, "sections": {name: dict(d) for name, d in SECTION_DEFAULTS.items()}, "ignored": []}
    for name, value in values.parse_yaml(text, where).items():
        _enter(tree, where, name, value)
    for word in overrides:
        _override(tree, word)
    sections = MappingProxyType({name: _section(name, content) for name, content in tree["sections"].items()})
    given = {**tree["top"], **fixed}
    cfg = Config(**given, sections=sections, ignored_keys=tuple(dict.fromkeys(tree["ignored"])),
                 given_keys=frozenset(given))
    if not cfg.fix_seed and not cfg.resume:
        cfg = with_drawn_seed(cfg)
    _check(cfg)
    return cfg


def with_drawn_seed(cfg: Config) -> Config:
    """The configuration with a fresh seed, fixed from now on."""
    return dataclasses.replace(cfg, seed=secrets.randbelow(2**31), fix_seed=True)


def differences(saved: Config, now: Config) -> list[str]:
    """`key: was x, is y` of every key whose change would make a resumed run another one than the saved one."""
    def compare(names, old, new, prefix=""):
        return [f"{prefix}{name}: was {values.plain(getattr(old, name))}, is {values.plain(getattr(new, name))}"
                for name in names if getattr(old, name) != getattr(new, name)]
    found = compare([name for name in KEYS if name not in MAY_CHANGE], saved, now)
    for side in ("source", "target") if now.method == "source_only" else ("target",):
        name = getattr(now, side)
        if name == getattr(saved, side):
            found += compare([k for k in SECTION_KEYS if k not in SECTION_MAY_CHANGE], saved.section(name),
                             now.section(name), f"{name}.")
    return found


def to_yaml(cfg: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    tree = {name: values.plain(getattr(cfg, name)) for name in KEYS}
    tree |= {name: {k: values.plain(getattr(section, k)) for k in SECTION_KEYS if getattr(section, k) is not None}
             for name, section in cfg.sections.items()}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def config_remarks(cfg: Config) -> list[str]:
    """What a reader of the configuration may not expect: keys without effect, a stage that nobody named."""
    lines = []
    if cfg.ignored_keys:
        lines.append(f"no effect on LDBE, ignored: {', '.join(cfg.ignored_keys)}")
    idle = [name for name in ROUNDS_ONLY if name in cfg.given_keys] if cfg.method == "source_only" else []
    if idle:
        lines.append(f"no effect on stage 0, which has num_steps steps and no rounds: {', '.join(idle)}")
    if "method" not in cfg.given_keys:
        lines.append(f"method is not given, {cfg.method} is run: set method to ld or be")
    return lines


def config_help() -> str:
    """Every key with type, default and meaning, by group."""
    lines = []
    for name, declared in KEYS.items():
        if declared.group:
            lines.append(f"\n{declared.group}:")
        lines.append(declared.help_line(name))
    lines.append("\nA data-set section (gta5, synthia, cityscapes, or a name of your own with `type: folder`), set as "
                 "section.key=value:")
    lines += [declared.help_line(name) for name, declared in SECTION_KEYS.items()]
    lines.append(f"\nAccepted without effect: {', '.join(NO_EFFECT)}.")
    return "\n".join(lines).strip("\n")


def _enter(tree, where, name, value):
    """Take one top-level entry of a file: a key, a section, or one without effect."""
    if name in KEYS:
        tree["top"][name] = KEYS[name].read(value, f"{where}: {name}")
    elif name in NO_EFFECT:
        tree["ignored"].append(name)
    elif isinstance(value, Mapping) and (name in tree["sections"] or "type" in value):
        section = tree["sections"].setdefault(name, {})
        for inner, content in value.items():
            section[inner] = _section_key(inner, name, where).read(content, f"{where}: {name}.{inner}")
    elif name in tree["sections"]:
        raise ConfigError(f"{where}: {name}: expected a section with keys such as data_dir, found {value!r}.")
    else:
        also = "; a data set of your own needs its `type`" if isinstance(value, Mapping) else ""
        known = (*KEYS, *tree["sections"], *NO_EFFECT)
        raise ConfigError(f"{where}: unknown key {str(name)!r}{nearest(name, known)}{also}.")


def _override(tree, word):
    name, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r}: expected key=value, such as batch_size=2.")
    section, dot, inner = name.partition(".")
    if name in NO_EFFECT:
        tree["ignored"].append(name)
    elif dot and section in tree["sections"]:
        tree["sections"][section][inner] = _section_key(inner, section, word).read_text(text, name)
    elif name in KEYS:
        tree["top"][name] = KEYS[name].read_text(text, name)
    else:
        known = (*KEYS, *tree["sections"], *(f"{s}.{k}" for s in tree["sections"] for k in SECTION_KEYS))
        raise ConfigError(f"{word!r}: unknown key {name!r}{nearest(name, known)}.")


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
    require(cfg.method != "be" or cfg.batch_size >= 2,
            "batch_size: 1 is too small for method be, which mixes each image of a batch with the next; use 2 or more.")
    require(cfg.method == "source_only" or cfg.round_start < cfg.round,
            f"round_start: {cfg.round_start} leaves nothing to run of the {cfg.round} rounds from 0 on; use less.")
    for side in ("source", "target"):
        name = getattr(cfg, side)
        require(name in cfg.sections, f"{side}: no data-set section {name!r}{nearest(name, cfg.sections)}; "
                f"there are {', '.join(cfg.sections)}.")
        _check_section(cfg, name, require)
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
        return
    labelled = len(section.classes)
    require(labelled == count or by_protocols, f"{name}.classes: {labelled} names for num_classes {count}" + (
        f": {name}.protocols must say which of the network's classes count as each." if name == cfg.target else
        ": the source's labels must have the network's classes; if it is not used, set source to the target's name."))
    require(labelled <= 255, f"{name}.classes: {labelled} names, at most 255 can be told apart.")
    for label_id, train_id in (section.label_ids or {}).items():
        require(0 <= label_id < 65536 and 0 <= train_id < labelled, f"{name}.label_ids: {label_id}: {train_id} is "
                f"outside 0..65535: 0..{labelled - 1}.")
    if section.palette is not None:
        require(len(section.palette) == labelled and all(len(c) == 3 for c in section.palette),
                f"{name}.palette: expected {labelled} colours of 3 numbers.")


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
