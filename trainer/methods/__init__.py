"""The methods, one class in one file each. A method is called by the name of its module; there is no other list."""
import functools
import importlib
import pkgutil
from types import ModuleType
from typing import cast

from trainer.methods.base import Method
from utils.config_values import nearest
from utils.errors import ConfigError
from utils.user_code import load_object


@functools.cache
def known() -> dict[str, type[Method]]:
    """Name -> class of every method in this folder, in alphabetical order."""
    modules = [m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"]
    return {name: _method_of(importlib.import_module(f"{__name__}.{name}")) for name in sorted(modules)}


def find(name: str) -> type[Method]:
    """The class of a method: a name of `known`, or a user's own, `my_file.py:MyMethod`. Raises ConfigError if there is
    none."""
    if name in known():
        return known()[name]
    if ":" not in name:
        raise ConfigError(f"method: no method {name!r}{nearest(name, known())}; there are {', '.join(known())}, or "
                          "your own as my_file.py:MyMethod.")
    if name.rpartition(":")[2] in known():
        raise ConfigError(f"method: {name}: a method of that name is here already, and its files would be overwritten: "
                          "rename the class.")
    return cast(type[Method], load_object(name, "method", Method))


def _method_of(module: ModuleType) -> type[Method]:
    """The one method that a module defines."""
    cls, = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method)
            and c.__module__ == module.__name__)
    return cls
