"""The published code's functions beside this project's on the same random input, as a markdown table.

    python -m bench.published --code DIR [--debug]

DIR: a checkout of the published LDBE code, which is not part of this project. Its functions are run, on the CPU, in
this process, with stand-ins for packages of its time; nothing is written there. Rows either agree or differ as the
fidelity notes say. Exit codes: 0 they do, or DIR is absent (skipped); 1 a row DISAGREES; 2 DIR is no such checkout.
"""
import argparse
import contextlib
import io
import os
import sys
import warnings
from pathlib import Path

from bench.published.comparison import DISAGREES, Row, summary, table
from utils.cli import OneLineParser, guarded
from utils.errors import one_line

EXIT_DISAGREES = 1


def compare(code: Path) -> list[Row]:
    """All rows. Raises UserError if `code` is no checkout of the published code."""
    from bench.published import data, network, released, rounds, steps  # late, so that --help answers at once
    rows = []
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), released.on_cpu():
        warnings.simplefilter("ignore")  # of today's torch about code of its time
        published = released.load(code)
        for part in (network, steps, rounds, data):
            rows += part.rows(published)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m bench.published", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, metavar="DIR", help="checkout of the published code")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    given = parser.parse_args(arguments)
    if given.code is None or not os.path.isdir(given.code.expanduser()):
        found = "" if given.code is None else f", found no folder {str(given.code)!r}"
        print(one_line(f"skipped: needs a checkout of the published LDBE code, named by --code DIR{found}"))
        return 0

    def run():
        rows = compare(given.code.expanduser())
        print(f"{table(rows)}\n\n{summary(rows)}")
        return EXIT_DISAGREES if any(row.verdict == DISAGREES for row in rows) else 0
    return guarded(run, given.debug)


if __name__ == "__main__":
    sys.exit(main())
