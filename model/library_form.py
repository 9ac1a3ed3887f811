"""A network of another library in the form that this library's own `from_pretrained` reads: a sub-folder of a model
folder."""
import contextlib
import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from model.folder import WEIGHTS
from model.segmenter import Segmenter
from utils.checkpoint import write_atomically
from utils.errors import CheckpointError, first_line

_SMP, _TRANSFORMERS = "smp", "transformers"  # the sub-folders
_PREPROCESSOR = "preprocessor_config.json"


def write_library_form(folder: Path, network: Segmenter, model: str, tensors: Mapping[str, Tensor],
                       names: Sequence[str]) -> None:
    """Write a network of smp or transformers into a model folder, whose weights are there already; for other networks
    remove what an earlier one has left. model: the value of the key. tensors: its weights. names: of its classes."""
    kind = _SMP if model.startswith("smp/") else _TRANSFORMERS if model.startswith("hf/") else None
    for other in {_SMP, _TRANSFORMERS} - {kind}:
        shutil.rmtree(folder / other, ignore_errors=True)
    if kind == _SMP:
        _write_smp(folder / WEIGHTS, folder / _SMP, network.network)
    if kind == _TRANSFORMERS:
        known = names if network.interface.channels is None else ()
        source = Path(os.path.expanduser(model.partition("/")[2]), _PREPROCESSOR)
        _write_transformers(folder / _TRANSFORMERS, network.network, dict(tensors), known, source)


def _write_smp(weights: Path, folder: Path, network: Any) -> None:
    """As `save_pretrained` of segmentation_models_pytorch writes it, without the page for its hub. The tensors have the
    same names; the library's network upsamples its scores itself, which takes no weights."""
    content = {**network.config, "encoder_weights": None, "_model_class": type(network).__name__}
    _link(weights, folder / WEIGHTS)
    text = json.dumps(content, sort_keys=True, indent=2)
    write_atomically(folder / "config.json", lambda file: file.write(text.encode()))


def _write_transformers(folder: Path, network: Any, tensors: dict[str, Tensor], names: Sequence[str],
                        preprocessor: Path) -> None:
    """What `save_pretrained` of transformers writes, whose tensors may have other names than the network's, with the
    names of the classes."""
    from transformers.utils import logging
    logging.disable_progress_bar()  # it is drawn where the output is no terminal, too
    own, network.config = network.config, copy.deepcopy(network.config)
    if getattr(network.config, "use_pretrained_backbone", False):
        network.config.use_pretrained_backbone = False  # its weights are among these
    if len(names) == network.config.num_labels:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: i for i, name in enumerate(names)}
    unfinished = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        network.save_pretrained(unfinished, state_dict=tensors)
        if preprocessor.is_file():
            shutil.copyfile(preprocessor, unfinished / _PREPROCESSOR)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(unfinished.iterdir()):
            shutil.copymode(folder.parent / WEIGHTS, path)  # safetensors writes files that others cannot read
            os.replace(path, folder / path.name)
    except Exception as error:  # of the library, of safetensors or of the system
        raise CheckpointError(f"{folder}: cannot be written ({first_line(error)}): make room, or set "
                              "model_folder=false.") from error
    finally:
        network.config = own
        shutil.rmtree(unfinished, ignore_errors=True)


def _link(source, path):
    """Make `path` the file `source` under a second name or, where the file system has no such links, a copy."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        content = source.read_bytes()
        write_atomically(path, lambda file: file.write(content))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # os.replace leaves it where both were one file already
