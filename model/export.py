"""A network as a file for other programs, ONNX or a program of torch.export, checked against the network itself."""
import copy
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import exporters
from model.exporters import INPUT, ExportError, reason
from model.interface import described
from model.segmenter import Segmenter
from model.weights import source_sha256
from utils.checkpoint import write_atomically
from utils.errors import ConfigError, UserError

ENDINGS = (".onnx", ".pt2")
TOLERANCE = 1e-4
# Batch, height and width of the images that a file is checked with; the first is traced. The sides are (n, more):
# n times 64 or `size_multiple` pixels and a few more, as padding may be none. No two traced ones are equal, as an
# exporter may take equal sides for one.
_CHECKED = ((2, (3, 3), (4, 3)), (1, (2, 0), (6, 0)), (3, (5, 3), (2, 0)), (1, (3, 25), (2, 19)))
_UNIT = 64


@dataclass(frozen=True)
class Form:
    """What a file takes and gives.

    pixels: it takes pixels, uint8 [B, H, W, K], RGB for three bands, and gives class ids, uint8 (int64 beyond 256
    classes) [B, H, W]; else it takes what `Segmenter.prepare` gives, float32 [B, K, H, W], and gives logits, float32
    [B, C, H, W]. size: the only (height, width) that it takes; None: any. opset: version of ONNX's operators; None: the
    exporter's choice.
    """

    pixels: bool = False
    size: tuple[int, int] | None = None
    opset: int | None = None

    @property
    def free(self) -> tuple[int, ...]:
        """The axes of the input that may have any extent."""
        first = 1 if self.pixels else 2
        return (0,) if self.size else (0, first, first + 1)


@dataclass(frozen=True)
class Written:
    """What was written. takes, gives: input and output in words. apart: the largest `deviation` of the check; None if
    the file was not checked, as onnxruntime is not installed."""

    file: str
    megabytes: float
    takes: str
    gives: str
    apart: float | None

    def __str__(self):
        checked = "not checked against the network: pip install onnxruntime, and export it again" \
            if self.apart is None else \
            f"checked against the network: {self.gives.split()[0]} are within {self.apart:.1e} of the largest logit"
        return f"{self.file}: {self.megabytes:.1f} MB\ntakes {self.takes}\ngives {self.gives}\n{checked}"


def export(segmenter: Segmenter, file: str | Path, form: Form | None = None, metadata: Mapping[str, Any] | None = None,
           tolerance: float = TOLERANCE, usual_size: tuple[int, int] | None = None) -> Written:
    """Write a network, in evaluation mode and float32, as an ONNX (.onnx) or torch.export (.pt2) file.

    metadata: what else the file says of itself, name: what JSON can hold. tolerance: the largest `deviation` from the
    network. usual_size: (height, width) of an image, to find out whether a network that cannot be written for any size
    can be for one.

    Raises ConfigError for another ending and for what is not installed, ExportError with the exporter's reason if the
    network cannot be written or the file deviates from it. Then there is no new file, and an old one stays.
    """
    require_exporter(str(file))
    form, ending = form or Form(), Path(file).suffix.lower()
    plain = copy.deepcopy(segmenter).cpu().float().eval()
    plain.autocast, plain.checkpointing = None, False
    facts = {**_conventions(plain, form), **(metadata or {})}
    try:
        content, apart = _checked(plain, ending, form, facts, tolerance)
    except UserError as error:
        if form.size is None and usual_size and _fits(plain, ending, replace(form, size=usual_size), tolerance):
            raise type(error)(f"{error} For one size it can be written: --size {usual_size[1]} {usual_size[0]}, or "
                              "another width and height.") from error
        raise
    write_atomically(file, lambda opened: opened.write(content))
    return Written(str(file), len(content) / 1e6, facts["input"], facts["output"], apart)


def require_exporter(file: str) -> None:
    """Raise ConfigError if a file's ending is none of ENDINGS, or if what is needed to write it is not installed."""
    ending = Path(file).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"--output: {file!r} does not end in {' or '.join(ENDINGS)}: give it such an ending.")
    if not hasattr(getattr(torch.export, "Dim", None), "DYNAMIC"):
        raise ConfigError(f"--output: exporting needs torch 2.6 or newer, found {torch.__version__}: pip install "
                          "--upgrade torch.")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if ending == ".onnx" and missing:
        raise ConfigError(f"--output: {file}: an ONNX file needs what is not installed ({', '.join(missing)}): "
                          "pip install onnx onnxscript.")


def deviation(found: Tensor, logits: Tensor) -> float:
    """How far an output is from the network's logits [B, C, H, W], as a share of the largest absolute logit.

    Of logits: the largest difference. Of class ids [B, H, W]: the most by which the logit of a chosen class is below
    the highest one, so that ids may differ where two classes are as good as equal.
    """
    largest = logits.abs().max().clamp(min=1e-30)
    if found.is_floating_point():
        return ((found - logits).abs().max() / largest).item()
    chosen = logits.gather(1, found.long().unsqueeze(1)).squeeze(1)
    return ((logits.amax(1) - chosen).max() / largest).item()


def provenance(checkpoint: str | None) -> dict[str, str]:
    """Name and SHA-256 of a checkpoint's file, given as `file`, `file#entry` or a folder that a stage has left; empty
    if there is no file."""
    digest = source_sha256(checkpoint)
    return {"checkpoint": os.path.basename(os.path.normpath(checkpoint)), "checkpoint_sha256": digest} if digest else {}


