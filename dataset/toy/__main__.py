"""The command-line program that draws the toy world."""

from dataset.toy.files import write_toy_world
from dataset.toy.looks import STRENGTH
from utils.cli import OneLineParser, guarded, leave, path, tolerant_output


def main(arguments: list[str] | None = None) -> int:
    """Draw the world that the options describe; returns the exit code."""
    tolerant_output()
    parser = OneLineParser(prog="python -m dataset.toy", description="Draw a toy street world in the layouts of "
                           "GTA5, SYNTHIA (game look) and Cityscapes (camera look).")
    parser.add_argument("--root", required=True, type=path, help="folder to write: new, empty, or an earlier toy world")
    parser.add_argument("--seed", type=int, default=0, help="of the whole world (default 0)")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("W", "H"),
                        help="in pixels (default 256 128)")
    for name, number, text in (("source", 400, "gta5 images"), ("synthia", 40, "synthia images"),
                               ("train", 300, "cityscapes training images"), ("val", 100, "cityscapes val images")):
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"{text} (default {number})")
    parser.add_argument("--strength", type=float, default=STRENGTH,
                        help="of the appearance shift, 0..1.5 (default %(default)s)")
    options = vars(parser.parse_args(arguments))
    options["size"] = tuple(options["size"])
    return guarded(lambda: print(write_toy_world(**options)))


if __name__ == "__main__":
    leave(main())
