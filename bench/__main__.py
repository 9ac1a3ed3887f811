"""Cost of the project's pieces beside a plain implementation of the published recipe, as a markdown table.

    python -m bench [row ...] [--repeats N] [--quick] [--markdown FILE]

Without rows, all of them. Exit code 1 if results of the two versions disagree; a missed target is marked, no more.
"""
import argparse
import contextlib
import importlib
import sys
import tempfile
from pathlib import Path

from bench.harness import Row, report
from utils.cli import OneLineParser, guarded

# row -> (module:function, repeats)
ROWS = {
    "round": ("labelling:round_rows", 5),
    "round_memory": ("labelling:memory_rows", 1),
    "validation": ("labelling:validation_rows", 5),
    "losses": ("training:loss_rows", 15),
    "sample": ("training:sample_rows", 15),
    "head": ("steps:head_rows", 15),
    "step": ("steps:step_rows", 5),
    "keys": ("steps:key_rows", 5),
    "start": ("training:start_rows", 7),
    "scaling": ("scaling:scaling_rows", 5),
    "gpu_step": ("gpu:step_rows", 9),
    "gpu_round": ("gpu:round_rows", 9),
}


def measure(names: list[str], repeats: int | None, quick: bool, root: Path) -> list[Row]:
    """The table's lines of the named rows, with files below `root`. repeats: None = each row's own number."""
    from bench.inputs import FULL, QUICK, Inputs  # late, so that --help answers at once
    from utils.allocator import keep_freed_memory
    keep_freed_memory()  # as a run on the CPU does
    inputs, rows = Inputs(root, QUICK if quick else FULL), []
    for name in names:
        where, own = ROWS[name]
        module, function = where.split(":")
        rows += getattr(importlib.import_module(f"bench.{module}"), function)(inputs, repeats or (1 if quick else own))
        print(f"{name}: done", file=sys.stderr, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, metavar="N", help="timed repeats of every variant (default: by row)")
    parser.add_argument("--quick", action="store_true", help="a tiny network and small images: shows that it works")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a file as well")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.rows if name not in ROWS]
    if unknown or given.repeats is not None and given.repeats < 1:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}" if unknown else "--repeats: at least 1")
    # What trainers print goes to stderr: stdout has the tables alone.
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(sys.stderr):
        rows = measure(given.rows or list(ROWS), given.repeats, given.quick, Path(root))
    text = report(rows)
    print(text, end="")
    if given.markdown:
        words = [*given.rows, *(["--repeats", str(given.repeats)] if given.repeats else []),
                 *(["--quick"] if given.quick else [])]
        given.markdown.write_text(f"`{' '.join(['python -m bench', *words])}`\n\n{text}", encoding="utf-8")
    return 0 if all(check.holds for row in rows for check in row.checks) else 1


if __name__ == "__main__":
    sys.exit(guarded(main, debug=True))
