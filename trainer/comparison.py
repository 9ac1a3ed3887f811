"""Comparison of checkpoints: their scores side by side, and a figure of their predictions as in the paper."""
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset import inspection, loaders, missing_labels, segmentation
from dataset.class_sets import class_set
from dataset.files import read_image
from dataset.labels import ClassSet
from dataset.segmentation import Sample
from dataset.survey import spread
from dataset.transforms import for_display
from model.build import pick_device
from model.inference import Augmentation
from trainer import agreement, evaluate, methods, verdict
from utils import distributed
from utils.checkpoint import digest
from utils.config import Config
from utils.errors import ConfigError, one_line
from utils.progress import Progress
from utils.visualize import IGNORE_COLOUR, colourise, grid, with_legend

_CELL_WIDTH = 512  # of a figure's pictures: small images are enlarged, to show small things
UNCLAIMED_COLOUR = (255, 255, 255)  # of predictions that no class of a protocol claims


def headings(checkpoints: list[str]) -> list[str]:
    """A heading for each checkpoint: the title of the method of its name, else the file's name; preceded by the folder
    where two would be the same.

    Raises ConfigError if no checkpoint is given, or one twice.
    """
    stems = [Path(re.sub(r"(\.[^./#]+)#.*", r"\1", c)).stem for c in checkpoints]  # file.pth#entry -> file
    titles = {name: method.title for name, method in methods.known().items()}
    titles |= {f"{name}{verdict.CHOSEN}": f"{title or name} chosen" for name, title in titles.items()}
    names = [titles.get(stem, stem) for stem in stems]
    names = [f"{Path(c).parent.name}/{n}" if names.count(n) > 1 else n for c, n in zip(checkpoints, names)]
    names = [c if names.count(n) > 1 else n for c, n in zip(checkpoints, names)]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"checkpoints: expected one or more different files, found {checkpoints}.")
    return names


def score_checkpoints(cfg: Config, checkpoints: list[str],
                      augmentation: Augmentation = evaluate.NO_AUGMENTATION) -> dict[str, dict]:
    """Scores of each checkpoint on the target's validation split: heading -> `evaluate.protocol_scores`, in order.
    augmentation: at test time. Of several processes each predicts its share of the images, and all have the scores.

    At the end, remarks go to stderr: what was left out of the split, how a checkpoint was converted, and what is
    suspicious about it. Raises CheckpointError for a checkpoint that does not fit the network, or that leaves a part of
    it at random.
    """
    device, names, classes = pick_device(cfg.device), headings(checkpoints), class_set(cfg)
    facts = {}
    samples, remarks = segmentation.find_split(cfg.target, cfg.target_data, "val")
    missing_labels.require_labels(cfg.target, cfg.target_data, "val", samples)
    remarks += inspection.unknown_ids(cfg, cfg.target, samples)
    for checkpoint in checkpoints:  # all of them first: a wrong name is found before the evaluations
        network, loaded = evaluate.trained_network(cfg, device, checkpoint)
        if distributed.size() > 1:
            facts[f"weights of {checkpoint}"] = digest(network.state_dict())
        remarks += [f"{checkpoint}: {line}" for line in str(loaded).splitlines()] if loaded.remarkable else []
    agreement.require_same(lambda: {**agreement.of_configuration(cfg, device), **facts,
                                    "images": segmentation.fingerprint(samples)})
    scores = {}
    for name, checkpoint in zip(names, checkpoints):
        model, _ = evaluate.trained_network(cfg, device, checkpoint)
        loader = loaders.whole_image_loader(cfg, cfg.target, distributed.share(samples), True, device.type == "cuda",
                                            augmentation.scales)
        confusion = evaluate.evaluate(model, Progress(loader, name, cfg.print_freq, cfg.screen), len(classes), device,
                                      num_labels=len(classes.labels), flip=augmentation.flip)
        scores[name] = evaluate.protocol_scores(confusion, classes)
    for remark in remarks if distributed.is_main() else ():  # at the end, so that an error is the only line
        print(one_line(remark), file=sys.stderr)
    return scores


def figure(cfg: Config, checkpoints: list[str], count: int,
           augmentation: Augmentation = evaluate.NO_AUGMENTATION) -> Image.Image:
    """A picture that compares predictions. Its columns are `count` images spread over the target's validation split.
    Its rows are those of `figure_rows`; below them are the colours of the labels' classes."""
    samples = spread(segmentation.find_samples(cfg.target, cfg.target_data, "val"), count)
    width, height = cfg.target_data.input_size
    rows, classes = figure_rows(cfg, checkpoints, samples, True, augmentation), class_set(cfg).labels
    return with_legend(grid(rows, (_CELL_WIDTH, _CELL_WIDTH * height // width)), classes.names, classes.palette)


def figure_rows(cfg: Config, checkpoints: list[str], samples: Sequence[Sample], labelled: bool,
                augmentation: Augmentation = evaluate.NO_AUGMENTATION) -> list[tuple[str, list[Image.Image]]]:
    """Rows of pictures, (caption, one picture of each sample): the image and, for each protocol of `palettes`, every
    checkpoint's prediction and, if the samples are labelled, the ground truth."""
    device, table = pick_device(cfg.device), segmentation.label_table(cfg.target_data, cfg.num_classes)
    pairs = [segmentation.read_pair(s, table) if labelled else (read_image(s.image, s.bands), None) for s in samples]
    predicted = {}
    for name, checkpoint in zip(headings(checkpoints), checkpoints):
        model, _ = evaluate.trained_network(cfg, device, checkpoint)
        loader = loaders.whole_image_loader(cfg, cfg.target, samples, False, scales=augmentation.scales)
        predicted[name] = [prediction.cpu().numpy().astype(np.uint8)
                           for _, prediction in evaluate.predictions(model, loader, device, augmentation.flip)]
    rows = [("image", [Image.fromarray(for_display(image)) for image, _ in pairs])]
    drawn = palettes(class_set(cfg), tuple(cfg.target_data.protocols or ()))
    for protocol, (of_labels, of_network) in drawn.items():
        title = f"\n{protocol}" if len(drawn) > 1 else ""
        rows += [(name + title, [colourise(p, of_network) for p in pictures]) for name, pictures in predicted.items()]
        if labelled:
            rows.append((f"ground truth{title}", [colourise(label, of_labels) for _, label in pairs]))
    return rows


def palettes(classes: ClassSet, declared: tuple[str, ...]) -> dict[str, tuple[list, list]]:
    """Colours of a figure: {protocol: (colour of each train id of the labels, colour of each class of the network)}.
    Shown are the first protocol and those that are `declared`.

    Both sides have the labels' colours: a class has that of its first train id. Labels that are not scored are drawn as
    ignored pixels; predictions that no class of the protocol claims are white.
    """
    def drawn(protocol, groups, count, other):
        colours = [classes.labels.palette[ids[0]] for ids in protocol.labelled]
        return [next((c for c, group in zip(colours, groups) if i in group), other) for i in range(count)]
    full = next(iter(classes.protocols))
    shown = {name: classes.protocols[name] for name in (declared if full in declared else (full, *declared))}
    return {name: (drawn(p, p.labelled, len(classes.labels), IGNORE_COLOUR),
                   drawn(p, p.predicted, len(classes), UNCLAIMED_COLOUR)) for name, p in shown.items()}
