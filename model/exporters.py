"""torch's exporters: a network -> the content of an ONNX or torch.export file -> the function that it computes."""
import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from utils.errors import UserError
from utils.user_code import fault

INPUT = "images"  # name of a file's input
METADATA = "metadata.json"  # the extra file of a .pt2 file that holds what an .onnx file has as metadata_props
_MOST_BYTES = 2**31 - 2**26  # an ONNX file is one protobuf message, which holds 2 GiB; the rest is for the graph
_LOGGERS = ("torch.export", "torch.onnx", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


class ExportError(UserError):
    """A network cannot be written as a file, or the file that came out differs from it."""


def traced(program: nn.Module, example: Tensor, free: tuple[int, ...], what: str) -> ExportedProgram:
    """Trace a module of one input. free: the axes of the input that may have another extent than `example`'s. what: the
    images that it is traced for, in words. Raises ExportError with the exporter's reason."""
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(program, (example,), strict=False,
                                           dynamic_shapes=(dict.fromkeys(free, torch.export.Dim.DYNAMIC),))
    except Exception as error:
        raise ExportError(f"model: torch.export cannot trace the network for {what} ({reason(error)}).") from error
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which would be in the file
    return exported


def as_onnx(exported: ExportedProgram, output: str, axes: tuple[tuple, tuple], opset: int | None,
            facts: Mapping[str, Any]) -> bytes:
    """The content of an ONNX file. output: its output's name. axes: names of the free axes of input and output, None
    for others. facts: its metadata. Raises ExportError with the exporter's reason."""
    weights = sum(tensor.nbytes for tensor in exported.state_dict.values())
    if weights > _MOST_BYTES:
        raise ExportError(f"--output: the network has {weights / 1e9:.1f} GB of weights, and an ONNX file holds 2: "
                          "write a .pt2 file.")
    try:
        with _quiet():
            made = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=opset, input_names=[INPUT],
                                     output_names=[output]).model_proto
    except Exception as error:
        raise ExportError(f"model: torch.onnx cannot write the network ({reason(error)}).") from error
    found = next(entry.version for entry in made.opset_import if not entry.domain)
    if opset and found != opset:  # it warns, but writes another one
        raise ExportError(f"--opset: the exporter writes version {found} in place of {opset}: give that or another.")
    for value, names in zip((made.graph.input[0], made.graph.output[0]), axes):
        for axis, name in zip(value.type.tensor_type.shape.dim, names):
            if name:
                axis.dim_param = name
    del made.graph.value_info[:]  # shapes of what is computed between, with the exporter's names of the axes
    for name, fact in facts.items():
        made.metadata_props.add(key=name, value=fact if isinstance(fact, str) else json.dumps(fact))
    return made.SerializeToString()


def as_pt2(exported: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The content of a torch.export file. facts: its metadata. Raises ExportError with the exporter's reason."""
    buffer = io.BytesIO()
    try:
        with _quiet():
            torch.export.save(exported, buffer, extra_files={METADATA: json.dumps(facts, indent=1)})
    except Exception as error:
        raise ExportError(f"model: torch.export cannot save the network ({reason(error)}).") from error
    return buffer.getvalue()


def onnx_function(content: bytes) -> Callable[[Tensor], Tensor] | None:
    """What an ONNX file computes, by onnxruntime on the CPU; None if that is not installed. Raises what onnxruntime
    raises."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def pt2_function(content: bytes) -> Callable[[Tensor], Tensor]:
    """What a torch.export file computes. Raises what torch raises."""
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()


def reason(error: BaseException) -> str:
    """What an exporter's error says, or the error that it was raised for: the line of a user's file, if there is one,
    the kind and the first line that says something; at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m|For more information, run with \S+", "", str(error))
    lines = [line.strip(" .!-") for line in text.splitlines() if line.strip(" .!-")]
    place, _, _ = fault(error, Path.cwd()).partition(f"{type(error).__name__}: ")
    first = lines[1:] if lines and lines[0].startswith("Constraints violated") else lines  # the next one says which
    said = first[0].partition(". ")[0] if first else ""
    at = "" if place.startswith("<") else place  # code that the exporter has made is no file
    return f"{at}{type(error).__name__}: {said}"[:300].rstrip(": ")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, warnings, loggers and prints of the exporters are silent: they show the program that is made."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    silent = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
