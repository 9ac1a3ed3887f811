"""A user's own files: found, run once, beside modules of our names, and refused in one line."""
import re
import sys

import pytest

import utils.errors
from utils.cli import guarded
from utils.errors import ConfigError, DataError
from utils.user_code import called, is_user_code, load_object, running

OURS = ("utils", "model", "dataset", "trainer")


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(name, text, ...) writes files below a folder of the test's own, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(*pairs):
        for name, text in zip(pairs[::2], pairs[1::2]):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path
    return write


def refusal(spec, key="model", **more):
    with pytest.raises(ConfigError) as caught:
        load_object(spec, key, **more)
    text = str(caught.value)
    assert text.startswith(f"{key}: ") and text.endswith(".") and "\n" not in text
    return text


def test_which_values_are_user_code():
    assert is_user_code("a.py:B") and is_user_code("a.b:c") and not is_user_code("deeplab")


@pytest.mark.parametrize("spec", ["mine.py:build", "./mine.py:build", "{}/mine.py:build", "mine:build",
                                  "sub/mine.py:build", "sub.mine:build"])
def test_a_function_is_found_by_file_and_by_module(put, spec):
    text = "import beside_%s\ndef build(n=1):\n    return beside_%s.VALUE + n\n"
    name = spec.translate(str.maketrans("./:{}", "_____"))
    folder = put("mine.py", text % (name, name), f"beside_{name}.py", "VALUE = 41", "sub/mine.py", text % (name, name),
                 f"sub/beside_{name}.py", "VALUE = 41")
    sys.modules.pop("mine", None), sys.modules.pop("sub", None), sys.modules.pop("sub.mine", None)
    assert load_object(spec.format(folder), "model")() == 42
    assert str(folder) not in sys.path


def test_a_file_is_run_once_and_again_when_it_has_changed(put):
    put("mine.py", "class A:\n    x = 1\n")
    first = load_object("mine.py:A", "model")
    assert load_object("./mine.py:A", "method") is first
    put("mine.py", "class A:\n    x = 2\n")
    assert load_object("mine.py:A", "model").x == 2 and first.x == 1


def test_two_files_of_one_name_are_two_modules(put):
    put("a/net.py", "import part\ndef build(): return part.X", "a/part.py", "X = 'a'",
        "b/net.py", "import part\ndef build(): return part.X", "b/part.py", "X = 'b'")
    sys.modules.pop("part", None)
    a, b = load_object("a/net.py:build", "model"), load_object("b/net.py:build", "model")
    assert (a(), b()) == ("a", "b")


USER = ("net.py", "import utils\nfrom utils.parts import PART\nfrom model import VALUE\n"
        "class Net:\n    part, value, utils = PART, VALUE, utils\n"
        "def build():\n    from utils import late\n    import utils.later\n"
        "    return [late.X, utils.later.Y, utils is Net.utils]\n",
        "utils/__init__.py", "", "utils/parts.py", "PART = 'theirs'", "utils/late.py", "from model import VALUE as X",
        "utils/later.py", "Y = 2", "model.py", "VALUE = 7")


@pytest.mark.parametrize("spec", ["mine/net.py:Net", "mine/net.py:build"])
def test_a_file_with_utils_and_model_of_its_own(put, spec):
    put(*(f"mine/{x}" if i % 2 == 0 else x for i, x in enumerate(USER)))
    before = {name: sys.modules.get(name) for name in OURS}
    found = load_object(spec, "model")
    with running(spec, "model"):
        assert found() == [7, 2, True] if spec.endswith("build") else (found.part, found.value) == ("theirs", 7)
    assert {name: sys.modules.get(name) for name in OURS} == before
    from utils.errors import UserError  # ours
    assert UserError is utils.errors.UserError


def test_our_own_code_sees_our_modules_while_the_users_runs(put):
    """The user's file imports ours, which imports ours in turn, for the first time, beside a `utils` of the user's."""
    put("mine/net.py", "import utils\nfrom model.conversion import convert\nX = utils.X\n"
        "def build(): return X, convert", "mine/utils.py", "X = 5")
    gone = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("model.")}
    late = sys.modules.pop("utils.constants", None)
    try:
        x, convert = load_object("mine/net.py:build", "model")()
        assert x == 5 and convert.__module__ == "model.conversion"
        assert sys.modules["utils.constants"].__file__.endswith("utils/constants.py")
    finally:
        sys.modules.update(gone)
        if late:
            sys.modules["utils.constants"] = late


def test_a_folder_of_our_name_without_python_hides_nothing(put):
    put("mine/net.py", "from model.foreign import some\ndef build(): return some", "mine/model/weights.txt", "")
    from model.foreign import some
    assert load_object("mine/net.py:build", "model")() is some


