"""`python -m bench.published`: verdicts, exit codes, and how another checkout is imported. The published code itself is
compared only where LDBE_PUBLISHED_CODE names a checkout of it."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.published import __main__ as entry
from bench.published import released
from bench.published.comparison import AGREES, DISAGREES, DOCUMENTED, Row, difference, outcome, summary, table
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
CODE = os.environ.get("LDBE_PUBLISHED_CODE")
NAN = float("nan")


@pytest.mark.parametrize("first, second, absolute, relative", [
    (2.0, 2.0, 0, 0), (4, 3, 1, 0.25), (0, 3, 3, 3), ([True, False], [True, True], 1, 1), (-4.0, -3.0, 1, 0.25),
    (torch.tensor([8.0, 1.0]), np.array([8.0, 3.0]), 2, 0.25), (torch.ones(2, requires_grad=True), [1, 1], 0, 0),
    (NAN, NAN, 0, 0), ([NAN, 2.0], [NAN, 1.0], 1, 0.5), ([NAN, 2.0], [1.0, 2.0], np.inf, np.inf),
    (1.0, NAN, np.inf, np.inf), ([1, 2], [1, 2, 3], np.inf, np.inf), ([[1, 2]], [1, 2], np.inf, np.inf),
    ([], [], np.inf, np.inf), (np.inf, 1.0, np.inf, np.nan), (np.inf, np.inf, np.nan, np.nan),
    ("runs", "runs", 0, 0), ("runs", "KeyError", np.inf, np.inf), ("1", 1.0, np.inf, np.inf),
    (np.array([1.0]), "runs", np.inf, np.inf)])
def test_difference(first, second, absolute, relative):
    np.testing.assert_equal(difference(first, second), (absolute, relative))


@pytest.mark.parametrize("theirs, ours, tolerance, documented, verdict", [
    (1.0, 1.0, 0, None, AGREES), (1.0, 1.1, 0, None, DISAGREES), (1.0, 1.1, 0.11, None, AGREES),
    (1.0, NAN, 1, None, DISAGREES), (np.inf, np.inf, 1, None, DISAGREES), ([], [], 1, None, DISAGREES),
    (1.0, 2.0, 0, 1.0, DOCUMENTED),
    (1.0, 1.0, 0, 1.0, DISAGREES),   # there is no difference where one is documented
    (1.0, 2.0, 0, 3.0, DISAGREES),   # there is one, but another
    (1.0, 3.0, 0, 3.0, DISAGREES),   # ours is what theirs is said to be
    (1.0, 1.1, 0.2, 1.0, DISAGREES), (1.0, 2.0, 0.2, 1.1, DOCUMENTED), (NAN, 0.0, 0, NAN, DOCUMENTED),
    (0.0, 0.0, 0, NAN, DISAGREES), ("KeyError", "runs", 0, "KeyError", DOCUMENTED),
    ("runs", "runs", 0, "KeyError", DISAGREES), ("runs", "KeyError", 0, None, DISAGREES)])
def test_verdict(theirs, ours, tolerance, documented, verdict):
    assert Row("", "", theirs, ours, tolerance, documented).verdict == verdict


@pytest.mark.parametrize("rows, code, end", [
    ([Row("loss", "2 pixels", 2.0, 2.0), Row("error", "-", "KeyError", "runs", documented="KeyError")], 0,
     "1 agrees, 1 differs as documented, 0 DISAGREES"),
    ([Row("loss", "2 pixels", 2.0, 2.0), Row("loss", "2 pixels", 2.0, 1.0)], 1,
     "1 agrees, 0 differs as documented, 1 DISAGREES"),
    ([Row("loss", "2 pixels", 2.0, 2.0, documented=2.0)], 1, "0 agrees, 0 differs as documented, 1 DISAGREES")])
def test_exit_code_says_whether_all_rows_hold(rows, code, end, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entry, "compare", lambda folder: rows)
    assert entry.main(["--code", str(tmp_path)]) == code
    assert capsys.readouterr().out == f"{table(rows)}\n\n{end}\n" and summary(rows) == end


def test_table():
    rows = [Row("loss", "2 pixels", 4.0, 3.0), Row("start", "run.py", "KeyError", "runs", documented="KeyError"),
            Row("score", "-", NAN, 1.0, documented=NAN)]
    assert table(rows).splitlines()[2:] == [
        "| loss | 2 pixels | 1 | 0.25 | DISAGREES |",
        "| start | run.py | KeyError / runs | - | differs as documented |",
        "| score | - | - | - | differs as documented |"]


def test_outcome():
    assert outcome(lambda: 1) == "runs" and outcome(lambda: {}["a"]) == "KeyError"


@pytest.mark.parametrize("words", [[], ["--debug"], ["--code", "no/such/folder"], ["--code", __file__]])
def test_without_a_checkout_it_is_skipped(words):
    done = subprocess.run([sys.executable, "-m", "bench.published", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("skipped: ") and "--code DIR" in done.stdout and done.stdout.count("\n") == 1


IMPORTS = {"dataset.dataset": "from . import transforms", "utils.func": "import torch",
           "dataset.transforms": "from skimage.filters import gaussian"}


def write_checkout(folder, **texts):
    """Modules of the right names that import what the published ones do, hold what is asked for, and know where they
    are from. texts: other contents, by module with _ for the dot."""
    for module, member in (*released.MODULES.values(), ("eval", "compute_iou")):
        imports = IMPORTS.get(module, "import neptune\nfrom dataset import dataset as loaders\nfrom utils import func")
        path = folder / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(module.replace(".", "_"), f"{imports}\nhere, {member} = __file__, 1\n"))
    return folder


def without(name):
    def change(folder):
        (write_checkout(folder) / name).unlink()
        return folder
    return change


@pytest.mark.parametrize("change, named", [
    (lambda folder: folder, "has no model/DeeplabV2.py"), (lambda folder: ROOT, "has no model/DeeplabV2.py"),
    *((without(name), f"has no {name}") for name in ("eval.py", "trainer/ldbe_trainer.py", "utils/func.py")),
    (lambda folder: write_checkout(folder, model_DeeplabV2="no python"), "SyntaxError"),
    (lambda folder: write_checkout(folder, trainer_base_trainer="import no_such_package"), "no_such_package"),
    (lambda folder: write_checkout(folder, utils_func="import torch"), "utils.func has no thres_cb_plabel"),
    (lambda folder: write_checkout(folder, eval="import torch"), "eval.py has no compute_iou")], ids=range(9))
def test_what_is_no_checkout_is_one_line(change, named, tmp_path, capsys):
    code = change(tmp_path)
    assert entry.main(["--code", str(code)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: --code: ") and str(code) in err
    assert named in err


def test_a_checkout_is_imported_beside_our_packages(tmp_path, monkeypatch):
    """No name of it stays behind, none of ours is lost, and nothing is written into it."""
    import dataset.segmentation
    import trainer.fused_losses
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before, files = dict(sys.modules), sorted(write_checkout(tmp_path).rglob("*"))
    published = released.load(tmp_path)
    for name, (module, _) in released.MODULES.items():
        assert getattr(published, name).here == str(tmp_path / f"{module.replace('.', '/')}.py")
    assert published.ldbe.func is published.selection and published.ldbe.loaders is published.loaders
    assert published.evaluation_as_it_is == "runs"
    assert {k: v for k, v in sys.modules.items() if k in before} == before
    assert not [k for k in sys.modules.keys() - before.keys() if k.partition(".")[0] in
                (*released.PACKAGES, *released.STAND_INS, "published_eval")]
    assert dataset.segmentation is sys.modules["dataset.segmentation"] and trainer.fused_losses.ld_losses
    assert sorted(tmp_path.rglob("*")) == files and not sys.dont_write_bytecode


def test_names_come_back_after_a_failed_import(tmp_path):
    before = dict(sys.modules)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        released.load(write_checkout(tmp_path, trainer_ldbe_trainer="from utils import func\n1 / 0\n"))
    assert {k: v for k, v in sys.modules.items() if k in before} == before


def test_tensors_stay_on_the_cpu_within():
    original = torch.Tensor.cuda
    with released.on_cpu():
        x = torch.ones(2)
        assert x.cuda() is x
    assert torch.Tensor.cuda is original


@pytest.mark.skipif(not CODE, reason="LDBE_PUBLISHED_CODE names no checkout of the published code")
def test_the_published_code_agrees_but_where_documented(monkeypatch):
    done = subprocess.run([sys.executable, "-m", "bench.published", "--code", CODE], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and DISAGREES not in done.stdout.rpartition("\n\n")[0], done.stdout + done.stderr
    from bench.published import steps
    from trainer import fused_losses
    monkeypatch.setattr(fused_losses, "MIN_OTHERS", 0.999)  # a wrong loss of ours is found
    with released.on_cpu():
        wrong = {row.what for row in steps.rows(released.load(Path(CODE))) if row.verdict == DISAGREES}
    assert wrong == {"negative loss", "gradient of their sum"}
