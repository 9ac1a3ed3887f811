"""Describe a checkpoint, or convert it.

    python -m model.weights IN                      says what it holds, and how it would be loaded
    python -m model.weights IN OUT [key=value ...]  writes it to OUT: FILE.pth, FILE.safetensors, or a model folder

IN is anything that `init_weight` reads. A DeepLabV2 is recognised, and a model folder describes itself; name any other
network by --config, or by words such as model=smp/unet:resnet18 num_classes=19. A folder also holds the names of the
classes: those of IN, if that is a folder, those of the configuration's target, or the street classes where there are
19, 16 or 13.
"""
import argparse
import importlib
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.build import build_model
from model.checkpoint_file import INPUT, read_content
from model.conversion import LAYOUTS, convert, in_layout, recognise_input, untrained_branches
from model.deeplabv2 import DeepLabV2
from model.fit import deeplab_size
from model.folder import folder_config, folder_content, input_statement, is_folder, read_folder
from model.folder_writing import save_folder, save_safetensors
from model.foreign import describe, some, tables_of
from model.segmenter import Segmenter
from model.weights import LoadReport, file_of, read_network, save_weights, source_sha256
from utils.checkpoint import write_atomically
from utils.cli import OneLineParser, guarded, path, tolerant_output
from utils.config import Config, config_of, load_config
from utils.config_values import expanded
from utils.errors import CheckpointError, ConfigError, one_line
from utils.option_words import split_overrides

_STREET = (19, 16, 13)  # numbers of classes that are taken to be the street classes
_PTH, _SAFETENSORS = (".pth", ".pt"), ".safetensors"


def run(arguments: Sequence[str] | None = None) -> int:
    """The command-line program; returns its exit code."""
    tolerant_output()
    options = OneLineParser(prog="python -m model.weights", description=__doc__,
                            usage="%(prog)s IN [OUT] [options] [key=value ...]",
                            formatter_class=argparse.RawDescriptionHelpFormatter,
                            epilog="exit codes: 0 done, 2 wrong input (one line says what), 130 stopped by a signal")
    options.add_argument("words", nargs="+", metavar="WORD", help="IN, OUT, and key=value words of the "
                         "configuration among them")
    options.add_argument("--config", metavar="FILE", type=path, help="configuration of the network")
    options.add_argument("--names", choices=LAYOUTS, default="own",
                         help="names of a DeepLabV2's tensors in OUT: own (AdaptSegNet's, CCM's and CRST's too), "
                         "authors (the LDBE authors'), advent or multi-level (default: %(default)s)")
    options.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    options.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = options.parse_intermixed_args(arguments)
    words, others = split_overrides(given.words)
    files = [expanded(word, "checkpoint") for word in others]
    if not 1 <= len(files) <= 2:
        options.error(f"expected IN or IN and OUT, found {len(files)} names")
    return guarded(lambda: main(files[0], files[1] if len(files) > 1 else None, given, words), given.debug)


def main(source: str, out: str | None, given: argparse.Namespace, words: list[str]) -> None:
    """Describe the checkpoint `source` and, if given, write it to `out`. Raises UserError."""
    kind = _kind(out, given.overwrite) if out else None
    print(one_line(content_line(source)))
    cfg = _config(source, given.config, words)
    network, report = build_model(cfg, torch.device("cpu"), source)
    for line in description(source, network, report, cfg):
        print(one_line(line))
    if not out:
        return
    if report.initialised:
        raise CheckpointError(f"{source}: not converted: {some(report.initialised)} would be written with random "
                              "weights; give a checkpoint of a whole network.")
    if given.names != "own" and (kind == "folder" or not isinstance(network.network, DeepLabV2)):
        raise ConfigError(f"--names: {given.names} is for files of a DeepLabV2: leave it out, or write FILE.pth or "
                          "FILE.safetensors.")
    if kind == "folder" and not given.config and not is_folder(source):
        width, height = cfg.target_data.input_size
        names = some(cfg.target_data.classes, 3) if cfg.target_data.classes else "the street classes"
        print(one_line(f"assumed: images of {width} x {height} pixels, {names}; --config FILE takes both from your "
                       "data's section"))
    _write(network, cfg, source, out, kind, given.names)
    print(one_line(f"written: {out}"))


def content_line(source: str) -> str:
    """A checkpoint's format, its size and what tensors it holds, in one line. Raises CheckpointError."""
    file = file_of(source)
    folder = is_folder(file)
    content = read_folder(file) if folder else read_content(file)
    tables = [table for _, table in tables_of(content)]
    tensors = [tensor for table in tables for tensor in table.values()]
    types = Counter(str(t.dtype).removeprefix("torch.") for t in tensors)
    what = "model folder" if folder else "safetensors" if _holds_safetensors(file) else "PyTorch file"
    return (f"{source}: {what}, {len(tensors)} tensors ({', '.join(f'{n} {name}' for name, n in types.items())}), "
            f"{sum(t.numel() for t in tensors):,} numbers; {describe([name for table in tables for name in table])}")


