"""What the rows work on: sizes, photo-like files in the real formats, a configuration, the project's trainer and the
baseline's network with the same weights."""
import functools
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from bench import baseline
from dataset import loaders, segmentation
from dataset.labels import CITYSCAPES_IDS, IGNORE_INDEX
from dataset.toy.camera import render
from dataset.toy.files import save_label, world_files
from model.build import build_model
from model.deeplabv2 import Bottleneck, DeepLabV2, Head
from model.weights import save_weights
from trainer.loop import Trainer
from utils.config import Config, load_config

NUM_CLASSES = 19
# Scale of the residual branches: at 1, a hundred random layers amplify float32's rounding beyond comparison.
RESIDUAL = 0.2
SHARPNESS = 4  # scale of the head, which spreads confidences over 0.2..1
NOISE = 0.4  # of the camera, standard deviation in 0..255
_runs = itertools.count()  # every trainer is a run of its own


@dataclass(frozen=True)
class Size:
    """Sizes of all inputs; pairs are (width, height) in pixels. images: of a round or validation; many: of the memory
    row; sides: of the rows that grow. model: the configuration's key."""

    layers: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    cityscapes: tuple[int, int] = (2048, 1024)
    gta5: tuple[int, int] = (1914, 1052)
    input_size: tuple[int, int] = (1024, 512)
    shorter_edge: int = 720
    crop: int = 600
    images: int = 3
    many: int = 1000
    names: tuple[int, int] = (5_000_000, 100_000)  # of a list, for the product and for the baseline
    sides: tuple[int, int, int] = (256, 512, 1024)
    model: str = "deeplab"

    def grown(self, axis: str, value: int) -> tuple[int, int, int, float]:
        """(images, classes, side in pixels, units) of a size of one axis while the others stay at their middle. units:
        what grows. A cost that is linear in it has the same figure a unit at all sizes."""
        at = {name: values[1] for name, values in self.axes.items()} | {axis: value}
        return *at.values(), value**2 if axis == "sides" else value

    @property
    def axes(self) -> dict[str, tuple[int, int, int]]:
        """What grows, in three sizes."""
        return {"images": (4, 8, 16), "classes": (10, 20, 40), "sides": self.sides}


FULL = Size()
QUICK = Size(layers=(1, 1, 1, 1), width=4, cityscapes=(254, 127), gta5=(241, 131), input_size=(128, 64),
             shorter_edge=101, crop=64, images=2, many=30, names=(3000, 300), sides=(32, 64, 128))


