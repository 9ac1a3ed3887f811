"""LDBE from Python: adapt a network to unlabelled images, without a command line or a configuration file.

    from ldbe import adapt

    network = MyNetwork()                             # any nn.Module: images in, one map for each class out
    network.load_state_dict(torch.load("trained.pth"))
    result = adapt(network, "frames/", ["road", "car", "sky"], method="ld", input_size=(1024, 512))
    print(result.verdict, result.why)                 # keep, doubtful or reject
    torch.save(result.network.state_dict(), "adapted.pth")

This is `run.py` with the network given as an object: keyword arguments are configuration keys (docs/keys.md), and those
that are not given have the values of config/own_config.yml.
"""
import contextlib
import copy
import io
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import run
from dataset import segmentation
from dataset.files import read_size
from model.build import pick_device
from model.weights import load_weights
from trainer.pictures import same_random_numbers
from trainer.verdict import CHOSEN, beside
from utils import distributed
from utils.config import parse_config
from utils.config_keys import SECTION_KEYS, Config
from utils.config_values import shown
from utils.determinism import same_kernels
from utils.errors import ConfigError, NothingToDo
from utils.yaml_text import parse_yaml, read_text

_DEFAULTS = Path(__file__).parent / "config" / "own_config.yml"
_LONGER_EDGE, _CROP, _MULTIPLE = 1024, 384, 32  # of whole images and of crops, where they are not given, pixels
_FOLDERS = {"snapshot": "snapshot", "log": "log", "plabel": "plabel", "result": "miou_result"}
_given: list[nn.Module] = []  # the network of the call of `adapt` that runs
_one_call = threading.Lock()  # held by it: random generators and standard output are those of the whole process


@dataclass(frozen=True)
class Adapted:
    """What `adapt` returns.

    network: a copy of the given network, on its device and in evaluation mode, with the weights of the chosen state;
    after the verdict `reject` those that it had. verdict: "keep", "doubtful" or "reject"; why: the reason in words;
    both are empty with score_images=0. report: the content of `<method>_verdict.json` (docs/label_free.md), or None.
    scores: of the last state on labelled validation images, {protocol: {"miou", "iou", "unseen"}}, or None without any.
    config: the configuration of the run. folder: where its files are, or None if they were not to be kept.
    """

    network: nn.Module
    verdict: str
    why: str
    report: dict[str, Any] | None
    scores: dict[str, dict] | None
    config: Config
    folder: Path | None


