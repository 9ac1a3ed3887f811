"""What is found of images, labels and a checkpoint, and the data-set section that says it."""
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataset import labels
from dataset.layout import Layout, find_layout, neighbour
from dataset.segmentation import Sample, find_split
from dataset.survey import Images, Labels, look_like_labels, meaning, survey_images, survey_labels
from dataset.template import SECTION, yaml_of
from utils.checkpoint import write_atomically
from utils.config_keys import DataConfig, Recognised
from utils.errors import ConfigError, DataError

_LOOKED_AT = 12  # images that might be labels
_ROLES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # names of folders, in lower case -> what their images are for


@dataclass
class Found:
    """What was found, and what is said about it. train, val: the images of both splits, which may be the same ones.
    lists: lists of images that are to be written, file -> text."""

    layout: Layout
    train: Sequence[Sample]
    val: Sequence[Sample]
    images: Images
    labels: Labels
    checkpoint: Recognised
    remarks: list[str]
    lists: dict[Path, str] = field(default_factory=dict)

    def write_lists(self) -> None:
        """Write the lists, and say so in the remarks. Raises CheckpointError if the disk refuses."""
        for file, text in self.lists.items():
            _write(file, text.encode())
            self.remarks.append(f"wrote {file}: {text.count(chr(10))} images")


def look(images: str, labels_: str | None, told: Recognised) -> Found:
    """Find images and labels, and what they hold. told: what the checkpoint tells."""
    layout = find_layout(images, labels_)
    train, remarks = _samples(layout, "train")
    val, more = _samples(layout, "val") if layout.splits else (train, [])
    if not train and layout.splits:  # val alone: it is adapted to as well
        layout = replace(layout, images=layout.images.replace("{split}", "val"),
                         labels=layout.labels and layout.labels.replace("{split}", "val"))
        train, more = _samples(layout, "train")
        val = train
    every = list({s.image: s for s in (*train, *val)}.values())
    found = Found(layout, train, val, survey_images(every), survey_labels(every), told,
                  [*told.remarks, *dict.fromkeys([*remarks, *more])])
    _require_photographs(images, every)
    if found.labels.there and not found.labels.read:
        raise DataError(found.labels.unreadable[0])
    for what, faults in (("images", found.images.unreadable), ("labels", found.labels.unreadable)):
        if faults:
            found.remarks.append(f"{what} that cannot be read: {len(faults)} of those looked at, the first: "
                                 f"{faults[0]}")
    if not layout.splits and (other := neighbour(images)):
        found.remarks.append(f"beside {images} there is {other}: --images {other.parent} takes both")
    return found


def _samples(layout, split):
    section = DataConfig(type="folder", data_dir=layout.data_dir, images=layout.images, labels=layout.labels,
                         input_size=(8, 8), classes=("a", "b"))
    return find_split(SECTION, section, split, required=False)


def _require_photographs(images, samples):
    """Raise DataError if a quarter of the images looks like labels."""
    suspects, count = look_like_labels(samples, _LOOKED_AT), min(_LOOKED_AT, len(samples))
    if suspects and 4 * len(suspects) >= count:
        raise DataError(f"--images: {len(suspects)} of {count} pictures looked at in {images!r} look like labels (one "
                        f"channel of few values), such as {suspects[0].image}: give the folder of the photographs as "
                        "--images, and that of the labels as --labels.")


# ---- the data-set section --------------------------------------------------------------------------------------------

