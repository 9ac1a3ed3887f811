"""Conditions between configuration keys, which the declaration of a single key cannot express."""
import re
from pathlib import PurePosixPath

from utils import distributed
from utils.config_keys import Config, DataConfig
from utils.config_values import nearest
from utils.errors import ConfigError


def check_rules(cfg: Config) -> None:
    """Raise ConfigError, naming the key, if keys of the configuration do not go together."""
    require(cfg.note not in ("", ".", "..") and not set(cfg.note) & set("/\\"),
            f"note: {cfg.note!r} is no plain folder name.")
    distributed.require_launcher(cfg.multigpu)
    require(cfg.restore_from is None, f"restore_from: {cfg.restore_from!r} is not used; give the file as init_weight.")
    for side in ("source", "target"):
        name = getattr(cfg, side)
        require(name in cfg.sections, f"{side}: no data-set section {name!r}{nearest(name, cfg.sections)}; "
                f"there are {', '.join(cfg.sections)}.")
        _check_section(cfg, name)
    require(not cfg.method_class.needs_source or cfg.source_data.bands == cfg.target_data.bands,
            f"{cfg.target}.bands: {cfg.target_data.bands}, but {cfg.source}.bands is {cfg.source_data.bands}; the "
            "network is trained on the one and validated on the other, so both need the same.")
    folders = [s for s in (cfg.source_data, cfg.target_data) if s.type == "folder"]
    require(len(folders) < 2 or folders[0].classes == folders[1].classes or cfg.target_data.protocols,
            f"{cfg.target}.classes: differ from {cfg.source}.classes; both data sets must have the same classes, or "
            f"{cfg.target}.protocols say which of the source's count as each.")


def require(condition: object, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _check_section(cfg: Config, name: str) -> None:
    section, count = cfg.section(name), cfg.num_classes
    for inner in ("images", "labels"):
        pattern = PurePosixPath(getattr(section, inner) or "")
        require(not pattern.is_absolute() and ".." not in pattern.parts,
                f"{name}.{inner}: {str(pattern)!r} leaves data_dir; give a path below it.")
    _check_patterns(name, section)
    by_protocols = bool(section.protocols) and name == cfg.target  # labels may have other classes than the network
    if section.network_classes is not None:
        require(section.protocols, f"{name}.network_classes: has no effect without {name}.protocols; leave it out.")
        require(len(section.network_classes) == count,
                f"{name}.network_classes: {len(section.network_classes)} names for num_classes {count}.")
    if section.type == "folder":
        _check_folder(cfg, name, by_protocols)
    else:
        _check_street(cfg, name, by_protocols)


def _check_street(cfg: Config, name: str, by_protocols: bool) -> None:
    section, count = cfg.section(name), cfg.num_classes
    require(count in (19, 16, 13) or by_protocols, f"num_classes: {count} does not fit {name}, whose class sets "
            f"are 19, 16 and 13; {name}.protocols can score other classes, where {name} is the target" + (
        "." if name == cfg.target else "; if the source is not used, set source to the target's name."))
    for inner in ("images", "labels", "classes", "label_ids", "palette"):
        require(getattr(section, inner) is None, f"{name}.{inner}: a section of type {section.type} has its own "
                "files, classes and ids; leave the key out, or give the section `type: folder` and all keys of it.")
    require(section.bands == 3 and section.value_range is None, f"{name}.bands, {name}.value_range: a section of "
            f"type {section.type} has 8-bit RGB images; leave both out, or give the section `type: folder`.")


def _check_folder(cfg: Config, name: str, by_protocols: bool) -> None:
    section, count = cfg.section(name), cfg.num_classes
    _check_range(name, section)
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


def _check_range(name: str, section: DataConfig) -> None:
    values = section.value_range or (0, 1)
    require(len(values) in (2, 2 * section.bands), f"{name}.value_range: expected low, high, or low, high of each of "
            f"the {section.bands} bands ({2 * section.bands} numbers), found {len(values)} numbers.")
    for low, high in zip(values[::2], values[1::2]):
        require(low < high, f"{name}.value_range: expected low below high, found {low}, {high}.")


def _check_patterns(name: str, section: DataConfig) -> None:
    """`{split}`, `{name}` and `*` may stand in images and labels only where they have a meaning."""
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
