"""What the command-line scripts share: `--config`, `key=value` words, `--help` out of the declared keys, errors."""
import argparse
import sys
import unicodedata

from utils.config import config_help, load_config
from utils.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all others are."""

    def error(self, message):
        self.exit(EXIT_USER_ERROR, f"error: {one_line(message)} (see --help)\n")


def parser(description: str, default_config: str, done: str = "0 done") -> argparse.ArgumentParser:
    """Argument parser with `--config`, whose help ends with every configuration key, its type, default and meaning, and
    the exit codes; `done` describes those of a script that has run to its end."""
    result = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{config_help()}\n\nexit codes: {done}, {EXIT_USER_ERROR} wrong input (one line says what), "
               f"{EXIT_INTERRUPTED} stopped by Ctrl-C")
    result.add_argument("--config", default=default_config, metavar="FILE", help="YAML file (default: %(default)s)")
    return result


def run_stage(description: str, default_config: str, run, **fixed) -> int:
    """The whole of a stage script: read the configuration, call `run(cfg)`, turn user errors into one line.

    fixed: keys that the script itself decides. Returns the exit code.
    """
    arguments = parser(description, default_config)
    arguments.add_argument("overrides", nargs="*", metavar="key=value",
                           help="set a key, e.g. batch_size=2 or cityscapes.data_dir=/data/cityscapes")
    given = arguments.parse_intermixed_args()

    def main():
        cfg = load_config(given.config, given.overrides, **fixed)
        if cfg.ignored_keys:
            print(f"note: no effect on LDBE, ignored: {', '.join(cfg.ignored_keys)}", file=sys.stderr)
        run(cfg)
    return guarded(main)


def guarded(main) -> int:
    """Call `main()`; return its exit code (None: 0), or, with one line on stderr in place of a traceback, that of what a
    user can mend: a UserError, a file or folder that the system refuses, Ctrl-C."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {one_line(error.filename)}: {error.strerror}: check the path and the room there.", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("stopped: what had been saved before is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def one_line(message) -> str:
    """The message with control characters escaped: names of files and keys may hold line ends or terminal codes."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in str(message))