def adapt(network: nn.Module, images: str | Path | Sequence[str | Path], classes: Sequence[str] | int, *,
          method: str = "ld", folder: str | Path | None = None, quiet: bool = False, **keys: Any) -> Adapted:
    """Adapt a trained segmentation network to unlabelled images.

    network: an nn.Module that takes float images [B, K, H, W] and returns logits [B, C, h, w], or a mapping, tuple or
    object that holds them; it is not changed. How its input is normalised is said by the keys input_order, input_max,
    input_mean and input_std (default: RGB / 255 with ImageNet's mean and deviation). images: a folder, with all that is
    below it, or a list of files. classes: names of the C classes in the order of the network's channels, or their
    number. method: a name of docs/methods.md, or a user's own, `my_file.py:MyMethod`. folder: where checkpoints, logs
    and the verdict are kept; None: nowhere. quiet: print nothing. keys: configuration keys, and keys of a data-set
    section, by name (docs/keys.md), such as input_size=(1024, 512), batch_size=2, epochs=3, device="cuda", seed=1.

    The states of Python's, NumPy's and torch's random generators are afterwards as they were before. Raises, from
    `utils.errors`, UserError, whose text says what to do, for input that cannot be used, and Stopped, which is no
    Exception, if a signal ends the run; with a folder, the same call with resume=True then goes on.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"adapt: network is a {type(network).__name__}, expected a torch.nn.Module.")
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError("adapt: network is a TorchScript module, which cannot be trained as a copy: give the module "
                          "that it was made of.")
    if own := keys.keys() & {"model", "init_weight"}:
        raise ConfigError(f"adapt: {own.pop()}: the run starts from the given network: leave the key out.")
    if distributed.size() > 1:
        raise ConfigError("adapt: runs in one process, and torchrun has started this script in "
                          f"{distributed.size()}: start it without torchrun, or use run.py, which takes several.")
    if not _one_call.acquire(blocking=False):
        raise ConfigError("adapt: another call runs in this process, and both would use the same random generators: "
                          "call one after the other, or in processes of their own.")
    with contextlib.ExitStack() as stack:
        stack.callback(_one_call.release)
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        home = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if home.exists() and not home.is_dir():
            raise ConfigError(f"adapt: folder: {str(home)!r} is a file: give a folder.")
        home.mkdir(parents=True, exist_ok=True)
        cfg = _configuration(images, classes, home, {"method": method, **keys})
        stack.enter_context(same_random_numbers(pick_device(cfg.device)))
        stack.enter_context(same_kernels())
        _given.append(_plain(network))
        stack.callback(_given.pop)
        try:
            scores = run.run(cfg)
        except NothingToDo as done:
            raise ConfigError(f"adapt: {done} Its networks are in {home}; without resume it is done again.") from None
        last = Path(cfg.snapshot) / cfg.note / f"{cfg.stage}.pth"
        report = beside(str(last)) if cfg.score_images else None
        result = copy.deepcopy(network)
        load_weights(_plain(result), last.with_name(f"{cfg.stage}{CHOSEN}.pth") if report else last)
    found = report or {"verdict": "", "why": ""}
    return Adapted(result.eval(), found["verdict"], found["why"], report, scores, cfg, home if folder else None)


def given() -> nn.Module:
    """A copy of the network that `adapt` was given: the function that the key `model` names in its configuration.
    Raises ConfigError outside a call of `adapt`."""
    if not _given:
        raise ConfigError("model: this run's network was given as an object (ldbe.adapt): name a function that builds "
                          "it, model=my_file.py:function.")
    return copy.deepcopy(_given[-1])


def _plain(network: nn.Module) -> nn.Module:
    """The module that torch.compile has wrapped, which has its own names; any other as it is."""
    return getattr(network, "_orig_mod", network)


def _configuration(images: Any, classes: Sequence[str] | int, home: Path, keys: dict[str, Any]) -> Config:
    """The configuration of a run whose files are below `home`."""
    tree = parse_yaml(read_text(str(_DEFAULTS)), str(_DEFAULTS))
    keys = {name: _value(name, value) for name, value in keys.items()}
    section = {name: value for name, value in keys.items() if name in SECTION_KEYS}
    root, listed = _files(images, home)
    names = _names(classes)
    tree |= {"model": f"{__name__}:{given.__name__}", "init_weight": None, "num_classes": len(names)}
    tree |= {key: str(home / folder) for key, folder in _FOLDERS.items()}
    tree |= {name: value for name, value in keys.items() if name not in section}
    tree[tree["target"]] = {"type": "folder", "data_dir": root, "images": ".", "data_list": listed, "classes": names,
                            "input_size": [8, 8]} | section
    cfg = parse_config(yaml.safe_dump(tree), "adapt")
    if "input_size" not in section:
        first = segmentation.find_samples(cfg.target, cfg.target_data, "train")[0]
        tree[cfg.target]["input_size"] = _input_size(*read_size(first.image, first.bands))
    shorter = min(tree[cfg.target]["input_size"])
    sizes = {"input_tgt": shorter, "crop_tgt": min(_CROP, _rounded(shorter))}
    return parse_config(yaml.safe_dump({**tree, **{k: v for k, v in sizes.items() if k not in keys}}), "adapt")


def _value(name: str, value: Any) -> Any:
    """A value of the key `name` as YAML has it: paths as text; arrays, tensors and their numbers as lists and numbers.
    Raises ConfigError for objects that it has nothing for."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_value(name, item) for item in value]
    if isinstance(value, Mapping):
        return {_value(name, k): _value(name, v) for k, v in value.items()}
    if value is not None and not isinstance(value, (str, int, float)):
        raise ConfigError(f"adapt: {name}: {shown(value)} is no number, text, list or mapping.")
    return value


def _names(classes: Any) -> list[str]:
    """The names of the classes, of which there may be only the number."""
    if isinstance(classes, (int, np.integer)):
        return [f"class {c}" for c in range(classes)]
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise ConfigError(f"adapt: classes: expected a list of names or their number, found {shown(classes)}.")
    return _value("classes", list(classes))


def _files(images: Any, home: Path) -> tuple[str, str | None]:
    """(folder, a file that lists the images in it; None: all of them)."""
    if isinstance(images, (str, os.PathLike)):
        return os.fspath(images), None
    images = list(images) if isinstance(images, Iterable) else [images]
    if others := [type(image).__name__ for image in images if not isinstance(image, (str, os.PathLike))]:
        raise ConfigError(f"adapt: images: expected a folder or paths of image files, found {others[0]}.")
    paths = [os.path.abspath(os.path.expanduser(image)) for image in images]
    if not paths:
        raise ConfigError("adapt: images is an empty list: give the paths of image files, or a folder.")
    listed = home / "images.txt"
    listed.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    return os.path.commonpath([os.path.dirname(path) for path in paths]), str(listed)


def _input_size(width: int, height: int) -> list[int]:
    """(width, height) at which images of a size are labelled: theirs, unless they are large."""
    scale = min(1, _LONGER_EDGE / max(width, height))
    return [_rounded(width * scale), _rounded(height * scale)]


def _rounded(extent: float) -> int:
    return max(1, round(extent / _MULTIPLE)) * _MULTIPLE
