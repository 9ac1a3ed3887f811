"""What the command-line scripts share: options, `--help` from the declared keys, output, errors and exit codes."""
import argparse
import contextlib
import io
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils import distributed
from utils.config import config_help, load_config
from utils.config_values import HELP_WIDTH, expanded
from utils.errors import ConfigError, NothingToDo, Stopped, UserError, first_line, one_line
from utils.interrupt import ignore_signals, signals_end
from utils.memory import gpu_is_full
from utils.user_code import fault_in_run

EXIT_UNEXPECTED, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130  # 75: sysexits' "try again later"
# What the C library, its loader, Python and torch say in errors of several kinds when they get no memory.
_NO_MEMORY = ("Cannot allocate memory", "can't allocate memory", "failed to map segment", "not enough memory",
              "std::bad_alloc", "can't start new thread")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports an error as one line, like every other error of this project."""

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with code 2."""
        self.exit(EXIT_USER_ERROR, f"error: {one_line(message)} (see --help)\n")


# The keys that --help shows first, of a script that trains and of one that applies a trained network.
TRAINING_KEYS = ("note", "method", "model", "init_weight", "num_classes", "target", "epochs", "round", "learning_rate",
                 "batch_size", "crop_tgt", "device", "amp", "seed")
APPLYING_KEYS = ("model", "num_classes", "target", "device", "amp", "worker")


def parser(description: str, default_config: str | None, done: str = "0 done",
           usual: Sequence[str] = APPLYING_KEYS) -> argparse.ArgumentParser:
    """The argument parser of a script, with `--config` and `--debug`.

    Its help ends with every configuration key (type, default, meaning), the `usual` ones first, and the exit codes;
    `done` describes those of a script that has run to its end. `default_config` is looked for in the working
    directory, else beside the scripts; None: there is none. Calls `tolerant_output`.
    """
    tolerant_output()
    result = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n\n".join((config_help(usual), textwrap.fill(
            f"Exit codes: {done}, {EXIT_USER_ERROR} wrong input (one line says what), {EXIT_STOPPED} stopped by a "
            f"signal with the state saved (resume goes on), {EXIT_INTERRUPTED} stopped by a signal with nothing to "
            f"save, {EXIT_UNEXPECTED} unexpected error.", HELP_WIDTH), "docs/keys.md has the keys as tables.")))
    if default_config:
        result.add_argument("--config", default=default_file(default_config), metavar="FILE",
                            help="YAML file (default: %(default)s)")
    else:
        result.add_argument("--config", metavar="FILE", help="YAML file; a model folder needs none")
    result.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return result


def default_file(name: str) -> str:
    """The path of a configuration file of this project: in the working directory, else beside the scripts."""
    return name if os.path.exists(name) else str(Path(__file__).parent.parent / name)


def path(text: str) -> str:
    """The argparse `type` of an option that is a path: a leading `~` becomes the home folder."""
    try:
        return expanded(text, "path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tolerant_output() -> None:
    """Make printing to stdout and stderr always succeed, and write each line at once.

    Characters that the encoding lacks are written as escapes. What cannot be written at all (the pipe to `head` is
    closed, the terminal is gone, the disk is full) is dropped: it must not end a run, whose results are in files.
    Streams that a caller has put in place stay; only their handling of characters changes.
    """
    with contextlib.suppress(OSError):
        # Descriptors 0 to 2 that the caller has closed are filled: else the next file to be opened would be stdout.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif stream is getattr(sys, f"__{name}__") and not isinstance(getattr(stream.buffer, "raw", None), _Tolerant):
            stream.flush()
            raw = io.BufferedWriter(_Tolerant(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True))
            setattr(sys, f"__{name}__", getattr(sys, name))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Tolerant(io.FileIO):
    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)


