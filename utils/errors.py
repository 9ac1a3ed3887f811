"""Errors that a user can cause. The scripts print them as one line and exit with code 2."""
import contextlib
import unicodedata
from collections.abc import Iterator


class UserError(Exception):
    """Something that the user can fix: the message names the file or key, what was expected and what to do.

    said: whether another process of the run prints it.
    """

    said = False


class ConfigError(UserError):
    """A configuration file, a key or a command-line override is wrong."""


class DataError(UserError):
    """An image, a label or a list file is missing, damaged or does not fit its partner."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not fit the network."""


class TrainingError(UserError):
    """Training cannot go on: numbers are no longer finite, or a method's losses are not what the loop can minimise."""


class PeerLost(UserError):
    """Another process of the run has ended, or cannot be reached."""


class Stopped(BaseException):
    """A signal has asked the run to stop, and its state is saved; the argument says so, or names the signal.

    It may be raised within any code that reads data. It is no Exception, which that code may take for a damaged file.
    said: as of UserError.
    """

    said = False


class NothingToDo(Exception):
    """The result that was asked for exists already; the argument says so."""

    said = False  # as of UserError


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 120 characters, to be quoted in a message."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def one_line(message: object) -> str:
    """The message with control characters escaped. Names of files and keys may hold line ends or terminal codes."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in str(message))


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Within the block, an OSError that names no file, such as that of a full disk, gets the name `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