class Inputs:
    """Files below one folder, written when first asked for, and what is built from them for `device` (cpu or cuda)."""

    def __init__(self, root: Path, size: Size, device: str = "cpu"):
        self.root, self.size, self.device = Path(root), size, device
        self.root.mkdir(exist_ok=True)

    def resized(self, name: str, **changes) -> "Inputs":
        """Inputs of another size, in a folder below this one."""
        return Inputs(self.root / name, replace(self.size, **changes), self.device)

    def light(self, model: str) -> "Inputs":
        """Inputs of another network, with files of its input size."""
        return self.resized("light", model=model, cityscapes=self.size.input_size)

    @functools.cached_property
    def streets(self) -> Path:
        """A folder with `gta5` and `cityscapes` in their layouts; another process may have written it."""
        root, n = self.root / "data", self.size.images
        for dataset, split, i, *paths in () if root.exists() else world_files(root, n, 0, n, n):
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            image, label = photo(dataset, split, i, getattr(self.size, dataset))
            Image.fromarray(image).save(paths[0])
            save_label(paths[1], label, dataset)
        return root

    def multiply(self, count: int) -> None:
        """Make `count` training images of the first one, by hard links: names are many, files few."""
        samples = self.samples("train")
        for i in range(len(samples), count):
            for path in (samples[0].image, samples[0].label):
                os.link(path, path.with_name(path.name.replace("_000000_", f"_{i:06d}_")))

    @functools.cached_property
    def weights(self) -> Path:
        """Checkpoint of a random network whose running BN statistics fit an image, so that evaluation mode has
        something to predict."""
        path = self.root / "start.pth"
        if path.exists():
            return path
        torch.manual_seed(0)
        network, _ = build_model(self.config(init_weight="None", device="cpu"), torch.device("cpu"))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
            if isinstance(module, Bottleneck):
                torch.nn.init.constant_(module.bn3.weight, RESIDUAL)
            if isinstance(module, Head):
                for conv in module.conv2d_list:
                    conv.weight.data *= SHARPNESS
        pixels, _ = photo("cityscapes", "train", 0, self.size.input_size)
        with torch.no_grad():  # a quarter of the pixels are enough for statistics
            network.train()(network.prepare(torch.from_numpy(pixels[None, ::2, ::2].copy())))
        save_weights(network, path)
        return path

    def samples(self, split: str, dataset: str = "cityscapes") -> list[segmentation.Sample]:
        section = self.config(init_weight="None").section(dataset)
        return segmentation.find_samples(dataset, section, split)

    def config(self, **keys) -> Config:
        """Configuration of a stage on these files, starting from `weights`; keys as in the YAML file."""
        return load_config(self.yaml(**keys))

    def yaml(self, **keys) -> Path:
        """The file of `config`. Images are read in the same process: a worker would take a core from the network whose
        time is measured."""
        size, keys = self.size, keys if "init_weight" in keys else {"init_weight": str(self.weights), **keys}
        network = {"layers": list(size.layers), "width": size.width} if size.model == "deeplab" else {}
        tree = {"model": size.model, **network, "num_classes": NUM_CLASSES, "device": self.device, "worker": 0,
                "amp": "off", "input_tgt": size.shorter_edge, "crop_tgt": size.crop, "screen": False,
                "tensorboard": False, "plabel_accuracy": False, "score_images": 0,
                **{k: str(self.root / k) for k in ("snapshot", "log", "plabel", "result")},
                **{name: {"input_size": list(size.input_size), "data_dir": str(self.streets / name)}
                   for name in ("gta5", "cityscapes")}, **keys}
        path = self.root / f"bench_{os.getpid()}.yml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def trainer(self, **keys) -> Trainer:
        """The project's trainer as run.py builds it."""
        return Trainer(self.config(note=f"bench_{os.getpid()}_{next(_runs)}", **keys))

    def plain_network(self) -> DeepLabV2:
        """The baseline's network: the same weights, contiguous format."""
        network = baseline.network(NUM_CLASSES, self.size.layers, self.size.width)
        network.load_state_dict(torch.load(self.weights, weights_only=True))
        return network.to(self.device)

    def loader(self, split: str):
        """The project's reader of whole images, for validation with labels."""
        return loaders.whole_image_loader(self.config(), "cityscapes", self.samples(split), split == "val")

    def plain_inputs(self, split: str = "train"):
        """Yields each image as the baseline reads it: network input float32 [1, 3, h, w], size (H, W) of the file."""
        for sample in self.samples(split):
            x, size = baseline.read_input(sample.image, self.size.input_size)
            yield x.to(self.device), size

    def plain_pairs(self):
        """Yields (network input, label uint8 [H, W]) of the validation split as the baseline reads them."""
        for sample, (x, _) in zip(self.samples("val"), self.plain_inputs("val")):
            yield x, torch.from_numpy(baseline.train_ids(Image.open(sample.label), CITYSCAPES_IDS)).to(self.device)

    def batch(self, count: int) -> dict:
        """A training batch of random crops, as the loader gives it, with about a third of the pixels labelled."""
        generator, crop = torch.Generator().manual_seed(1), self.size.crop
        images = [torch.from_numpy(photo("cityscapes", "train", i, (crop, crop))[0]) for i in range(count)]
        label = torch.randint(0, 3 * NUM_CLASSES, (count, crop // 4, crop // 4), generator=generator)
        label = label.masked_fill(label >= NUM_CLASSES, IGNORE_INDEX).repeat_interleave(4, 1).repeat_interleave(4, 2)
        return {"image": torch.stack(images), "label": label, "name": [f"crop {i}" for i in range(count)]}


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

