"""One run of bench.label_free: run.py's, and then the true mIoU of every candidate, of which only the predictions stay.

    python -m bench.label_free_run --config FILE [key=value ...]
"""
import contextlib
import json
import shutil
from pathlib import Path

import numpy as np

from bench.processes import write_json
from utils.cli import leave, run_stage
from utils.config import Config
from utils.errors import NothingToDo

TRUTH, IMAGES = "truth.json", 50  # file; labelled images at most, spread over the validation split


def run(cfg: Config) -> None:
    from trainer.loop import Trainer  # late, so that --help answers at once
    stage = Path(cfg.snapshot) / cfg.note / cfg.stage
    folder = stage.with_name(f"{cfg.stage}.candidates")
    if not (folder / TRUTH).is_file():
        with contextlib.suppress(NothingToDo):  # it was stopped while candidates were scored
            Trainer(cfg).run()
        write_json(folder / TRUTH, true_scores(cfg, folder))
    for weights in [*folder.glob("*.pth"), *stage.parent.glob("*.pth")]:
        weights.unlink()
    for left in (stage.with_name(f"{cfg.stage}.state"), Path(cfg.plabel) / cfg.note / cfg.stage):
        shutil.rmtree(left, ignore_errors=True)


def candidates_of(folder: Path) -> list[dict]:
    """What the run has written of each of its candidates. folder: `<stage>.candidates`."""
    return json.loads(folder.with_name(f"{folder.stem}_verdict.json").read_text())["candidates"]


def predictions_of(folder: Path, record: dict) -> Path:
    """The file of a candidate's predictions, uint8 [n, C, h, w]."""
    return folder / f"{Path(record['file']).stem}.npy"


def true_scores(cfg: Config, folder: Path) -> dict[str, dict]:
    """Of every candidate: name -> {"miou", "iou": {class: percent or None}, "agreement"}, on the target's labelled
    validation split, by the first protocol of the configuration. agreement: with the ensemble of all candidates."""
    from dataset import loaders, missing_labels, segmentation
    from dataset.class_sets import class_set
    from model.build import build_model, pick_device
    from trainer import evaluate, label_free
    samples, _ = segmentation.find_split(cfg.target, cfg.target_data, "val")
    missing_labels.require_labels(cfg.target, cfg.target_data, "val", samples)
    device, classes, found, records = pick_device(cfg.device), class_set(cfg), {}, candidates_of(folder)
    spread = [samples[i] for i in np.linspace(0, len(samples) - 1, min(IMAGES, len(samples))).round().astype(int)]
    items = list(loaders.whole_image_loader(cfg, cfg.target, spread, True))
    predictions = [np.load(predictions_of(folder, record), mmap_mode="r") for record in records]
    everyone = [[*range(len(records))]]
    for record, agreement in zip(records, label_free.agreements(predictions, everyone)[0]):
        network, _ = build_model(cfg, device, str(predictions_of(folder, record).with_suffix(".pth")))
        confusion = evaluate.evaluate(network, items, len(classes), device, num_labels=len(classes.labels))
        scores = next(iter(evaluate.protocol_scores(confusion, classes).values()))
        found[record["name"]] = {"miou": scores["miou"], "iou": scores["iou"], "agreement": agreement}
    return found


if __name__ == "__main__":
    leave(run_stage(__doc__, "config/ldbe_config.yml", run))
