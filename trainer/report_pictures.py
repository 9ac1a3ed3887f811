"""The pictures of a report, drawn from checkpoints, pseudo labels and data: predictions of each stage, and labels."""
import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dataset import inspection, missing_labels, segmentation
from dataset.class_sets import class_set
from dataset.files import read_image, read_label_ids
from dataset.survey import spread
from dataset.transforms import for_display
from trainer import comparison, label_files
from trainer.report_data import Stage
from utils.config import Config
from utils.errors import UserError
from utils.visualize import colourise, resized

_CELL = 320  # widest picture, pixels


@dataclass(frozen=True)
class PictureTable:
    """A table of pictures. names: of its columns, the images. rows: (caption, one data URI for each column). size:
    (width, height) of the pictures."""

    title: str
    names: list[str]
    rows: list[tuple[str, list[str]]]
    size: tuple[int, int]


def tables(cfg: Config, stages: list[Stage]) -> tuple[list[PictureTable], list[str]]:
    """The tables that can be drawn, `pictures` images in each, and sentences on why others cannot."""
    if not cfg.pictures:
        return [], ["They are left out, as pictures is 0."]
    found, why_not = [], []
    for draw in (_predictions, _pseudo_labels):
        try:
            found += draw(cfg, stages)
        except (UserError, OSError) as error:
            why_not.append(f"Some pictures cannot be drawn: {error}")
    return found, why_not


def _predictions(cfg, stages):
    """Predictions of the network that the first stage started from, if it was a trained one, and of each stage."""
    files = [str(stage.checkpoint) for stage in stages if stage.checkpoint]
    start = stages[0].config.get("init_weight")
    if files and start and not stages[0].needs_source and os.path.exists(start):
        files.insert(0, start)
    last = stages[-1]
    if last.verdict and last.chosen and last.verdict["chosen"] != last.verdict["last"]:
        files.append(str(last.chosen))
    if not files:
        raise UserError("no stage has left a checkpoint.")
    samples, title = segmentation.find_split(cfg.target, cfg.target_data, "val", required=False)[0], "validation"
    if not samples:
        samples, title = segmentation.find_split(cfg.target, cfg.target_data, "train")[0], "training"
    labelled = missing_labels.has_labels(samples)
    chosen = spread(samples, cfg.pictures)
    rows = comparison.figure_rows(cfg, files, chosen, labelled)
    return [_table(cfg, f"Predictions of {title} images", chosen, rows)]


def _pseudo_labels(cfg, stages):
    """The pseudo labels of each round that are there, beside image and labels."""
    samples = segmentation.find_split(cfg.target, cfg.target_data, "train", required=False)[0]
    chosen = spread(samples, cfg.pictures)
    of_labels, of_network = next(iter(comparison.palettes(class_set(cfg), ()).values()))
    rows = []
    for stage in stages:
        for index in dict.fromkeys(event["round"] for event in stage.of("pseudo_label")):
            folder = Path(cfg.plabel) / cfg.note / stage.name / f"round{index}"
            labelled = spread(label_files.labelled_now(folder, samples), cfg.pictures)
            if all(sample.label.is_file() for sample in labelled):
                rows.append((f"{stage.title}\nround {index}",
                             [colourise(read_label_ids(sample.label), of_network) for sample in labelled]))
    if not rows or not chosen:
        return []
    rows.insert(0, ("image", [Image.fromarray(for_display(read_image(s.image, s.bands))) for s in chosen]))
    if inspection.labels_compared(cfg, chosen):
        table = segmentation.label_table(cfg.target_data, cfg.num_classes)
        rows.append(("ground truth", [colourise(segmentation.read_pair(s, table)[1], of_labels) for s in chosen]))
    return [_table(cfg, "Pseudo labels of training images, black where no pixel is selected", chosen, rows)]


def _table(cfg, title, samples, rows):
    width, height = cfg.target_data.input_size
    size = (width, height) if width <= _CELL else (_CELL, max(1, _CELL * height // width))
    return PictureTable(title, [s.name for s in samples],
                        [(caption, [_uri(resized(p, size)) for p in pictures]) for caption, pictures in rows], size)


def _uri(picture):
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
