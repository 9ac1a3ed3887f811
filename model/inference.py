"""Prediction of whole images: test-time augmentation, and images too large for one pass, cut into tiles."""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.segmenter import Segmenter
from utils.errors import ConfigError
from utils.tiles import tiles

STRIDE = 32  # tiles lie on multiples of this: the strides of nearly all networks divide it


@dataclass(frozen=True)
class Augmentation:
    """Test-time augmentation: the network sees each image at several sizes, and mirrored as well. Its softmax
    probabilities are averaged at the size of the result. The default is none.

    scales: factors on the size at which the network sees the image. flip: at each of them the mirrored image as well.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> int:
        """Network passes of an image."""
        return len(self.scales) * (1 + self.flip)


@dataclass(frozen=True)
class Tiling:
    """How images are cut: into tiles of at most tile x tile pixels, neighbours of which share at least `overlap`.

    Tiles begin at multiples of `multiple`, of which tile and overlap are multiples, and overlap is at most tile / 2. A
    network whose stride divides `multiple` then has its positions in every tile where it has them in the whole image.
    """

    tile: int
    overlap: int
    multiple: int = STRIDE

    def spans(self, extent: int) -> list[tuple[int, int]]:
        """(begin, end) of each tile along an axis of `extent` pixels. The last one is as long as the others, or up to
        `multiple` - 1 pixels shorter."""
        if extent <= self.tile:
            return [(0, extent)]
        step = self.tile - self.overlap
        begins = [*range(0, extent - self.tile, step), -(-(extent - self.tile) // self.multiple) * self.multiple]
        return [(begin, min(begin + self.tile, extent)) for begin in dict.fromkeys(begins)]

    def weights(self, extent: int) -> list[tuple[int, Tensor]]:
        """For each tile of `spans`, where its weights begin, and the weights float32 [n]; its other pixels have none.

        The weights of all tiles add up to 1 at every pixel. Towards a neighbour they fall linearly over half of
        `overlap`, in the middle of what the two share; at least a quarter of `overlap` beside the rim is left out,
        since there the network sees the tile's end in place of the image.
        """
        spans, length = self.spans(extent), self.overlap // 2
        falls = [(begin + end) // 2 - length // 2 for (begin, _), (_, end) in zip(spans[1:], spans)]
        rise = (torch.arange(length) + 0.5) / max(1, length)
        found = []
        for begin, end in zip([0, *falls], [*(fall + length for fall in falls), extent]):
            weights = torch.ones(end - begin)
            if length and begin > 0:
                weights[:length] = rise
            if length and end < extent:
                weights[-length:] = rise.flip(0)
            found.append((begin, weights))
        return found


class Prediction(NamedTuple):
    """Of one image: the predicted class of each pixel, uint8 [H, W]; its probability, float32 [H, W], if asked for; and
    whether all scores are finite, bool []."""

    ids: Tensor
    confidence: Tensor | None
    finite: Tensor


def tiling(model: Segmenter, tile: int, overlap: int | None) -> Tiling:
    """A Tiling that fits a network. overlap: by default about a quarter of the tile. Raises ConfigError that names the
    option."""
    multiple = math.lcm(STRIDE, model.interface.size_multiple)
    if tile < multiple or tile % multiple:
        fitting = sorted({max(multiple, tile // multiple * multiple), -(-tile // multiple) * multiple})
        raise ConfigError(f"--tile: expected a multiple of {multiple}, so that tiles begin where the network's "
                          f"positions do, found {tile}: give {' or '.join(map(str, fitting))}.")
    if overlap is None:
        overlap = min(max(tile // 4 // multiple, 1) * multiple, tile // 2 // multiple * multiple)
    if overlap % multiple or not 0 <= overlap <= tile // 2:
        raise ConfigError(f"--overlap: expected a multiple of {multiple} from 0 to half of --tile, {tile // 2}, found "
                          f"{overlap}.")
    return Tiling(tile, overlap, multiple)


def image_scores(model: Segmenter, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]],
                 flip: bool = False) -> Iterator[Tensor]:
    """For each image of a batch a score of every class and pixel, float [C, *size]: logits if there is one pass of the
    network, else the mean of the passes' probabilities.

    images: the batch at one or several sizes, uint8 [B, h, w, K] each. sizes: (height, width) of each image's result.
    flip: pass the mirrored images as well.
    """
    return _scores(model, [model.prepare(pixels) for pixels in images], sizes, flip)


def _scores(model, inputs, sizes, flip):
    """`image_scores` of prepared inputs, float [B, K, h, w] each."""
    maps = [(found, x.shape[-2:]) for x in inputs for found in _maps(model, x, flip)]
    for i, size in enumerate(sizes):
        if len(maps) == 1:
            yield model.upsample(maps[0][0][i], tuple(size), maps[0][1])
            continue
        total = None
        for found, shape in maps:
            probs = model.upsample(found[i], tuple(size), shape).softmax(0)
            total = probs if total is None else total.add_(probs)
        yield total.div_(len(maps))


def _maps(model, x, flip):
    """The score map of x and, with `flip`, that of its mirror image, turned back. The image is padded first, so that
    the padding lies behind the same side of both maps."""
    yield model.score_map(x)
    if flip:
        yield model.score_map(model.interface.padded(x).flip(-1)).flip(-1)


def prediction(scores: Tensor, logits: bool, confidence: bool = False) -> Prediction:
    """The prediction by the scores float [C, H, W] of one image, which are logits or probabilities."""
    top, ids = scores.max(0)
    sure = None
    if confidence:
        sure = top.float().clone()
        for rows in tiles(len(top), len(scores) * top.shape[1], scores.device) if logits else ():
            sure[rows] = 1 / (scores[:, rows].float() - top[rows]).exp_().sum(0)
    return Prediction(ids.to(torch.uint8), sure, top.isfinite().all())


def predict_tiled(model: Segmenter, pixels: Tensor, cut: Tiling, augmentation: Augmentation, batch: int = 1,
                  confidence: bool = False) -> Prediction:
    """The prediction for one image at its own size, uint8 [H, W, K] on any device, tile by tile.

    The tiles' scores (`image_scores`) are blended by `Tiling.weights`. Of all scores no more than those of one strip
    of tiles, as wide as the image, are kept at a time. batch: tiles of one pass.
    """
    found, kept, space = [], None, None
    rows = cut.weights(pixels.shape[0])
    for (top, bottom), (first, weights) in zip(cut.spans(pixels.shape[0]), rows):
        strip = _strip(model, pixels[top:bottom], slice(first - top, first - top + len(weights)), cut, augmentation,
                       batch, space)
        space = strip if space is None else space
        strip *= weights.to(strip.device)[:, None]
        if kept is not None:
            strip[:, :kept.shape[1]] += kept
        done = strip.shape[1] - (cut.overlap // 2 if len(found) + 1 < len(rows) else 0)
        found.append(prediction(strip[:, :done], augmentation.passes == 1, confidence))
        kept = strip[:, done:].clone()
    ids, sure, finite = zip(*found)
    return Prediction(torch.cat(ids), torch.cat(sure) if confidence else None, torch.stack(finite).all())


def _strip(model, pixels, rows, cut, augmentation, batch, space):
    """Scores float [C, n, W] of those `rows` (a slice) of a strip uint8 [h, W, K], blended from left to right. space:
    an earlier strip's scores, whose memory is used if it is enough."""
    width, device = pixels.shape[1], next(model.parameters()).device
    waiting = list(zip(cut.spans(width), cut.weights(width)))
    total = None
    while waiting:
        sizes = {end - begin for (begin, end), _ in waiting[:batch]}
        group = waiting[:batch] if len(sizes) == 1 else waiting[:1]
        del waiting[:len(group)]
        x = model.prepare(torch.stack([pixels[:, begin:end] for (begin, end), _ in group]).to(device))
        inputs = [x if scale == 1 else _resized(x, scale) for scale in augmentation.scales]
        scores = _scores(model, inputs, [tuple(x.shape[-2:])] * len(group), augmentation.flip)
        for ((begin, _), (first, weights)), found in zip(group, scores):
            part = found[:, rows, first - begin: first - begin + len(weights)]
            if total is None:
                fits = space is not None and space.shape[1] >= part.shape[1]
                total = space[:, :part.shape[1]].zero_() if fits else part.new_zeros(*part.shape[:2], width)
            total[:, :, first: first + len(weights)] += part * weights.to(device)
    return total


def _resized(x, scale):
    size = [max(1, round(extent * scale)) for extent in x.shape[-2:]]
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
