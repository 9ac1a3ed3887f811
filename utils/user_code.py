"""Loading a user's own Python, `my_file.py:Name` or `package.module:Name`, which may import modules of equal names."""
import builtins
import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.config_values import expanded, nearest
from utils.errors import ConfigError, UserError, first_line

_ROOT = Path(__file__).resolve().parents[1]  # of this project
_loaded: set[str] = set()  # names of the users' modules that `load_object` has read
_kept: dict[Path, dict[str, ModuleType]] = {}  # a user's folder -> its modules that share a name with others


def is_user_code(spec: str) -> bool:
    """Whether a value of `method` or `model` names an object in a user's file or module, `...:Name`."""
    return ":" in spec


def load_object(spec: str, key: str, base: type | None = None) -> object:
    """The class or function `Name` of `my_file.py:Name` (a path, relative to the working directory) or of
    `package.module:Name` (looked for in the working directory first).

    base: the class that it must derive from; None: anything that can be called. A file is run again only if its content
    has changed. Raises ConfigError that starts with `key: spec` if there is no such file or name, or, with file and
    line, if the user's code fails.
    """
    name = spec.rpartition(":")[2]
    with running(spec, key):
        module = _load(spec, key)
    found = getattr(module, name, None)
    if found is None or not _fits(found, base):
        known = [n for n, value in vars(module).items() if not n.startswith("_") and _fits(value, base)
                 and getattr(value, "__module__", None) == module.__name__]
        what = f"is no subclass of {base.__module__}.{base.__name__}" if base and found is not None else \
            "cannot be called" if found is not None else "is not there"
        raise ConfigError(f"{key}: {spec}: {name!r} {what}{nearest(name, known)}; the file has "
                          f"{', '.join(known) or 'nothing of the kind'}.")
    return found


def file_digest(spec: str) -> str:
    """Hexadecimal SHA-256 of the file in `my_file.py:Name`; empty for anything else, and for a file that is gone."""
    where = spec.rpartition(":")[0]
    if not _is_file(where):
        return ""
    path = Path(expanded(where, "file"))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def called(spec: str, key: str, args: dict[str, Any]) -> Any:
    """What the function `spec` (see `load_object`) returns for `args`. Raises ConfigError as `running` does."""
    function: Any = load_object(spec, key)
    with running(spec, key):
        return function(**args)


@contextlib.contextmanager
def running(spec: str, key: str) -> Iterator[None]:
    """A block that runs the user's code of `spec`: a `with` block around its import or its calls.

    Imports look first in the folder of the user's file. An exception of the user's code becomes a ConfigError of one
    line with file, line and reason. A module of this project, or of another user's file, that shares its name with a
    file or folder there is hidden within the block from all code but this project's own.
    """
    folder = _folder(spec, key)
    hidden = _shared_names(folder)
    try:
        with _imports_from(folder, hidden):
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}: {spec}: {fault(error, folder)}{_clash(error, hidden, folder)}.") from error


def fault_in_run(error: BaseException) -> str | None:
    """`fault` of an error that left a user's module in the middle of a run; None: the user's code had no part in it."""
    return fault(error) if any(_is_loaded(frame) for frame, _ in traceback.walk_tb(error.__traceback__)) else None


def fault(error: BaseException, folder: Path | None = None) -> str:
    """`file, line N: kind: message` of an error, with the innermost line of a user's module or of a file below
    `folder`."""
    if isinstance(error, SyntaxError) and error.filename:
        place = error.filename, error.lineno
    else:
        frames = [(frame, frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        mine = [(file, line) for frame, file, line in frames if _is_loaded(frame)
                or folder and Path(file).resolve().is_relative_to(folder)
                and "site-packages" not in file and not _is_ours(file, folder)]
        place = mine[-1] if mine else None
    at = f"{place[0]}, line {place[1]}: " if place else ""
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{at}{type(error).__name__}: {text}".rstrip(".")


def _is_loaded(frame):
    return frame.f_globals.get("__name__") in _loaded


def _fits(found, base):
    return callable(found) if base is None else isinstance(found, type) and issubclass(found, base)


def _is_file(where):
    return where.endswith(".py") or "/" in where or "\\" in where


def _folder(spec, key):
    where = spec.rpartition(":")[0]
    return Path(expanded(where, key)).resolve().parent if _is_file(where) else Path.cwd().resolve()


def _load(spec, key):
    where, _, name = spec.rpartition(":")
    if not name.isidentifier() or not (_is_file(where) or all(part.isidentifier() for part in where.split("."))):
        raise ConfigError(f"{key}: {spec!r}: expected my_file.py:Name or package.module:Name.")
    if not _is_file(where):
        return _import(where, spec, key)
    path = Path(expanded(where, key)).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {where}: cannot be read ({error.strerror or error}): give a Python file and a "
                          "name in it, such as my_file.py:Name.") from None
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()
    unique = f"user_{digest[:16]}"
    if unique not in sys.modules:
        found = importlib.util.spec_from_file_location(unique, path)
        if found is None or found.loader is None:
            raise ConfigError(f"{key}: {where}: is no Python file (.py): give my_file.py:Name.")
        module = sys.modules[unique] = importlib.util.module_from_spec(found)
        _loaded.add(unique)
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]


