"""Pictures of a run for TensorBoard: a few images with predictions and pseudo labels, and confusion matrices."""
import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from dataset import segmentation
from dataset.class_sets import class_set
from dataset.files import read_image, read_label, read_label_ids
from dataset.labels import IGNORE_INDEX, ClassSet
from dataset.segmentation import Sample
from dataset.survey import spread
from dataset.transforms import for_display
from dataset.views import WholeImages
from model.segmenter import Segmenter
from trainer import evaluate
from trainer.comparison import palettes
from utils.config import Config
from utils.errors import DataError
from utils.logger import RunLog
from utils.visualize import colourise, dimmed, grid, matrix, with_legend

_WIDEST = 320  # pixels of an image in a sheet


class Pictures:
    """Shows a fixed handful of a run's images, spread over its target: `pictures` of them.

    samples: of the target. It changes nothing that a result depends on: the network is used as a validation uses it,
    and generators of random numbers are put back.
    """

    def __init__(self, cfg: Config, samples: Sequence[Sample], device: torch.device, log: RunLog):
        self.cfg, self.device, self.log = cfg, device, log
        self.chosen = spread(range(len(samples)), cfg.pictures)
        self.samples = samples
        self.class_set = class_set(cfg)

    def show(self, step: int, network: Segmenter, pseudo_labelled: Sequence[Sample] | None) -> None:
        """Show the images with the network's predictions and, where there are labels, the truth. pseudo_labelled: the
        samples with their pseudo labels, for a method that has them; then these are shown, and what they select.

        Images that cannot be read are left out: whether that ends a run is not decided here.
        """
        self.log.picture("images", step, lambda: self._sheet(network, pseudo_labelled))

    def _sheet(self, network, pseudo_labelled):
        of_labels, of_network = next(iter(palettes(self.class_set, ()).values()))
        rows: dict[str, list[Image.Image]] = {}
        table = segmentation.label_table(self.cfg.target_data, self.cfg.num_classes)
        black = None
        for index in self.chosen:
            sample = self.samples[index]
            with contextlib.suppress(DataError), same_random_numbers(self.device):
                image = Image.fromarray(for_display(read_image(sample.image, sample.bands)))
                predicted = self._predicted(network, sample)
                black = black or Image.new("RGB", image.size)
                rows.setdefault("image", []).append(image)
                rows.setdefault("prediction", []).append(colourise(predicted, of_network))
                if pseudo_labelled:
                    pseudo, selected = _pseudo(pseudo_labelled[index], image, of_network)
                    rows.setdefault("pseudo label", []).append(pseudo or black)
                    rows.setdefault("selected", []).append(selected or black)
                rows.setdefault("ground truth", []).append(_truth(sample, table, of_labels))
        if not rows:
            return None
        if None in rows["ground truth"]:
            del rows["ground truth"]
        width, height = self.cfg.target_data.input_size
        cell = (width, height) if width <= _WIDEST else (_WIDEST, max(1, _WIDEST * height // width))
        main = self.class_set.main
        return with_legend(grid(list(rows.items()), cell), main.names,
                           [self.class_set.labels.palette[ids[0]] for ids in main.labelled])

    def _predicted(self, network, sample):
        images = WholeImages([sample], self.cfg.target_data.input_size)
        (_, prediction), = evaluate.predictions(network, [images[0]], self.device)
        return prediction.cpu().numpy().astype(np.uint8)


def confusion_picture(confusion: np.ndarray, classes: ClassSet) -> Image.Image:
    """A confusion matrix int64 [labels, predictions] as a picture: of each labelled class, the share of its pixels that
    are predicted as each class."""
    with np.errstate(invalid="ignore"):
        shares = confusion / confusion.sum(1, keepdims=True)
    return matrix(shares, classes.labels.names, classes.names,
                  ("labelled as", "predicted as, % of the labelled class's pixels"))


@contextlib.contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Put the global generators of torch (on the CPU and the device), NumPy and Python back at the end to where they
    are now."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _pseudo(sample, image, palette):
    """A pseudo label in colour, and the image with the selected pixels bright; None where the file is gone."""
    with contextlib.suppress(DataError):
        label = read_label_ids(sample.label)
        return colourise(label, palette), dimmed(image, label != IGNORE_INDEX)
    return None, None


def _truth(sample, table, palette):
    with contextlib.suppress(DataError, OSError):
        return colourise(read_label(sample.label, table), palette) if sample.label else None
    return None