def test_a_clash_is_named(put):
    put("mine/net.py", "from model.foreign import some", "mine/model/__init__.py", "")
    assert all(part in refusal("mine/net.py:build") for part in ("line 1", "model.foreign", "mine/model", "rename"))


@pytest.mark.parametrize("line", ["from model.theirs import x", "import model.theirs", "from model import theirs"])
def test_a_clash_with_another_folder_on_the_path_is_named(put, line):
    """A file that puts a folder with a `model` on sys.path gets our `model`; moved there, it gets that one."""
    folder = put("net.py", f"import sys\nsys.path.insert(0, 'other')\n{line}\ndef build(): pass\n",
                 "other/model/__init__.py", "", "other/model/theirs.py", "x = 1")
    try:
        text = refusal("net.py:build")
    finally:
        sys.path.remove("other")
    assert all(part in text for part in ("line 3", "this project's package model", "move the file into the folder"))
    (folder / "net.py").rename(folder / "other/net.py")
    assert load_object("other/net.py:build", "model")() is None
    sys.path.remove("other")


@pytest.mark.parametrize("text, expected", [
    ("x = 1\ny = 1 / 0\n", ["mine.py, line 2: ZeroDivisionError: division by zero"]),
    ("import there_is_no_such_package\n", ["line 1: ModuleNotFoundError: No module named 'there_is_no_such_package'"]),
    ("def build(:\n", ["mine.py, line 1: SyntaxError"]),
    ("import sys\nsys.exit(3)\n", ["line 2: SystemExit: 3"]),
    ("import beside\n", ["beside.py, line 2: NameError"]),
    ("def builds(): pass\ndef _build(): pass\n", [
        "'build' is not there (did you mean 'builds'?); the file has builds"]),
    ("build = 3\n", ["'build' cannot be called", "nothing of the kind"]),
    ("raise RuntimeError('one\\ntwo')\n", ["RuntimeError: one."]),
    ("\0", ["mine.py"]),
])
def test_what_is_wrong_with_a_file_is_one_line(put, text, expected):
    put("mine.py", text, "beside.py", "\nundefined_name\n")
    sys.modules.pop("beside", None)
    assert all(part in refusal("mine.py:build") for part in expected)


@pytest.mark.parametrize("spec, expected", [
    ("gone.py:build", "gone.py: cannot be read (No such file or directory)"),
    ("a/b/gone.py:build", "cannot be read"),
    (".:build", "expected my_file.py:Name"),
    ("gone_package.x:build", "no module 'gone_package'"),
    ("mine.py:", "expected my_file.py:Name"),
    (":build", "expected my_file.py:Name"),
    ("mine.py:a.b", "expected my_file.py:Name"),
    ("notes.txt/x:build", "cannot be read"),
])
def test_what_is_no_file_or_name(put, spec, expected):
    put("mine.py", "", "notes.txt", "")
    assert expected in refusal(spec)


def test_a_class_must_derive_from_the_base(put):
    put("mine.py", "from utils.errors import DataError\nclass Mine(DataError): pass\nclass Other: pass\n")
    assert issubclass(load_object("mine.py:Mine", "method", base=DataError), DataError)
    text = refusal("mine.py:Other", "method", base=DataError)
    assert "no subclass of utils.errors.DataError" in text and text.endswith("the file has Mine.")
    assert "did you mean 'Mine'" in refusal("mine.py:Min", "method", base=DataError)


def test_errors_while_the_users_code_runs(put):
    put("mine.py", "def build():\n    return [][1]\n")
    build = load_object("mine.py:build", "model")
    line = r"model: mine.py:build: .*mine.py, line 2: IndexError"
    with pytest.raises(ConfigError, match=line), running("mine.py:build", "model"):
        build()
    with pytest.raises(DataError, match="as it is"), running("mine.py:build", "model"):
        raise DataError("as it is")


@pytest.mark.parametrize("spec", ["mine_later.py:later", "mine_later:later"])
def test_an_error_of_the_users_code_in_the_middle_of_a_run_is_one_line(put, spec, capsys):
    put("mine_later.py", "def later(x):\n    return len(x)\n")
    sys.modules.pop("mine_later", None)
    later = load_object(spec, "method")
    assert guarded(lambda: later(3)) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: \S*mine_later.py, line 2: TypeError: .*has no len\(\): correct the file;.*\n", said)
    assert guarded(lambda: len(3)) == 1 and "unexpected TypeError" in capsys.readouterr().err


def test_a_file_beside_the_scripts_is_named_with_its_line(put, monkeypatch):
    folder = put("mine_root.py", "def build():\n    return 1 / 0\n")
    monkeypatch.setattr("utils.user_code._ROOT", folder)
    with pytest.raises(ConfigError, match=r"mine_root.py, line 2: ZeroDivisionError"):
        called("mine_root.py:build", "model", {})
