"""What the rows work on: sizes, photo-like files in the real formats, a configuration, the project's trainer and the
obvious version's network with the same weights."""
import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from bench import baseline
from dataset import loaders, segmentation
from dataset.labels import CITYSCAPES_IDS
from dataset.toy.camera import render
from dataset.toy.files import CITIES, save_label
from dataset.transforms import network_input
from model.deeplabv2 import Bottleneck, DeepLabV2, freeze_bn_affine
from model.weights import save_weights
from trainer.ldbe_trainer import LDBETrainer
from utils.config import Config, load_config

NUM_CLASSES = 19
_runs = itertools.count()  # every trainer is a run of its own
# Scale of the residual branches: at 1, a hundred random layers amplify float32's rounding beyond comparison.
RESIDUAL = 0.2
SURENESS = 4  # scale of the head, which spreads confidences over 0.2..1
NOISE = 0.4  # of the camera, standard deviation in 0..255


@dataclass(frozen=True)
class Size:
    """Sizes of all inputs; pairs are (width, height) in pixels."""

    layers: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    cityscapes: tuple[int, int] = (2048, 1024)
    gta5: tuple[int, int] = (1914, 1052)
    input_size: tuple[int, int] = (1024, 512)
    shorter_edge: int = 720
    crop: int = 600
    images: int = 3       # of a round or validation
    many: int = 1000      # of the memory row


FULL = Size()
QUICK = Size(layers=(1, 1, 1, 1), width=4, cityscapes=(254, 127), gta5=(241, 131), input_size=(128, 64),
             shorter_edge=101, crop=64, images=2, many=30)


