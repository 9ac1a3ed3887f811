"""The errors that a user can cause; the scripts print them as one line and exit with code 2."""
import contextlib
import unicodedata


class UserError(Exception):
    """Something the user can put right: the message names the file or key, what was expected and what to do."""


class ConfigError(UserError):
    """A configuration file, a key or a command-line override is wrong."""


class DataError(UserError):
    """An image, a label or a list file is missing, damaged or does not fit its partner."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not fit the network."""


class TrainingError(UserError):
    """Training cannot go on: numbers are no longer finite."""


class Stopped(BaseException):
    """A signal has asked the run to stop, and its state is saved; the argument says so, or names the signal. As it may
    be raised out of any code that reads data, it is no Exception, which that code may take for a damaged file."""


class NothingToDo(Exception):
    """What was asked for is done already; the argument says so."""


def first_line(error: BaseException) -> str:
    """What another's error says, for a message of one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def one_line(message: object) -> str:
    """The message with control characters escaped: names of files and keys may hold line ends or terminal codes."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in str(message))


@contextlib.contextmanager
def naming(path):
    """An OSError in the block names `path` if it names no file, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
