"""Sizes, batches and steps that suit images and memory: values for the keys of a configuration."""
import math
from collections import Counter
from dataclasses import dataclass

STEP = 32  # sizes are multiples of this, as most networks want them
LABELLED = 1024 * 512  # pixels of a whole image at most: those of the paper
# Bytes in training, of DeepLabV2 on a ResNet-101 with the settings of config/own_config.yml: of Python, its libraries,
# the weights and what the optimiser keeps of them; for each pixel of a batch; the latter's part with checkpointing.
# `run.py --dry-run` measured on a CPU 3.94 GiB with 4 crops of 256 x 256, and 1.68 GiB with 2 of 192 x 192, recomputed.
_BASE, _PER_PIXEL, _RECOMPUTED = 1.2 * 2**30, 11 * 2**10, 0.6
_FIXED_STEPS, _EPOCHS = 100, (2, 20)


@dataclass(frozen=True)
class Sizes:
    """input_size: (width, height). memory: bytes that training is held to take, fits: whether that is there."""

    input_size: tuple[int, int]
    input_tgt: int
    crop_tgt: int
    batch_size: int
    checkpointing: bool
    memory: float
    fits: bool


def input_size(sizes: Counter) -> tuple[int, int]:
    """(width, height) near the median shape of the images and no larger than they or LABELLED, then rounded to
    multiples of STEP. sizes: (width, height) -> images."""
    every = sorted(sizes.elements(), key=lambda size: size[0] / size[1])
    width, height = every[len(every) // 2]
    area = min(LABELLED, sorted(w * h for w, h in every)[len(every) // 2])
    scale = math.sqrt(area / (width * height))
    return _multiple(width * scale), _multiple(height * scale)


def sizes_for(sizes: Counter, memory: float, weight: float = 1.0) -> Sizes:
    """Sizes for images and memory in bytes. weight: the network's memory for each pixel beside DeepLabV2-ResNet101's.

    The first of these that fits: crops of 384 pixels in batches of 4; smaller batches and crops; the same with what is
    inside the network's blocks computed twice.
    """
    size = input_size(sizes)
    edge = min(size)
    tried = [(min(crop, edge), batch, again) for again in (False, True)
             for crop, batch in ((384, 4), (384, 2), (256, 4), (256, 2), (192, 2), (128, 2))]
    def needed(crop, batch, again):
        return _BASE + weight * _PER_PIXEL * (_RECOMPUTED if again else 1) * batch * crop * crop
    chosen = next((t for t in tried if needed(*t) <= 0.8 * memory), tried[-1])
    return Sizes(size, edge, *chosen, needed(*chosen), needed(*chosen) <= 0.8 * memory)


def steps_for(images: int, batch_size: int) -> tuple[int, int]:
    """(epochs, num_steps) for so many training images: as many passes as make about a hundred steps, 2 to 20."""
    epochs = min(max(-(-_FIXED_STEPS * batch_size // images), _EPOCHS[0]), _EPOCHS[1])
    return epochs, max(1, min(_FIXED_STEPS, epochs * images // batch_size))


def _multiple(length: float) -> int:
    return max(STEP, round(length / STEP) * STEP)