def run_stage(description: str, default_config: str, run: Callable[..., object],
              usual: Sequence[str] = TRAINING_KEYS, **fixed: Any) -> int:
    """Everything that a training script does: read the configuration, call `run(cfg)`, report an error as one line.
    With the option --dry-run it calls `run(cfg, dry_run=True)`.

    usual: the keys that --help shows first. fixed: keys that the script itself sets. Returns the exit code.
    """
    arguments = parser(description, default_config, usual=usual)
    arguments.add_argument("--resume", action="store_true", help="the same as resume=true")
    arguments.add_argument("--dry-run", action="store_true", help="try everything on a few images, say what the run "
                           "takes (time, memory, disk), and leave nothing behind")
    arguments.add_argument("overrides", nargs="*", metavar="key=value",
                           help="set a key, e.g. batch_size=2 or cityscapes.data_dir=/data/cityscapes")
    given = arguments.parse_intermixed_args()

    def main():
        resume = {"resume": True} if given.resume else {}
        cfg = load_config(given.config, given.overrides, **fixed, **resume)
        run(cfg, **({"dry_run": True} if given.dry_run else {}))
        return 0
    return guarded(main, given.debug, several=True)


def guarded(main: Callable[[], int | None], debug: bool = False, several: bool = False) -> int:
    """Call `main()` and return its exit code (None: 0). An error becomes one line on stderr and its exit code.

    debug: errors are raised with their traceback, all but those of a stop. several: `main` may run in several
    processes, started by torchrun, which are connected before and disconnected after it.
    """
    failed = True
    try:
        with signals_end():
            require_working_directory()
            if not several and distributed.size() > 1:
                return _said(EXIT_USER_ERROR, "error: this command runs in one process: start it without torchrun.")
            distributed.join()
            try:
                code = main() or 0
            except Exception:
                if distributed.joined():
                    ignore_signals()  # torchrun sends one as soon as another process has ended: the error comes first
                raise
        failed = False
        return code
    except NothingToDo as done:
        if distributed.is_main():
            print(done)
        return 0
    except Stopped as stop:
        return EXIT_STOPPED if stop.said else _said(EXIT_STOPPED, stop)
    except KeyboardInterrupt:
        return _said(EXIT_INTERRUPTED, "stopped: what had been saved before is kept")
    except Exception as error:
        if debug and distributed.size() > 1:
            traceback.print_exc()  # before the others learn that this one ends
            return EXIT_UNEXPECTED
        if debug:
            raise
        if isinstance(error, UserError):
            if error.said:
                distributed.await_main()
                return EXIT_USER_ERROR
            return _said(EXIT_USER_ERROR, f"error: {error}")
        if gpu_is_full(error):
            return _said(EXIT_USER_ERROR, "error: the GPU's memory is full, or no more of the machine's can be pinned "
                         f"for it ({first_line(error)}): lower batch_size or crop_tgt, or set checkpointing=true "
                         "or amp=bf16 (docs/cost.md).")
        if distributed.joined() and distributed.is_loss(error):
            return _said(EXIT_USER_ERROR, f"error: {distributed.lost(error)}")
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            return _said(EXIT_USER_ERROR, "error: memory is full, or a limit of it or of processes is reached "
                         "(ulimit -v, -u): lower worker, batch_size or the crop and input sizes, or set "
                         "checkpointing=true.")
        if isinstance(error, OSError) and error.filename is not None:
            return _said(EXIT_USER_ERROR, f"error: {error.filename}: {error.strerror}: check the path and the room "
                         "there.")
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if refused:
            return _said(EXIT_USER_ERROR, f"error: deterministic: torch cannot compute {operation} so on a GPU: set "
                         "deterministic=false, or choose a network or method without this operation.")
        if own := fault_in_run(error):
            return _said(EXIT_USER_ERROR, f"error: {own}: correct the file; --debug shows the whole way there.")
        return _said(EXIT_UNEXPECTED, f"error: unexpected {type(error).__name__}: {str(error)[:500]}: run the same "
                     "command with --debug to see where, and report it.")
    finally:
        distributed.leave(failed)


def leave(exit_code: int) -> None:
    """End the script. From here on another Ctrl-C changes neither the exit code nor the output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if distributed.ends_at_once():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def require_working_directory() -> None:
    """Raise UserError if the working directory has been removed; libraries would end the process without a reason."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working directory is gone ({error.strerror}): change into another one.") from None


def _said(exit_code, message):
    number = f"process {distributed.rank()}: " if distributed.size() > 1 else ""
    print(number + one_line(message), file=sys.stderr)
    return exit_code
