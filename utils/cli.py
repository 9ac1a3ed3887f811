"""What the command-line scripts share: `--config`, `key=value` words, `--help` out of the declared keys, errors."""
import argparse
import sys
import unicodedata

from utils.config import config_help, load_config
from utils.errors import NothingToDo, Stopped, UserError

EXIT_UNEXPECTED, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130  # 75: sysexits' "try again later"


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
               f"{EXIT_STOPPED} stopped by a signal with the state saved (resume goes on), "
               f"{EXIT_INTERRUPTED} stopped by Ctrl-C with nothing to save, {EXIT_UNEXPECTED} unexpected error")
    result.add_argument("--config", default=default_config, metavar="FILE", help="YAML file (default: %(default)s)")
    result.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return result


def run_stage(description: str, default_config: str, run, **fixed) -> int:
    """The whole of a stage script: read the configuration, call `run(cfg)`, turn user errors into one line.

    fixed: keys that the script itself decides. Returns the exit code.
    """
    arguments = parser(description, default_config)
    arguments.add_argument("--resume", action="store_true", help="the same as resume=true")
    arguments.add_argument("overrides", nargs="*", metavar="key=value",
                           help="set a key, e.g. batch_size=2 or cityscapes.data_dir=/data/cityscapes")
    given = arguments.parse_intermixed_args()

    def main():
        resume = {"resume": True} if given.resume else {}
        cfg = load_config(given.config, given.overrides, **fixed, **resume)
        run(cfg)
    return guarded(main, given.debug)


def guarded(main, debug: bool = False) -> int:
    """Call `main()`; return its exit code (None: 0), or, with one line on stderr in place of a traceback, that of what
    went wrong. debug: let every error but a stop through, with its traceback."""
    try:
        return main() or 0
    except NothingToDo as done:
        print(done)
        return 0
    except Stopped as stop:
        return _said(EXIT_STOPPED, stop)
    except KeyboardInterrupt:
        return _said(EXIT_INTERRUPTED, "stopped: what had been saved before is kept")
    except Exception as error:
        if debug:
            raise
        if isinstance(error, UserError):
            return _said(EXIT_USER_ERROR, f"error: {error}")
        if isinstance(error, OSError) and error.filename is not None:
            return _said(EXIT_USER_ERROR, f"error: {error.filename}: {error.strerror}: check the path and the room "
                         "there.")
        if type(error).__name__ == "OutOfMemoryError":
            return _said(EXIT_USER_ERROR, "error: the GPU's memory is full: lower batch_size or crop_tgt, or set "
                         "checkpointing=true or amp=bf16.")
        return _said(EXIT_UNEXPECTED, f"error: unexpected {type(error).__name__}: {str(error)[:500]}: run the same "
                     "command with --debug to see where, and report it.")


def _said(exit_code, message):
    print(one_line(message), file=sys.stderr)
    return exit_code


def one_line(message) -> str:
    """The message with control characters escaped: names of files and keys may hold line ends or terminal codes."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in str(message))
