"""The published recipe written plainly: what the project's own code is measured against.

Each piece computes what trainer/ and dataset/ compute (same method, same random draws), in the way that first comes to
mind: the network runs twice over an image that is to be labelled, confidences of all pixels pile up in Python lists,
every loss takes a softmax of its own, quantiles come from sorting, whole images are resized to keep
a part of them. The model of every function is a `network` on the device where it is to run.
"""
import copy
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.deeplabv2 import DeepLabV2, Head
from model.ema import ema_decay
from trainer import losses
from trainer.classmix import class_mix
from utils.constants import BGR_MEAN

IGNORE = 255


class PlainHead(Head):
    """The sum of the four convolutions, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(conv(x) for conv in self.conv2d_list)


def network(num_classes: int, layers: tuple[int, ...], width: int) -> DeepLabV2:
    """The network in contiguous format with the plain head and frozen weights of its batch norms."""
    model = DeepLabV2(num_classes, layers, width)
    model.layer5 = PlainHead(width * 32, num_classes)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.requires_grad_(False)
    return model


def network_input(image) -> Tensor:
    """RGB image or pixels uint8 [H, W, 3] -> float32 [3, H, W], BGR in 0..255 minus the mean."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1] - np.asarray(BGR_MEAN, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def read_input(path: Path, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """The whole image resized to input_size (width, height), float32 [1, 3, h, w], and the file's (height, width)."""
    image = Image.open(path).convert("RGB")
    return network_input(image.resize(input_size, Image.BICUBIC)).unsqueeze(0), (image.height, image.width)


def train_ids(label, ids: dict[int, int]) -> np.ndarray:
    """uint8 [H, W] of a label image; ids: label id -> train id, IGNORE for all others."""
    label = np.asarray(label)
    mapped = np.full(label.shape, IGNORE, np.uint8)
    for label_id, train_id in ids.items():
        mapped[label == label_id] = train_id
    return mapped


def upsampled(model, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits float [B, C, *size] of images float [B, 3, h, w]."""
    return F.interpolate(model.score_map(x), size, mode="bilinear", align_corners=True)


def thresholds(model, inputs, num_classes: int, portion: float) -> list[float | None]:
    """delta_c of each class, None where nobody predicts it. inputs: yields (float [1, 3, h, w], file size)."""
    confidences = [[] for _ in range(num_classes)]
    model.train()
    for x, _ in inputs:
        with torch.no_grad():
            conf, label = upsampled(model, x, x.shape[-2:])[0].softmax(0).max(0)
        conf, label = conf.cpu().numpy(), label.cpu().numpy()
        for c in range(num_classes):
            confidences[c].extend(conf[label == c].tolist())
    for values in confidences:
        values.sort(reverse=True)
    return [values[top_count(portion, len(values)) - 1] if values else None for values in confidences]


def top_count(portion: float, n: int) -> int:
    """floor(portion * n), at least 1; the small term undoes the rounding of products such as 0.29 * 100."""
    return max(1, math.floor(portion * n + 1e-9))


def pseudo_labels(model, inputs, names: list[str], deltas: list[float | None], portion: float, folder: Path) -> None:
    """Write `<folder>/<name>.png` for each of `inputs` (as in `thresholds`), at the file's size."""
    model.train()
    for (x, size), name in zip(inputs, names):
        with torch.no_grad():
            logits = upsampled(model, x, size)
            label = logits.softmax(1).argmax(1)[0]
            conf = logits.softmax(1).max(1).values[0]
            ranked = logits.softmax(1).max(1).values.flatten().sort(descending=True).values
        selected = conf >= ranked[top_count(portion, len(ranked)) - 1]
        for c, delta in enumerate(deltas):
            if delta is not None:
                selected |= (label == c) & (conf >= delta)
        label[~selected] = IGNORE
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label.cpu().numpy().astype(np.uint8)).save(path)


