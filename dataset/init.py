"""Look at images, labels and a checkpoint, and write a complete configuration for them.

    python -m dataset.init --images DIR [--labels DIR] [--checkpoint CKPT] > mine.yml

Then: python -m dataset.check --config mine.yml, python run.py --config mine.yml --dry-run. The settings are those of
config/own_config.yml; what was found is filled in, with comments on what to check. Remarks and errors go to stderr.
"""
import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dataset.own_section import look, section_of
from dataset.sizing import sizes_for, steps_for
from dataset.template import filled
from utils.cli import OneLineParser, guarded, leave, path, tolerant_output
from utils.config import parse_config
from utils.config_keys import Recognised, recognise
from utils.errors import ConfigError, one_line
from utils.memory import available_memory

_SHOWN = 3  # sizes, kinds and the like that a comment lists
_ORDER = ("type", "data_dir", "images", "labels", "data_list", "data_list_val", "input_size", "bands", "value_range",
          "label_ids", "palette", "classes")


def configuration(given: argparse.Namespace) -> tuple[str, list[str]]:
    """The text of the configuration, and remarks. Raises a UserError if something is not there or cannot be read."""
    checkpoint = given.checkpoint
    if not checkpoint and given.model and given.model.startswith("hf/"):
        checkpoint = given.model.removeprefix("hf/")
    told = recognise(checkpoint, given.model) if checkpoint else Recognised({}, {}, ())
    found = look(given.images, given.labels, told)
    section, notes, count = section_of(found, _names(given.classes), given.lists)
    values, comments = _network(given, found, count)
    weight = None if given.model else found.checkpoint.weight
    sizes = sizes_for(found.images.sizes, memory := _memory(given.memory), weight or 1.0)
    if not sizes.fits:
        found.remarks.append(f"training takes about {sizes.memory / 2**30:.1f} GiB at its least, more than is there "
                             f"({memory / 2**30:.1f} GiB): use a smaller network, or another machine")
    section["input_size"] = list(sizes.input_size)
    text = filled(_header(given, found), {**values, **_training(found, sizes, comments, weight)}, comments,
                  {key: section[key] for key in _ORDER if key in section}, notes)
    parse_config(text, "the configuration found")
    found.write_lists()
    return text, found.remarks


def _training(found, sizes, comments, weight):
    """The keys of sizes and steps."""
    epochs, steps = steps_for(len(found.train), sizes.batch_size)
    values = {"input_tgt": sizes.input_tgt, "crop_tgt": sizes.crop_tgt, "batch_size": sizes.batch_size,
              "epochs": epochs, "num_steps": steps}
    comments["batch_size"] = f"about {sizes.memory / 2**30:.1f} GiB" + (
        "" if weight else " with a ResNet-101") + " at this crop_tgt; run.py --dry-run measures it"
    if sizes.input_size[0] < sizes.input_size[1]:
        comments["input_tgt"] = "the width in input_size below: crops at the scale at which images are labelled"
    if sizes.checkpointing:
        values["checkpointing"], comments["checkpointing"] = True, "less than half the memory, a quarter slower"
    return values


def _names(words: Sequence[str]) -> list[str]:
    """Names of classes: the lines of a file, or the words, which may have commas between them."""
    if len(words) == 1 and os.path.isfile(words[0]):
        try:
            lines = Path(words[0]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--classes: {words[0]!r} cannot be read ({error}): give a text file in UTF-8, with one "
                              "name a line.") from None
        return [line.strip() for line in lines if line.strip()]
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if len(names) == 1:
        raise ConfigError(f"--classes: no file {names[0]!r}, and a single name is not enough: check the path, or give "
                          "all names.")
    return names


def _memory(gib: float | None) -> float:
    """Bytes of memory for the network: as given, of the GPU if there is one, or of the machine."""
    if gib is not None:
        if not 0 < gib < float("inf"):
            raise ConfigError(f"--memory: expected a number of GiB above 0, found {gib:g}.")
        return gib * 2**30
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory()


def _network(given, found, count):
    """The keys of the network, and comments on them."""
    told = found.checkpoint.keys
    other = given.model and given.model != told.get("model")  # whose keys are not those of the checkpoint's network
    values = {k: v for k, v in told.items() if not other or k in ("init_weight", "num_classes")}
    comments = {key: "as the checkpoint has it" for key in values if key not in ("model", "init_weight")}
    if given.model:
        values["model"] = given.model
    if "init_weight" not in values:
        comments["init_weight"] = "SET THIS: the checkpoint of your network"
        values["init_weight"] = "source_only.pth"
        found.remarks.append("no --checkpoint: set init_weight to that of your network, and num_classes and classes "
                             "to its own")
    if "num_classes" not in values and not given.classes:
        comments["num_classes"] = "SET THIS, and classes below: those of your network"
    values["num_classes"] = count
    if "model" not in values and found.checkpoint.keys:
        values["model"], comments["model"] = "deeplab", "SET THIS: the checkpoint is of another network"
    return values, comments


def _header(given, found):
    """The first lines of the configuration."""
    images = found.images
    def most(counter, name=str):
        return ", ".join(f"{name(k)} ({n})" for k, n in counter.most_common(_SHOWN)) + (
            ", ..." if len(counter) > _SHOWN else "")
    def text(size):
        return f"{size[0]}x{size[1]}"
    ordered = sorted(images.sizes, key=lambda size: size[0] * size[1])
    read = "" if images.read == images.total else f" (of {images.read} that were looked at)"
    splits = f": {len(found.train)} in train, {len(found.val)} in val" if found.layout.splits else ""
    return ["Written by python -m dataset.init after looking at the files. Settings that are robust, in place of the "
            "paper's: config/own_config.yml.",
            "  python -m dataset.check --config mine.yml      # reads everything",
            "  python run.py --config mine.yml --dry-run      # tries everything: time, memory, disk",
            "  python run.py --config mine.yml",
            f"{images.total} images in {given.images}{splits}; {most(images.kinds)}; sizes{read}: "
            f"{most(images.sizes, text)}"
            + (f", from {text(ordered[0])} to {text(ordered[-1])}" if len(ordered) > 1 else "")
            + f"; channels: {most(images.channels)}; {'more than 8' if images.deep else '8'} bits.",
            "Whether the run has helped is said at its end (`verdict:`): take snapshot/mine/ld_chosen.pth. `python "
            "run.py --help` lists every key."]


def main(arguments: list[str] | None = None) -> int:
    """The command-line program; returns its exit code."""
    tolerant_output()
    options = OneLineParser(prog="python -m dataset.init", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", required=True, type=path, metavar="DIR", help="folder of the images, or above "
                         "train/ and val/ with images")
    options.add_argument("--labels", type=path, metavar="DIR", help="folder of labels; may be that of the images")
    options.add_argument("--checkpoint", type=path, metavar="CKPT", help="the network to adapt: a file or a folder")
    options.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="names of the network's classes, or "
                         "a file with one a line")
    options.add_argument("--model", type=path, metavar="NAME", help="network, as the key model (default: what the "
                         "checkpoint tells)")
    options.add_argument("--memory", type=float, metavar="GIB", help="memory for training (default: what is free)")
    options.add_argument("--lists", type=path, metavar="DIR", help="folder for lists of images, where they are needed")
    options.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = options.parse_args(arguments)

    def run():
        text, remarks = configuration(given)
        for remark in remarks:
            print(one_line(remark), file=sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # as configurations are read
        print(text, end="")
    return guarded(run, given.debug)


if __name__ == "__main__":
    leave(main())
