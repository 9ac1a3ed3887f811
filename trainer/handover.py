"""What a run hands over beside its checkpoints: model folders, and what they say on where the network comes from."""
import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dataset.class_sets import described
from model.checkpoint_file import read_content
from model.folder import is_folder
from model.folder_writing import save_folder
from model.segmenter import Segmenter
from trainer.verdict import Verdict
from utils.config import Config

_ROOT = Path(__file__).resolve().parents[1]


def provenance(cfg: Config, start: str | None, data: str, images: int) -> dict[str, Any]:
    """Where a run's network comes from, for JSON. The same run gives the same: it names no time and no folder of this
    machine.

    start: SHA-256 of init_weight. data: `segmentation.fingerprint` of the training images, of which there are `images`.
    """
    method = cfg.method_class
    return {"note": cfg.note, "method": _portable(cfg.method), "seed": cfg.seed,
            "init_weight": _portable(cfg.init_weight), "init_weight_sha256": start,
            "data": {"section": cfg.source if method.needs_source else cfg.target, "images": images,
                     "fingerprint": data},
            "versions": _versions(cfg)}


def leave_folders(cfg: Config, network: Segmenter, path: Path, step: int, origin: Mapping[str, Any],
                  chosen: Path | None, verdict: Verdict | None) -> None:
    """Write a run's network as a model folder beside its checkpoint `path`, and the chosen one beside its own. Without
    `model_folder`, remove those of an earlier run, whose weights are others.

    step: at which the network stands. origin: `provenance`. chosen, verdict: what `Candidates.hand_back` returns.
    """
    if not cfg.model_folder:
        for folder in (file.with_suffix("") for file in (path, chosen) if file):
            if is_folder(folder):
                shutil.rmtree(folder, ignore_errors=True)
        return
    classes = described(cfg)
    said = {"verdict": verdict.verdict, "why": verdict.why, "chosen": verdict.chosen, "last": verdict.last} \
        if verdict else None
    save_folder(path.with_suffix(""), network, cfg, classes, {**origin, "step": step, "verdict": said})
    if chosen:
        state: Any = read_content(chosen)
        record = next(c for c in verdict.candidates if c["name"] == verdict.chosen)
        save_folder(chosen.with_suffix(""), network, cfg, classes,
                    {**origin, "step": record["step"], "verdict": said}, state)


def _portable(path):
    """A path without the folders of this machine."""
    return os.path.basename(path.rstrip("/\\")) if path and os.path.isabs(path) else path


def _versions(cfg):
    package = getattr(cfg.network_class, "package", None)
    names = ("torchvision", package[1]) if package else ("torchvision",)
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            **{name: _version(name) for name in names}, "project": _commit()}


def _version(package):
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)


def _commit():
    """The commit of this project, None where it is no repository of its own."""
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), "rev-parse", "--show-prefix", "HEAD"], capture_output=True,
                              text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    prefix, _, commit = done.stdout.partition("\n")
    return None if prefix else commit.strip()
