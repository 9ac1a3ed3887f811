"""Imports run strictly downward: scripts -> trainer -> {dataset, model} -> utils. Lines have at most 120 characters."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("trainer", "dataset", "model", "utils")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
MAY_IMPORT = {"trainer": {"trainer", "dataset", "model", "utils"}, "dataset": {"dataset", "utils"},
              "model": {"model", "utils"}, "utils": {"utils"}}
LONGEST_LINE = 120
PURE = {"trainer/losses.py": {"numpy", "torch", "math", "utils"}, "trainer/classmix.py": {"torch"},
        "trainer/fused_losses.py": {"torch", "functools", "trainer", "utils"},
        "trainer/label_free.py": {"numpy", "torch", "math", "collections", "dataclasses", "utils"},
        "trainer/selection.py": {"torch", "math", "utils"}}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))],
                         ids=lambda p: p.relative_to(ROOT).as_posix())
def test_rooms_import_only_lower_rooms(path):
    found = set(imports(path))
    assert found & {*ROOMS, "bench", "tests", *SCRIPTS} <= MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    allowed = PURE.get(path.relative_to(ROOT).as_posix())
    assert allowed is None or found <= allowed


def test_no_file_outside_knows_a_methods_name():
    """Except for the default of the key `method`, also in ldbe.py, and the script of stage 0."""
    names = {p.stem for p in (ROOT / "trainer/methods").glob("*.py")} - {"__init__", "base"}
    files = [p for room in ROOMS for p in (ROOT / room).rglob("*.py") if p.parent.name != "methods"]
    files += [ROOT / f"{name}.py" for name in SCRIPTS - {"run_so", "ldbe"}]
    found = {(p.relative_to(ROOT).as_posix(), node.value) for p in files
             for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and node.value in names}
    assert len(names) >= 12 and found == {("utils/config_keys.py", "ld")}


def test_lines_are_short():
    files = [*ROOT.glob("*.py"), *(p for folder in (*ROOMS, "bench", "tests") for p in (ROOT / folder).rglob("*.py"))]
    too_long = [f"{path.relative_to(ROOT).as_posix()}:{number}" for path in sorted(files)
                for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
                if len(line) > LONGEST_LINE]
    assert too_long == []
