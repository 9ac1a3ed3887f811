"""Write a network as a file for other programs, ONNX or a program of torch.export, checked against the network itself.

    python export.py --config config/ldbe_config.yml --checkpoint snapshot/gta5_cityscapes/be.pth --output net.onnx
"""
import argparse
import os
import sys
from pathlib import Path

from utils.cli import guarded, leave, parser, path
from utils.errors import CheckpointError, ConfigError, one_line

# The network is exported as it is: these keys are about how it is computed here.
_PLAIN = ("device=cpu", "amp=off", "compile=false", "checkpointing=false", "channels_last=false")


def main(given: argparse.Namespace) -> None:
    """Export the network and print what was written."""
    from dataset.class_sets import class_set  # late, so that --help answers at once
    from model import export
    from model.build import build_model, pick_device
    from model.folder import config_for
    _require_writable(given.output, given.overwrite)
    export.require_exporter(given.output)
    cfg = config_for(given.config, given.checkpoint, [*given.words, *_PLAIN])
    classes, checkpoint = class_set(cfg), given.checkpoint if given.config and given.checkpoint else cfg.init_weight
    model, loaded = build_model(cfg, pick_device(cfg.device), checkpoint)
    if loaded.initialised:
        raise CheckpointError(f"{checkpoint or cfg.model}: is no trained network ({loaded.facts}): give a checkpoint "
                              "of the whole network.")
    form = export.Form(given.with_preprocessing, tuple(given.size[::-1]) if given.size else None, given.opset)
    width, height = cfg.target_data.input_size
    facts = {"classes": classes.names, "palette": classes.palette, "input_size": (width, height), "model": cfg.model,
             **export.provenance(checkpoint)}
    print(export.export(model, given.output, form, facts, given.tolerance, (height, width)))
    for line in str(loaded).splitlines() if loaded.remarkable else ():
        print(one_line(f"{checkpoint}: {line}"), file=sys.stderr)


def _require_writable(file: str, overwrite: bool) -> None:
    """Raise ConfigError if the output is a folder, in no folder, or a file that must not be overwritten."""
    if os.path.isdir(file):
        raise ConfigError(f"--output: {file!r} is a folder: give a file in it.")
    if os.path.exists(file) and not overwrite:
        raise ConfigError(f"--output: {file!r} exists: give another file, or --overwrite.")
    above = next(folder for folder in Path(file).absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ConfigError(f"--output: {file!r}: nothing can be written in {str(above)!r}: give another folder.")


def run() -> int:
    """Parse the command line and export; returns the exit code."""
    arguments = parser(__doc__, None)
    arguments.add_argument("--checkpoint", metavar="CKPT", type=path,
                           help="the weights, or a folder that a stage has left (default: init_weight)")
    arguments.add_argument("--output", metavar="FILE", type=path, required=True, help="FILE.onnx or FILE.pt2")
    arguments.add_argument("--with-preprocessing", action="store_true",
                           help="the file takes pixels, uint8 [batch, height, width, bands], and gives class ids; "
                           "without, it takes the network's input and gives logits")
    arguments.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"),
                           help="the only size that the file takes, for networks that have one (default: any)")
    arguments.add_argument("--opset", type=int, metavar="N",
                           help="version of ONNX's operators (default: the exporter's choice)")
    arguments.add_argument("--tolerance", type=float, default=1e-4, metavar="SHARE",
                           help="the most by which the file's logits may differ from the network's, as a share of the "
                           "largest logit (default: %(default)s)")
    arguments.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    arguments.add_argument("words", nargs="*", metavar="key=value", help="set a key, e.g. num_classes=13")
    given = arguments.parse_intermixed_args()
    if given.size and min(given.size) < 1:
        arguments.error(f"argument --size: expected at least 1, found {min(given.size)}")
    if not given.tolerance > 0:
        arguments.error(f"argument --tolerance: expected more than 0, found {given.tolerance}")
    return guarded(lambda: main(given), given.debug)


if __name__ == "__main__":
    leave(run())