def validation(model, pairs, num_classes: int) -> Tensor:
    """Confusion matrix int64 [C, C], rows = label. pairs: yields (float [1, 3, h, w], label uint8 tensor [H, W])."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    model.eval()
    for x, label in pairs:
        with torch.no_grad():
            prediction = upsampled(model, x, label.shape)[0].argmax(0)
        counted = label != IGNORE
        rows = F.one_hot(label[counted].long(), num_classes).float()
        columns = F.one_hot(prediction[counted], num_classes).float()
        confusion += (rows.T @ columns).long().cpu()  # float32 counts exactly up to 2^24, more than an image has
    return confusion


def ld_losses(logits: Tensor, pseudo_label: Tensor, rank: int, entropy: str = "released") -> dict[str, Tensor]:
    """The three terms of label denoising, entropy over all pixels; arguments as in `fused_losses.ld_losses`."""
    return {"positive": losses.positive(logits, pseudo_label), "entropy": losses.entropy(logits, kind=entropy),
            "negative": losses.negative(logits, rank)}


def training_sample(image_path: Path, label_path: Path, ids: dict[int, int], rng: np.random.Generator,
                    shorter_edge: int, crop: int, scales: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """One crop: network input float32 [3, crop, crop] and train ids int64 [crop, crop].

    The whole image and label are resized, then cropped; where the crop does not fit, a square of the shorter side is
    cut and resized to the crop. Ids are mapped on the crop, which is the cheaper order.
    """
    image, label = Image.open(image_path).convert("RGB"), Image.open(label_path)
    factor = shorter_edge * scales[rng.integers(len(scales))] / min(image.size)
    width, height = (max(1, round(extent * factor)) for extent in image.size)
    image, label = image.resize((width, height), Image.BICUBIC), label.resize((width, height), Image.NEAREST)
    side = min(crop, width, height)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    box = (left, top, left + side, top + side)
    image, label = image.crop(box), label.crop(box)
    if side < crop:
        image, label = image.resize((crop, crop), Image.BICUBIC), label.resize((crop, crop), Image.NEAREST)
    if rng.random() < 0.5:
        image, label = image.transpose(Image.FLIP_LEFT_RIGHT), label.transpose(Image.FLIP_LEFT_RIGHT)
    return network_input(image), torch.from_numpy(train_ids(label, ids)).long()


class Step:
    """Training steps on one fixed batch. images: float [B, 3, H, W]; label: int64 [B, H, W]; method: ld or be; cfg: the
    configuration. losses: of the last step."""

    def __init__(self, model, images: Tensor, label: Tensor, method: str, cfg, rate: float):
        self.network, self.images, self.label, self.method, self.cfg = model, images, label, method, cfg
        self.teacher, self.updates, self.losses = copy.deepcopy(model), 0, {}
        head = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith("layer5.")]
        rest = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("layer5.")]
        groups = [{"params": rest, "lr": rate * cfg.backbone_lr_mult}, {"params": head, "lr": rate * cfg.head_lr_mult}]
        self.optimizer = torch.optim.SGD(groups, momentum=cfg.momentum, weight_decay=cfg.weight_decay, foreach=False)

    def __call__(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.losses = self._losses(np.random.default_rng([self.cfg.seed, 0, 0]))  # round 0, step 0
            self.optimizer.zero_grad()
            sum(self.losses.values()).backward()
            self.optimizer.step()
            if self.method == "be":
                average(self.teacher, self.network, ema_decay(self.updates, self.cfg.options["ema_alpha"]))
                self.updates += 1

    def _losses(self, rng):
        if self.method == "ld":
            rank = losses.negative_rank(self.cfg.num_classes, self.cfg.options["neg_rank_width"], rng)
            return ld_losses(self.network.train()(self.images), self.label, rank)
        with torch.no_grad():
            logits = self.teacher.train()(self.images)
            label, conf = logits.softmax(1).argmax(1), logits.softmax(1).max(1).values
        label = torch.where(self.label != IGNORE, self.label, label)
        conf = torch.where(self.label != IGNORE, torch.ones_like(conf), conf)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        images, label, conf = class_mix(self.images, label, conf, generator)
        return {"mixed": losses.mixed_cross_entropy(self.network.train()(images), label, conf,
                                                    self.cfg.options["conf_thresh"])}


def average(teacher, student, decay: float) -> None:
    """theta' <- decay theta' + (1 - decay) theta, parameter by parameter; buffers are copied."""
    for own, other in zip(teacher.parameters(), student.parameters()):
        own.data = decay * own.data + (1 - decay) * other.data
    for own, other in zip(teacher.buffers(), student.buffers()):
        own.copy_(other)
