"""Comparing checkpoints: scores side by side, and the figure of the paper (image, each network, ground truth)."""
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dataset import inspection, loaders, segmentation
from dataset.class_sets import class_set
from dataset.labels import ClassSet
from dataset.transforms import for_display
from model.build import build_model, pick_device
from trainer import evaluate, methods
from utils.config import Config
from utils.errors import CheckpointError, ConfigError, one_line
from utils.progress import Progress
from utils.visualize import IGNORE_COLOUR, colourise, grid

UNCLAIMED_COLOUR = (255, 255, 255)  # of predictions that no class of a protocol claims


def headings(checkpoints: list[str]) -> list[str]:
    """A name for each checkpoint: the stage's, else the file's, with the folder before it where two would agree.

    Raises ConfigError if no checkpoint or one checkpoint twice is given.
    """
    stems = [Path(re.sub(r"(\.[^./#]+)#.*", r"\1", c)).stem for c in checkpoints]  # less the entry of file.pth#entry
    titles = {name: method.title for name, method in methods.known().items()}
    names = [titles.get(stem, stem) for stem in stems]
    names = [f"{Path(c).parent.name}/{n}" if names.count(n) > 1 else n for c, n in zip(checkpoints, names)]
    names = [c if names.count(n) > 1 else n for c, n in zip(checkpoints, names)]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"checkpoints: expected one or more different files, found {checkpoints}.")
    return names


def score_checkpoints(cfg: Config, checkpoints: list[str]) -> dict[str, dict]:
    """heading -> `evaluate.protocol_scores` on the target's validation split, for each checkpoint in order.

    Then what was left out of the split, and what was done to a checkpoint or is suspicious about it, goes to stderr.
    Raises CheckpointError for one that does not fit, or that would leave a part of the network at random.
    """
    device, names, classes = pick_device(cfg.device), headings(checkpoints), class_set(cfg)
    samples, remarks = segmentation.find_split(cfg.target, cfg.target_data, "val")
    segmentation.require_labels(cfg.target, cfg.target_data, "val", samples)
    remarks += inspection.unknown_ids(cfg, cfg.target, samples)
    for checkpoint in checkpoints:  # a wrong name among them should not cost the evaluation of the others
        _, loaded = build_model(cfg, device, checkpoint)
        if loaded.initialised:
            raise CheckpointError(f"{checkpoint}: is an initialisation without a head, no trained network "
                                  f"({loaded.facts}).")
        remarks += [f"{checkpoint}: {line}" for line in str(loaded).splitlines()] if loaded.remarkable else []
    scores = {}
    for name, checkpoint in zip(names, checkpoints):
        model, _ = build_model(cfg, device, checkpoint)
        loader = loaders.whole_image_loader(cfg, cfg.target, samples, True, device.type == "cuda")
        confusion = evaluate.evaluate(model, Progress(loader, name, cfg.print_freq, cfg.screen), len(classes), device,
                                      num_labels=len(classes.labels))
        scores[name] = evaluate.protocol_scores(confusion, classes)
    for remark in remarks:  # not before: an error is to be the only line
        print(one_line(remark), file=sys.stderr)
    return scores


def figure(cfg: Config, checkpoints: list[str], count: int) -> Image.Image:
    """Rows: image, then for each of `palettes` every checkpoint's prediction and the ground truth; columns: `count`
    images spread over the split."""
    device = pick_device(cfg.device)
    samples = segmentation.find_samples(cfg.target, cfg.target_data, "val")
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)]
    table = segmentation.label_table(cfg.target_data, cfg.num_classes)
    pairs = [segmentation.read_pair(s, table) for s in chosen]
    predicted = {}
    for name, checkpoint in zip(headings(checkpoints), checkpoints):
        model, _ = build_model(cfg, device, checkpoint)
        loader = loaders.whole_image_loader(cfg, cfg.target, chosen, False)
        predicted[name] = [prediction.cpu().numpy().astype(np.uint8)
                           for _, prediction in evaluate.predictions(model, loader, device)]
    rows = [("image", [Image.fromarray(for_display(image)) for image, _ in pairs])]
    drawn = palettes(class_set(cfg), tuple(cfg.target_data.protocols or ()))
    for protocol, (of_labels, of_network) in drawn.items():
        title = f"\n{protocol}" if len(drawn) > 1 else ""
        rows += [(name + title, [colourise(p, of_network) for p in pictures]) for name, pictures in predicted.items()]
        rows.append((f"ground truth{title}", [colourise(label, of_labels) for _, label in pairs]))
    return grid(rows, cfg.target_data.input_size if cfg.target_data.input_size[0] <= 512 else
                (512, 512 * cfg.target_data.input_size[1] // cfg.target_data.input_size[0]))


def palettes(classes: ClassSet, declared: tuple[str, ...]) -> dict[str, tuple[list, list]]:
    """{protocol: (colour of each train id of the labels, colour of each class of the network)} of what a figure shows:
    the full set where labels have the network's own classes, and the `declared` protocols.

    Both sides of a protocol are drawn in the labels' colours: a class in that of its first train id, labels that are
    not scored as ignored pixels, predictions that no class claims in white.
    """
    def drawn(protocol, groups, count, other):
        colours = [classes.labels.palette[ids[0]] for ids in protocol.labelled]
        return [next((c for c, group in zip(colours, groups) if i in group), other) for i in range(count)]
    full = next(iter(classes.protocols))
    shown = {name: classes.protocols[name] for name in (declared if full in declared else (full, *declared))}
    return {name: (drawn(p, p.labelled, len(classes.labels), IGNORE_COLOUR),
                   drawn(p, p.predicted, len(classes), UNCLAIMED_COLOUR)) for name, p in shown.items()}