def section_of(found: Found, names: Sequence[str], lists: str | None) -> tuple[dict[str, Any], dict[str, str], int]:
    """The section's values but for input_size, comments on them, and the number of the network's classes.

    names: of these classes, as given. lists: folder for lists of images. Remarks are added to those of `found`.
    """
    layout, told, images = found.layout, found.checkpoint, found.images
    section: dict[str, Any] = {"type": "folder", "data_dir": layout.data_dir, "images": layout.images}
    notes = {"images": "train is adapted to, val is scored where it has labels" if layout.splits else
             "all of them are adapted to, and scored where they have labels"}
    count = told.keys.get("num_classes") or len(names) or None
    if names and count != len(names):
        raise ConfigError(f"--classes: {len(names)} names, but the checkpoint has {count} classes: name the network's, "
                          "in their order (docs/class-sets.md: labels with other classes).")
    meant = meaning(found.labels, count) if found.labels.read else None
    count = count or (meant.count if meant else 19)
    scored = _enter_lists(found, section, lists)
    if found.labels.there:
        _enter_labels(found, meant, scored, section, notes, lists)
    if images.bands != 3:
        section["bands"], notes["bands"] = images.bands, "the network must take as many: docs/own-network.md"
        found.remarks.append(f"images have {images.bands} bands, and deeplab takes 3: set model to a network that "
                             "takes as many")
    if images.value_range:
        section["value_range"] = list(images.value_range)
        notes["value_range"] = "become 0 and 255; found in a sample, so check it (docs/own-data.md)"
    known = told.section.get("classes") or (meant.names if meant else None)
    section["classes"] = list(names or known or _default_names(count))
    if not names and not known:
        notes["classes"] = "the usual street classes, as their number fits: check them" \
            if count in labels.STREET_PROTOCOLS else "SET THIS: their names, which tables and pictures show (--classes)"
        if count not in labels.STREET_PROTOCOLS:
            found.remarks.append("the names of the classes are not known: set classes, or give --classes")
    if "palette" in told.section and not names:
        section["palette"] = told.section["palette"]
    return section, notes, count


def _default_names(count):
    return labels.street_class_set(count).names if count in labels.STREET_PROTOCOLS else [
        f"class {c}" for c in range(count)]


def _enter_lists(found, section, lists):
    """Enter lists where folders are called as splits, but not as `{split}` needs it. Returns the images to score."""
    if found.layout.splits:
        return found.val
    by_role = {role: [] for role in ("train", "val", "test", "")}
    for sample in found.train:
        folders = sample.image.relative_to(found.layout.data_dir).parts[:-1]
        by_role[next((_ROLES[f.lower()] for f in folders if f.lower() in _ROLES), "")].append(sample)
    if not by_role["train"] or len(by_role["train"]) == len(found.train):
        return found.val
    if not lists:
        counts = ", ".join(f"{role or 'others'} {len(of)}" for role, of in by_role.items() if of)
        found.remarks.append(f"the folders' names tell what images are for ({counts}), but all are adapted to: call "
                             "the folders train and val, or give --lists DIR, into which lists of them are written")
        return found.val
    section["data_list"] = _list_of(lists, "train.txt", found, by_role["train"])
    if by_role["val"]:
        section["data_list_val"] = _list_of(lists, "val.txt", found, by_role["val"])
    found.train, found.val = by_role["train"], by_role["val"]
    return found.val


def _enter_labels(found, meant, scored, section, notes, lists):
    """Enter the labels, if they can be scored; else say why not."""
    labelled = [s for s in scored if s.label.is_file()]
    pattern, pixels = yaml_of(found.layout.labels), found.labels.pixels
    ids = "; ".join(f"{i}: {n / pixels.total():.1%}" for i, n in sorted(pixels.items())[:40])
    read = f"ids in {found.labels.read} of {found.labels.there} labels, share of pixels: {ids}"
    if meant is None:
        notes["left out"] = (f"labels: {pattern} are left out: their ids do not tell which of the network's classes "
                             f"they mean; label_ids or protocols say so (docs/class-sets.md); {read}")
    elif 0 < len(labelled) < len(scored) and not lists:
        notes["left out"] = (f"labels: {pattern} are left out: {len(labelled)} of {len(scored)} images have one, and "
                             "scoring needs a list of these: --lists DIR writes it")
    else:
        section["labels"], notes["labels"] = found.layout.labels, f"{meant.why}; {read}" if meant.why else read
        if meant.label_ids:
            section["label_ids"] = meant.label_ids
        if "check" in meant.why:
            found.remarks.append(f"labels: {meant.why}")
        if 0 < len(labelled) < len(scored):
            section["data_list_val"] = _list_of(lists, "val.txt", found, labelled)
        return
    found.remarks.append(notes["left out"])


def _list_of(folder, name, found, samples):
    """Prepare a list of images, by their paths below data_dir; returns its path."""
    lines = [s.image.relative_to(found.layout.data_dir).as_posix() for s in samples]
    if odd := next((line for line in lines if not line.isprintable()), None):
        raise DataError(f"--lists: {odd!r} cannot be named in a list: rename the file.")
    file = Path(folder) / name
    found.lists[file] = "".join(f"{line}\n" for line in lines)
    return str(file) if file.is_absolute() else f"./{os.path.normpath(file)}"


def _write(file, content):
    write_atomically(file, lambda opened: opened.write(content))