class Inputs:
    """Files below one folder, written when first asked for, and what is built from them."""

    def __init__(self, root: Path, size: Size):
        self.root, self.size = Path(root), size

    @functools.cached_property
    def streets(self) -> Path:
        """A folder with `gta5` and `cityscapes` in their layouts."""
        if (self.root / "data").exists():  # the parent process has written them
            return self.root / "data"
        for i in range(self.size.images):
            for split in ("train", "val"):
                city = CITIES[split][0]
                name = f"{split}/{city}/{city}_{i:06d}_000019"
                self._write("cityscapes", split, i, self.size.cityscapes, f"leftImg8bit/{name}_leftImg8bit.png",
                            f"gtFine/{name}_gtFine_labelIds.png")
            self._write("gta5", "train", i, self.size.gta5, f"images/{i + 1:05d}.png", f"labels/{i + 1:05d}.png")
        return self.root / "data"

    def _write(self, dataset, split, index, size, image_path, label_path):
        image, label = photo(dataset, split, index, size)
        image_path, label_path = (self.root / "data" / dataset / p for p in (image_path, label_path))
        for path in (image_path, label_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(image_path)
        save_label(label_path, label, dataset)

    def multiply(self, count: int) -> None:
        """Make `count` training images of the first one, by hard links: names are many, files few."""
        first = self.samples("train")[0]
        for i in range(count - self.size.images):
            for path in (first.image, first.label):
                os.link(path, path.with_name(path.name.replace("_000000_", f"_{i + self.size.images:06d}_")))

    @functools.cached_property
    def weights(self) -> Path:
        """Checkpoint of a random network whose running BN statistics fit an image, so that evaluation mode has
        something to predict."""
        path = self.root / "start.pth"
        if path.exists():
            return path
        torch.manual_seed(0)
        model = DeepLabV2(NUM_CLASSES, self.size.layers, self.size.width)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
            if isinstance(module, Bottleneck):
                torch.nn.init.constant_(module.bn3.weight, RESIDUAL)
        for conv in model.layer5.conv2d_list:
            conv.weight.data *= SURENESS
        x, _ = baseline.read_input(self.samples("train")[0].image, self.size.input_size)
        with torch.no_grad():
            model.train()(x[:, :, ::2, ::2])  # a quarter of the pixels are enough for statistics
        save_weights(model, path)
        return path

    def samples(self, split: str, dataset: str = "cityscapes") -> list[segmentation.Sample]:
        section = load_config(self._yaml({})).section(dataset)
        return segmentation.find_samples(dataset, section, split)

    def config(self, **keys) -> Config:
        """Configuration of a stage on these files, starting from `weights`; keys as in the YAML file."""
        return load_config(self.yaml(**keys))

    def yaml(self, **keys) -> Path:
        return self._yaml({"init_weight": str(self.weights), **keys})

    def _yaml(self, keys) -> Path:
        size = self.size
        folders = {name: str(self.root / name) for name in ("snapshot", "log", "plabel", "result")}
        section = {"input_size": list(size.input_size)}
        tree = {"layers": list(size.layers), "width": size.width, "num_classes": NUM_CLASSES, "device": "cpu",
                "input_tgt": size.shorter_edge, "crop_tgt": size.crop, "screen": False, "tensorboard": False,
                # Reading in the same process: a worker would take a core from the network whose time is measured.
                "worker": 0, "plabel_accuracy": False, **folders,
                "gta5": {**section, "data_dir": str(self.streets / "gta5")},
                "cityscapes": {**section, "data_dir": str(self.streets / "cityscapes")}, **keys}
        path = self.root / "bench.yml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def trainer(self, **keys) -> LDBETrainer:
        """The project's trainer as run.py builds it."""
        return LDBETrainer(self.config(note=f"bench_{os.getpid()}_{next(_runs)}", **keys))

    def plain_network(self, device: str = "cpu") -> DeepLabV2:
        """The obvious version's network: the same weights, contiguous format."""
        model = baseline.network(NUM_CLASSES, self.size.layers, self.size.width)
        model.load_state_dict(torch.load(self.weights, weights_only=True))
        freeze_bn_affine(model)
        return model.to(device)

    def validation_loader(self):
        cfg = self.config()
        return loaders.whole_image_loader(cfg, "cityscapes", self.samples("val"), True)

    def plain_inputs(self, split: str = "train"):
        """Yields each image as the obvious version reads it (`baseline.read_input`)."""
        for sample in self.samples(split):
            yield baseline.read_input(sample.image, self.size.input_size)

    def plain_pairs(self):
        """Yields (network input, truth) of the validation split as the obvious version reads them."""
        for sample in self.samples("val"):
            x, _ = baseline.read_input(sample.image, self.size.input_size)
            yield x, torch.from_numpy(baseline.read_ids(sample.label, CITYSCAPES_IDS))

    def batch(self, count: int) -> dict:
        """A training batch of random crops, as the loader gives it, with about a third of the pixels labelled."""
        generator, crop = torch.Generator().manual_seed(1), self.size.crop
        images = torch.stack([torch.from_numpy(photo("cityscapes", "train", i, (crop, crop))[0])
                              for i in range(count)])
        label = torch.randint(0, 3 * NUM_CLASSES, (count, crop // 4, crop // 4), generator=generator)
        label = label.masked_fill(label >= NUM_CLASSES, baseline.IGNORE).repeat_interleave(4, 1).repeat_interleave(4, 2)
        return {"image": images, "label": label, "name": [f"crop {i}" for i in range(count)]}

    def plain_batch(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The same batch as the obvious version's workers deliver it: float images."""
        return network_input(batch["image"]), batch["label"]


def photo(dataset: str, split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A toy street at `size` (width, height): uint8 [H, W, 3] and label ids uint8 [H, W].

    It is drawn small, enlarged, and given the fine noise of a camera: a PNG of it takes about as many bytes a pixel,
    and as long to decode, as one of the real sets (2 to 2.5 MB an image).
    """
    image, label = render(0, dataset, split, index, (512, 256))
    image = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    label = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    noise = np.random.default_rng([index, len(dataset)]).standard_normal((size[1], size[0], 3), np.float32)
    noisy = np.asarray(image, np.float32) + NOISE * noise
    return noisy.round().clip(0, 255).astype(np.uint8), np.asarray(label)
