"""Cost of the project's pieces beside a plain implementation of the published recipe, as a Markdown table.

    python -m bench [row ...] [--device cpu|cuda] [--repeats N] [--quick] [--markdown FILE]

Without rows, all of them. A missed target is marked. That both compute the same is tested in tests/test_bench.py.
"""
import argparse
import sys
import tempfile
from pathlib import Path

from utils.cli import OneLineParser, guarded


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    import torch  # late, so that the other processes begin fast

    from bench.harness import machine, measure, table
    from bench.inputs import FULL, QUICK, Inputs
    from bench.rows import rows
    parser = OneLineParser(prog="python -m bench", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(rows(FULL, "cpu")))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help=f"a GPU has the rows {', '.join(rows(FULL, 'cuda'))} (default: a GPU if there is one)")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed repeats of every variant (default: by row)")
    parser.add_argument("--quick", action="store_true", help="a tiny network and small images: shows that it works")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to a file as well")
    given = parser.parse_args(arguments)
    size, measured = QUICK if given.quick else FULL, []
    known = rows(size, given.device)
    if unknown := [name for name in given.rows if name not in known]:
        parser.error(f"unknown row {unknown[0]!r}; on {given.device} there are {', '.join(known)}")
    if given.repeats is not None and given.repeats < 1:
        parser.error("--repeats: at least 1")
    with tempfile.TemporaryDirectory() as root:
        inputs, repeats = Inputs(Path(root), size, given.device), given.repeats or (1 if given.quick else None)
        for row in [row for name in given.rows or known for row in known[name]]:
            measured.append((row, measure(row, inputs, repeats)))
            print(f"{row.title}: done", file=sys.stderr, flush=True)
    text = f"Machine: {machine()}.\n\n{table(measured)}\n"
    print(text, end="")
    if given.markdown:
        words = ["python -m bench", *given.rows, f"--device {given.device}",
                 *([f"--repeats {given.repeats}"] if given.repeats else []), *(["--quick"] if given.quick else [])]
        given.markdown.write_text(f"`{' '.join(words)}`\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(guarded(main, debug=True))
