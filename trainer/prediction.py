"""Prediction of image files: every image through the network, its pictures written, and a manifest of what is done."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset import outputs
from dataset.files import Bands
from dataset.inputs import InputImages, find_inputs
from dataset.loaders import ReadingLoader, worker_count
from dataset.segmentation import Sample, fingerprint
from dataset.views import sizes_of
from model import inference
from model.build import pick_device, with_precision
from model.folder_writing import network_keys
from model.inference import Augmentation, Prediction, Tiling
from model.segmenter import Segmenter
from trainer import agreement
from trainer.evaluate import NO_AUGMENTATION, trained_network
from trainer.prediction_manifest import Manifest
from utils import distributed
from utils.background import Background, host_copy, to_device
from utils.checkpoint import digest, write_atomically
from utils.config import Config
from utils.config_values import nearest, plain
from utils.errors import ConfigError
from utils.progress import Progress

LEGEND = "classes.json"
_WRITERS = 2


@dataclass(frozen=True)
class Request:
    """What to predict, and how.

    inputs: words as `dataset.inputs.find_inputs` takes them. output: the folder to write to. save: names of
    `outputs.KINDS`. ids: `outputs.TRAIN` or `outputs.LABEL`. size: (width, height) at which the network sees the
    images, by default the target's `input_size`. tile: side of the tiles into which an image is cut at its own size,
    None: not at all; overlap: of neighbouring tiles. batch: images, or tiles, of one pass. overwrite: predict again
    what is there already, whoever made it. Raises ConfigError if these do not go together.
    """

    inputs: tuple[str, ...]
    output: Path
    save: tuple[str, ...] = ("ids",)
    ids: str = outputs.TRAIN
    augmentation: Augmentation = NO_AUGMENTATION
    size: tuple[int, int] | None = None
    tile: int | None = None
    overlap: int | None = None
    batch: int = 1
    overwrite: bool = False

    def __post_init__(self):
        for kind in self.save:
            if kind not in outputs.KINDS:
                raise ConfigError(f"--save: expected {', '.join(outputs.KINDS)}, found {kind!r}"
                                  f"{nearest(kind, outputs.KINDS)}.")
        if self.tile and self.size:
            raise ConfigError("--size: has no effect with --tile, which cuts each image at its own size: leave one "
                              "out.")
        if self.overlap is not None and not self.tile:
            raise ConfigError("--overlap: has no effect without --tile: give both, or leave it out.")
        if not self.save or not self.inputs:
            raise ConfigError("--input, --save: expected at least one word each.")


@dataclass(frozen=True)
class Outcome:
    """What a call has done. failed: a line for each image that could not be predicted. folders: where the pictures
    are. remarks: what was left out, and what is remarkable about the checkpoint."""

    done: int
    skipped: int
    failed: list[str]
    folders: list[Path]
    remarks: list[str]

    def __str__(self):
        counts = [f"predicted {self.done} image{'s' * (self.done != 1)}"]
        counts += [f"{self.skipped} were there already"] if self.skipped else []
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        return f"{', '.join(counts)}: {', '.join(map(str, self.folders))}"


def predict_files(cfg: Config, checkpoint: str, request: Request) -> Outcome:
    """Predict images with the network of a checkpoint. Nothing is written before configuration, images' names and
    checkpoint have been found right."""
    found = _inputs(cfg, request)
    key = outputs.legend(cfg, request.ids)
    network, loaded = trained_network(cfg, pick_device(cfg.device), checkpoint)
    remarks = [f"{checkpoint}: {line}" for line in str(loaded).splitlines()] if loaded.remarkable else []
    outcome = predict(network, cfg, request, found, key)
    return Outcome(outcome.done, outcome.skipped, outcome.failed, outcome.folders, [*found[1], *remarks])


def predict(network: Segmenter, cfg: Config, request: Request, found: tuple[list[Sample], list[str]] | None = None,
            key: outputs.Legend | None = None) -> Outcome:
    """`predict_files` with a network that is there already. Of several processes each predicts its share of the images,
    and all have the whole outcome. Collective."""
    samples, remarks = found or _inputs(cfg, request)
    key = key or outputs.legend(cfg, request.ids)
    cut = inference.tiling(network, request.tile, request.overlap) if request.tile else None
    size = request.size or cfg.target_data.input_size
    cfg = with_precision(cfg, next(network.parameters()).device)
    settings = {**_settings(cfg, request, key, cut, size), **plain(network_keys(network, cfg))}
    settings = {"weights": digest(network.state_dict()), **settings}
    agreement.require_same(lambda: {**agreement.of_configuration(cfg, next(network.parameters()).device), **settings,
                                    "images": fingerprint(samples)})
    if distributed.size() > 1:
        agreement.require_shared("--output", request.output.absolute())
    with Manifest(request.output, request.save, request.overwrite, samples, settings) as manifest:
        waiting, folder = manifest.waiting(), request.output
        distributed.from_main(lambda: write_atomically(folder / LEGEND, lambda file: file.write(key.json())))
        images = InputImages(list(distributed.share(waiting)), None if cut else size, request.augmentation.scales,
                             "overlay" in request.save)
        skipped = len(samples) - len(waiting)
        mine = _predict(network, cfg, request, images, cut, key, manifest, skipped // distributed.size())
        faults = {name: line for lines in distributed.gathered(mine) for name, line in lines.items()}
    failed = [faults[sample.name] for sample in waiting if sample.name in faults]
    return Outcome(len(waiting) - len(failed), skipped, failed, [folder / kind for kind in request.save], remarks)


def _inputs(cfg, request):
    section = cfg.target_data
    return find_inputs(request.inputs, [request.output / kind for kind in outputs.KINDS],
                       Bands(section.bands, section.value_range, cfg.target))


def _settings(cfg: Config, request: Request, key: outputs.Legend, cut: Tiling | None, size: tuple) -> dict[str, Any]:
    """All but the network that the pictures depend on, as JSON reads it back."""
    section, augmentation = cfg.target_data, request.augmentation
    return plain({"ids": key.ids, "classes": key.names, "palette": key.palette, "scales": augmentation.scales,
                  "flip": augmentation.flip, "size": None if cut else tuple(size), "tile": cut and cut.tile,
                  "overlap": cut and cut.overlap, "bands": section.bands, "value_range": section.value_range,
                  "amp": cfg.amp})


def _predict(network: Segmenter, cfg: Config, request: Request, images: InputImages, cut: Tiling | None,
             key: outputs.Legend, manifest: Manifest, skipped: int) -> dict[str, str]:
    """Predict all images and write their pictures; lines about those that failed, by name."""
    device, confident, failed = next(network.parameters()).device, "confidence" in request.save, {}
    samples = {sample.name: sample for sample in images.samples}
    network.eval()
    workers = min(worker_count(cfg), 1) if cut else worker_count(cfg)  # large images: few of them in memory
    loader = ReadingLoader(images.__getitem__, range(len(images)), workers,
                           lambda index: str(images.samples[index].image), device.type == "cuda")

    def write(item, finite, ids, confidence):
        if not finite():
            failed[item["name"]] = (f"{samples[item['name']].image}: the network's outputs are not finite: set amp=off "
                                    "or bf16, or check the image and the checkpoint.")
            return
        drawn = outputs.pictures(request.save, ids().numpy(), key, confidence and confidence().numpy(),
                                 item["photo"].numpy())
        sizes = {kind: outputs.write_png(outputs.output_path(request.output, kind, item["name"]), picture)
                 for kind, picture in drawn}
        manifest.add(samples[item["name"]], sizes)

    with Background(_WRITERS, pending=_WRITERS if cut else 2 * _WRITERS) as writers:
        shown = Progress(loader, "predict", cfg.print_freq, cfg.screen, first=skipped)
        for item, found in _predictions(network, shown, request, cut, device):
            if found is None:
                failed[item["name"]] = item["error"]
                continue
            writers.submit(write, {"name": item["name"], "photo": item.get("photo", item["image"][0])},
                           host_copy(found.finite), host_copy(found.ids),
                           host_copy(_grey(found.confidence)) if confident else None)
    return failed


def _grey(confidence):
    """The confidence float32 [H, W] in 0..1 as uint8, round(255 p); it is computed in place."""
    return confidence.mul_(255).round_().to(torch.uint8)


def _predictions(network: Segmenter, items: Iterable[dict], request: Request, cut: Tiling | None,
                 device: torch.device) -> Iterator[tuple[dict, Prediction | None]]:
    """Each item with its prediction, or with None if it has an error instead of an image."""
    augmentation, confidence = request.augmentation, "confidence" in request.save
    for batch in _batches(items, 1 if cut else request.batch):
        readable = [item for item in batch if "error" not in item]
        if cut is None:
            found = _whole(network, readable, augmentation, confidence, device)
        else:
            found = (_tiled(network, item["image"][0], cut, request) for item in readable)
        for item in batch:
            yield item, (None if "error" in item else next(found))


@torch.no_grad()
def _tiled(network, pixels, cut, request):
    return inference.predict_tiled(network, pixels, cut, request.augmentation, request.batch,
                                   "confidence" in request.save)


@torch.no_grad()
def _whole(network, items, augmentation, confidence, device):
    """The predictions for a batch of items, whose images have the same size."""
    at_scales = [to_device(images[0] if len(images) == 1 else torch.cat(images), device)
                 for images in zip(*map(sizes_of, items))]
    scores = inference.image_scores(network, at_scales, [item["size"] for item in items], augmentation.flip)
    return iter([inference.prediction(found, augmentation.passes == 1, confidence) for found in scores])


def _batches(items: Iterable[dict], count: int) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch
