"""Importing somebody's checkout of the published code beside the project's own packages of the same names."""
import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

import torch
import torchvision.transforms.functional  # noqa: F401 - before names are hidden, some of which it asks for

from bench.published.comparison import outcome
from utils.errors import UserError

PACKAGES = ("dataset", "model", "trainer", "utils")
# Name below -> module of the checkout, and something that it must have.
MODULES = {"network": ("model.DeeplabV2", "Deeplab"), "builder": ("model.model_builder", "init_model"),
           "base": ("trainer.base_trainer", "BaseTrainer"), "ldbe": ("trainer.ldbe_trainer", "generate_unsup_data"),
           "source_only": ("trainer.source_only_trainer", "Trainer"), "selection": ("utils.func", "thres_cb_plabel"),
           "schedule": ("utils.optimize", "lr_poly"), "files": ("dataset.base_dataset", "BaseDataSet"),
           "loaders": ("dataset.dataset", "init_target_dataset"), "inputs": ("dataset.transforms", "SubMean"),
           "crops": ("dataset.joint_transforms", "RandomSizeAndCrop")}
# What it imports and what none of the compared functions needs, or needs no more of than stands here.
STAND_INS = {
    "easydict": SimpleNamespace(EasyDict=lambda *_: SimpleNamespace()),
    **{name: MagicMock() for name in (
        "neptune", "imageio", "matplotlib", "matplotlib.pyplot", "scipy", "scipy.ndimage",
        "scipy.ndimage.interpolation", "scipy.spatial", "scipy.spatial.distance", "skimage", "skimage.filters",
        "skimage.restoration", "skimage.segmentation", "skimage.measure")},
}


def load(code: Path) -> SimpleNamespace:
    """The checkout's modules by the names of MODULES, `evaluation` (its eval.py), and `evaluation_as_it_is`, what
    becomes of importing that without a stand-in for a module that the checkout lacks. Nothing is written there.

    The checkout's code is run: whoever names it must trust it. Raises UserError if it is none.
    """
    def require(condition, lacks):
        if not condition:
            raise UserError(f"--code: {str(code)!r} is no checkout of the published code ({lacks}): give the folder "
                            "that holds its run.py and so_run.py.")
    require(code.is_dir(), "there is no such folder")
    for name in (*(module.replace(".", "/") + ".py" for module, _ in MODULES.values()), "eval.py"):
        require((code / name).is_file(), f"it has no {name}")
    evaluation = importlib.util.spec_from_file_location("published_eval", code / "eval.py")
    with _names_of(code):
        try:
            modules = {name: importlib.import_module(module) for name, (module, _) in MODULES.items()}
            as_it_is = outcome(lambda: evaluation.loader.exec_module(importlib.util.module_from_spec(evaluation)))
            sys.modules["utils.logger"] = MagicMock()
            modules["evaluation"] = importlib.util.module_from_spec(evaluation)
            evaluation.loader.exec_module(modules["evaluation"])
        except Exception as error:
            raise UserError(f"--code: {str(code)!r} cannot be imported ({type(error).__name__}: {error}): give an "
                            "unchanged checkout of the published code.") from error
    for name, (module, member) in MODULES.items():
        require(hasattr(modules[name], member), f"its {module} has no {member}")
    require(hasattr(modules["evaluation"], "compute_iou"), "its eval.py has no compute_iou")
    for name in ("base", "ldbe", "evaluation"):
        modules[name].tqdm = lambda items: items
    return SimpleNamespace(**modules, evaluation_as_it_is=as_it_is)


@contextmanager
def on_cpu():
    """Within, `tensor.cuda()` gives the tensor itself: the published code names no other device."""
    with patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor):
        yield


@contextmanager
def _names_of(code):
    """Within, PACKAGES are the checkout's. They are entered as packages, not found on the path, where a package of the
    project with an __init__.py would win over one of the checkout without."""
    taken = {*PACKAGES, *(name.partition(".")[0] for name in STAND_INS)}
    def pop():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in taken}
    hidden, writes = pop(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        for name in PACKAGES:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(code / name)]
        sys.modules.update(STAND_INS)
        yield
    finally:
        pop()
        sys.modules.update(hidden)
        sys.dont_write_bytecode = writes