class _Program(nn.Module):
    """What is written: from the network's input to logits, or from pixels to class ids (see `Form`)."""

    def __init__(self, segmenter: Segmenter, form: Form):
        super().__init__()
        self.network, self.interface, self.num_classes = segmenter.network, segmenter.interface, segmenter.num_classes
        self.pixels, self.id_dtype = form.pixels, torch.uint8 if segmenter.num_classes <= 256 else torch.int64

    def forward(self, images: Tensor) -> Tensor:
        x = self.interface.prepared(images) if self.pixels else images
        size = x.shape[2], x.shape[3]
        found = self.interface.run(self.network, self.interface.padded(x))
        scores = self.interface.scores(found, self.num_classes).float().contiguous()
        logits = self.interface.resized(scores, size, size)
        return logits.argmax(1).to(self.id_dtype) if self.pixels else logits


def _conventions(segmenter, form):
    """What a file says of its input and output."""
    convention, classes = segmenter.interface.input, segmenter.num_classes
    bands, (height, width) = len(convention.mean), form.size or ("height", "width")
    if form.pixels:
        takes = f"{INPUT} uint8 [batch, {height}, {width}, {bands}]{', RGB' if bands == 3 else ''}"
        gives = f"ids {'uint8' if classes <= 256 else 'int64'} [batch, {height}, {width}]"
    else:
        takes = f"{INPUT} float32 [batch, {bands}, {height}, {width}], {convention.words}"
        gives = f"logits float32 [batch, {classes}, {height}, {width}]"
    return {"input": takes, "output": gives, "input_order": convention.order, "input_max": convention.maximum,
            "input_mean": convention.mean, "input_std": convention.std, "torch": torch.__version__}


def _fits(segmenter, ending, form, tolerance):
    try:
        _checked(segmenter, ending, form, {}, tolerance)
    except UserError:
        return False
    return True


@torch.no_grad()
def _checked(segmenter, ending, form, facts, tolerance):
    """(content of the file, its largest deviation from the network or None). Raises ExportError."""
    tried, load = _images(segmenter, form), exporters.onnx_function if ending == ".onnx" else exporters.pt2_function
    examples = [pixels if form.pixels else segmenter.prepare(pixels) for pixels in tried]
    logits = [_logits(segmenter, tried[0])]  # before tracing: what the interface keeps must be real tensors by then
    traced_for = f"images of {_text(tried[0].shape[1:3])} pixels" if form.size else "images of any size"
    exported = exporters.traced(_Program(segmenter, form).eval(), examples[0], form.free, traced_for)
    content = _content(exported, ending, form, facts)
    try:
        run = load(content)
    except Exception as error:
        raise ExportError(f"model: the exported network cannot be loaded ({reason(error)}).") from error
    logits += [_logits(segmenter, pixels) for pixels in tried[1:]]
    if ending == ".onnx":  # which does not know the conditions under which the trace holds; the program does
        _apart(exported.module(), examples, logits, form, tolerance)
    return content, run and _apart(run, examples, logits, form, tolerance)


def _apart(run, examples, logits, form, tolerance):
    return max(_compared(run, images, expected, form, tolerance) for images, expected in zip(examples, logits))


def _logits(segmenter, pixels):
    try:
        return segmenter(segmenter.prepare(pixels))
    except UserError:
        raise
    except Exception as error:
        raise ExportError(f"model: the network does not take images of {_text(pixels.shape[1:3])} pixels, height x "
                          f"width ({reason(error)}): give a size that it takes, --size WIDTH HEIGHT.") from error


def _images(segmenter, form):
    """The pixels that a file is checked with, uint8 [B, H, W, K] each."""
    unit, drawn = max(_UNIT, segmenter.interface.size_multiple), torch.Generator().manual_seed(0)
    sizes = [(batch, *(n * unit + more for n, more in sides)) for batch, *sides in _CHECKED]
    if form.size:
        sizes = [(batch, *form.size) for batch in (2, 1)]
    return [torch.randint(256, (*size, len(segmenter.interface.input.mean)), dtype=torch.uint8, generator=drawn)
            for size in sizes]


def _content(exported, ending, form, facts):
    if ending == ".pt2":
        return exporters.as_pt2(exported, facts)
    sides = (None, None) if form.size else ("height", "width")
    axes = (("batch", *sides), ("batch", *sides)) if form.pixels else (("batch", None, *sides),) * 2
    return exporters.as_onnx(exported, "ids" if form.pixels else "logits", axes, form.opset, facts)


def _compared(run, images, logits, form, tolerance):
    """`deviation` of what a file computes. Raises ExportError if it computes something else than the network."""
    where = f"on {len(images)} images of {_text(logits.shape[-2:])} pixels, height x width"
    try:
        found = run(images)
    except Exception as error:
        raise ExportError(f"model: the exported network fails {where}, which the network takes "
                          f"({reason(error)}).") from error
    expected = (len(logits), *logits.shape[2:]) if form.pixels else tuple(logits.shape)
    if found.shape != expected or form.pixels and found.max() >= logits.shape[1]:
        raise ExportError(f"model: the exported network gives {described(found)} {where}, expected "
                          f"{list(expected)}.")
    if not (apart := deviation(found, logits)) <= tolerance:
        raise ExportError(f"model: the exported network differs from the network {where}, by {apart:.1e} of the "
                          f"largest logit; --tolerance is {tolerance:g}.")
    return apart


def _text(size):
    return " x ".join(map(str, size))