def description(source: str, network: Segmenter, report: LoadReport, cfg: Config) -> list[str]:
    """Lines on a loaded network: what it is, its input and head, how it was loaded, warnings; of a folder where it
    comes from."""
    lines = [f"network: {cfg.model}, num_classes={cfg.num_classes}"]
    if isinstance(network.network, DeepLabV2):
        found = read_network(source)
        _, tensors, _ = convert(found.tensors)
        recognised = recognise_input(tensors)
        how = "stated" if found.input else "recognised by the first layer" if recognised else "assumed"
        given = report.converted or "bgr255"
        weights = [tensors.get(f"layer5.conv2d_list.{i}.weight") for i in range(4)]
        lines[0] += f" layers={list(cfg.options['layers'])} width={cfg.options['width']}".replace(", ", ",")
        lines.append(f"input: {given} ({how}){', converted to bgr255' if report.converted else ''}")
        if all(w is not None for w in weights):
            looks = {True: "untrained", False: "trained", None: "unclear"}
            lines.append(f"head branches: {', '.join(looks[state] for state in untrained_branches(weights))}")
    lines += [f"network's input: {network.interface.input.words}", *f"loaded: {report}".splitlines()]
    if is_folder(source):
        origin = folder_content(source).get("provenance")
        lines.append(f"classes: {some(cfg.target_data.classes, 8)}")
        lines += [f"{name}: {value}" for name, value in origin.items()] if isinstance(origin, dict) else []
    return lines


def _holds_safetensors(file):
    with open(file, "rb") as opened:
        return opened.read(9)[8:] == b"{"


def _kind(out, overwrite):
    """What to write to `out`: `pth`, `safetensors` or `folder`. Raises ConfigError if it may not be written."""
    ending = Path(out).suffix.lower()
    kind = "folder" if out.endswith(("/", os.sep)) or not ending or is_folder(out) else \
        "pth" if ending in _PTH else "safetensors" if ending == _SAFETENSORS else None
    if kind is None:
        raise ConfigError(f"{out}: expected a name that ends in .pth, .pt or .safetensors, or for a folder in /.")
    if os.path.isdir(out) != (kind == "folder") and os.path.lexists(out):
        raise ConfigError(f"{out}: is {'a folder' if os.path.isdir(out) else 'a file'}: give another name.")
    if kind == "folder" and os.path.isdir(out) and not is_folder(out) and os.listdir(out):
        raise ConfigError(f"{out}: is a folder with other files: give another name.")
    if os.path.lexists(out) and not overwrite and not (kind == "folder" and not is_folder(out)):
        raise ConfigError(f"{out}: is there already: add --overwrite to replace it, or give another name.")
    return kind


def _config(source, config, words):
    """The configuration of the network in `source`."""
    if config:
        return load_config(config, words)
    if is_folder(source):
        return folder_config(source, words)
    named = dict(word.split("=", 1) for word in words)
    size: dict[str, Any] = {}
    if named.get("model", "deeplab") == "deeplab":
        try:
            size = {k: v for k, v in deeplab_size(convert(read_network(source).tensors)[1]).items() if v is not None}
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).rstrip('.')}; or name its network, by --config FILE or by words such "
                                  "as model=smp/unet:resnet18 num_classes=19.") from None
    count = named.get("num_classes", size.get("num_classes", 19))
    count = int(count) if str(count).isdigit() and 1 < int(count) < 256 else 19
    if count in _STREET:
        return config_of({**size, "source": "cityscapes", "target": "cityscapes"}, source, words)
    own = {"type": "folder", "data_dir": ".", "images": "{split}", "input_size": [1024, 512],
           "classes": [f"class {i}" for i in range(count)]}
    return config_of({**size, "source": "own", "target": "own", "own": own}, source, words)


def _write(network, cfg, source, out, kind, names):
    if kind == "folder":
        # By name: what the classes are called is known in a room beside this one.
        classes = importlib.import_module("dataset.class_sets").described(cfg)
        origin = folder_content(source).get("provenance") if is_folder(source) else None
        found = {"file": os.path.basename(source.rstrip("/\\")), "sha256": source_sha256(source)}
        return save_folder(out, network, cfg, classes, {**(origin if isinstance(origin, dict) else {}),
                                                        "converted_from": found})
    if names == "own" and kind == "pth":
        return save_weights(network, out)
    tensors = in_layout(network.state_dict(), names) if isinstance(network.network, DeepLabV2) else network.state_dict()
    if kind == "safetensors":
        return save_safetensors(out, tensors, network.interface.input)
    state: Any = OrderedDict(tensors)
    state._metadata = {"": {"version": 1, INPUT: input_statement(network.interface.input)}}
    # In the format that PyTorch before 1.6, which much code of the field asks for, reads as well.
    write_atomically(out, lambda file: torch.save(state, file, _use_new_zipfile_serialization=False))