def _import(where, spec, key):
    _loaded.add(where)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise ConfigError(f"{key}: {spec}: there is no module {error.name!r}, neither in {Path.cwd()} nor "
                              "installed.") from None
        raise


def _shared_names(folder):
    """Names of modules in the user's folder that this project or another user's folder has as well, but for those that
    are already imported from the user's folder."""
    others = {_ROOT, *_kept} - {folder}
    names = {entry.stem for other in others if other.is_dir() for entry in other.iterdir()
             if entry.suffix == ".py" or (entry.is_dir() and entry.stem == entry.name)}
    beside = {name for name in names if (folder / f"{name}.py").is_file()
              or (folder / name).is_dir() and any((folder / name).rglob("*.py"))}
    return {name for name in beside if _folder_of(sys.modules.get(name)) != folder
            and (folder != _ROOT or name in sys.modules)}


def _folder_of(module):
    """The folder that holds a top-level module or package, or None."""
    places = list(getattr(module, "__path__", None) or ()) or [getattr(module, "__file__", None)]
    return Path(places[0]).resolve().parent if places[0] else None


@contextlib.contextmanager
def _imports_from(folder, hidden):
    """Within the block `folder` is first on the path, and the modules named in `hidden` are those of the folder."""
    def import_for(name, globals=None, locals=None, fromlist=(), level=0):
        """`__import__` for code within the block; late imports of this project's code find its own modules."""
        importer = globals.get("__file__") if globals else None
        if here[0] and importer and _is_ours(importer, folder):
            with swapped(False):
                return plain_import(name, globals, locals, fromlist, level)
        return plain_import(name, globals, locals, fromlist, level)

    @contextlib.contextmanager
    def swapped(enter):
        """Exchange the hidden modules for those of the folder, or back; `sides` keeps the ones that are not in use."""
        def turn(to):
            sides[not to].update({name: sys.modules.pop(name) for name in list(sys.modules)
                                  if name.partition(".")[0] in hidden})
            sys.modules.update(sides[to])
            if to:
                sys.path.insert(0, str(folder))
            elif str(folder) in sys.path:
                sys.path.remove(str(folder))
            here[0] = to
        turn(enter)
        try:
            yield
        finally:
            turn(not enter)

    plain_import, here, sides = builtins.__import__, [False], {True: _kept.setdefault(folder, {}), False: {}}
    importlib.invalidate_caches()
    with swapped(True):
        if hidden:
            builtins.__import__ = import_for
        try:
            yield
        finally:
            builtins.__import__ = plain_import


def _is_ours(file, folder):
    """Whether a file belongs to this project, and not to a user's folder within it."""
    path = Path(file).resolve()
    inner = folder != _ROOT and folder.is_relative_to(_ROOT)
    return path.is_relative_to(_ROOT) and "site-packages" not in path.parts and not (
        inner and path.is_relative_to(folder))


def _clash(error, hidden, folder):
    """A note on a failed import that a shared name may have caused, and what to do; empty for other errors."""
    wanted = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if wanted in hidden:
        return f" ({folder / wanted} has the name of a package of this project, {wanted}, and is what the file's " \
               "imports see: rename it if the file means this project's)"
    if wanted and folder != _ROOT and _folder_of(sys.modules.get(wanted)) == _ROOT:
        return f" (the file's imports see this project's package {wanted}: if the file means another one, of its own " \
               f"or one that it puts on sys.path, move the file into the folder that holds that {wanted})"
    return ""
