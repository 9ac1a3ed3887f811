"""Reading a checkpoint file: what kind of file it is, and its content as plain tensors and containers.

The kind is recognised by the content, not by the file's suffix. Of pickles, only tensors, plain containers and numbers
are built.
"""
import contextlib
import json
import os
import pickle
import re
import shlex
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError, first_line

INPUT = "input"  # in the metadata of a state dict or of safetensors, the input that the network takes
_HEAD = 4096  # bytes by which the kind is recognised
_CONVERT = "convert it to a PyTorch state dict with this network's names (conv1 bn1 layer1..4 layer5.conv2d_list.0..3)"
_JOIN = "join the state dicts of all parts into one file and give that"
_UNPACK = "unpack it and give the checkpoint in it"
_KINDS = (  # offset and bytes, what such a file is, what to do
    (0, b"version https://git-lfs", "a git-lfs pointer in place of the file",
     "run `git lfs pull`, or download the file itself"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras and TensorFlow write", _CONVERT),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT),
    (0, b"GGUF", "a GGUF model", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", _CONVERT),
    (0, b"MATLAB 5.0", "a MATLAB file", _CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", _UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a rar archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x89PNG", "an image", "give the checkpoint"),
    (0, b"\xff\xd8\xff", "an image", "give the checkpoint"),
    (0, b"%PDF", "a PDF document", "give the checkpoint"),
)
_ENDINGS = {".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".tflite": "a TensorFlow Lite model",
            ".caffemodel": "a Caffe model", ".pdparams": "a Paddle model", ".pdmodel": "a Paddle model",
            ".mlmodel": "a Core ML model", ".engine": "a TensorRT engine", ".trt": "a TensorRT engine"}
# Classes whose objects are often saved beside weights -> the empty container to be filled item by item, or None.
_HARMLESS = {
    **dict.fromkeys((
        "argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion", "collections.ChainMap",
        *(f"pathlib{room}.{name}" for room in ("", "._local") for name in (
            "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in (
            "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range",
            "set", "slice", "str", "tuple")),
        "_codecs.encode",  # of bytes in a pickle; torch 2.4 refuses it, newer ones do not
        "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{name}" for name in (
            "ndarray", "dtype", "bool", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
            "uint8", "uint16", "uint32", "uint64", "str_", "bytes_")))),
    "collections.Counter": dict, "collections.defaultdict": dict, "collections.deque": list}


def read_content(path: Path) -> object:
    """The content of a checkpoint file, on the CPU.

    No code in the file is run. Of a pickle, tensors and plain containers are built; objects of harmless classes (numpy
    scalars, `argparse.Namespace`, paths, ...) become empty stand-ins. Raises CheckpointError if the file is missing,
    damaged or of another kind, or needs more than that.
    """
    if not os.path.isfile(path):  # False for impossible names too
        raise CheckpointError(f"{path}: {_no_file(path)}.")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}): check its permissions.") from None
    if found := _foreign(path, head):
        raise CheckpointError(f"{path}: is {found[0]}: {found[1]}.")
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    return _read_pickle(path)


def _no_file(path):
    if not os.path.isdir(path):
        return "no such checkpoint: check the path"
    if any(path.glob("*.distcp")):
        joined = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(path))} net.pth"
        return f"is a folder of torch.distributed.checkpoint: make one file of it with `{joined}`"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        known = {"model_type": "transformers", "_model_class": "smp"}
        library = next((known[key] for key in known if key in found), None) if isinstance(found, dict) else None
        if library == "transformers":
            return f"is a folder of transformers, no model folder of this project: give it as model=hf/{path}"
        if library:
            return "is a folder of segmentation_models_pytorch, no model folder of this project: give the weights in " \
                   f"it, {path / 'model.safetensors'}, and its network as model=smp/ARCH:ENCODER"
    return "is a folder: give the checkpoint file in it"


def _foreign(path, head):
    """(what the file is, what to do) for a file of a kind that cannot be read here, else None."""
    for offset, mark, what, advice in _KINDS:
        if head[offset:].startswith(mark):
            return what, advice
    if not head:
        return "an empty file", "copy or download it again"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return _foreign_archive(path)
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x3a\x42]", head):
        return "an ONNX model", _CONVERT
    if part := re.search(r"-\d{5}-of-(?!00001)\d{5}\.", path.name):
        return f"one part ({part[0].strip('-.')}) of a checkpoint in several files", _JOIN
    if path.name.endswith(".index.json") or head.lstrip().startswith(b"{") and b'"weight_map"' in head:
        return "the index of a checkpoint in several files", _JOIN
    if not re.search(rb"[\0-\x08\x0e-\x1f\x7f]", head) and head[:1] not in (b"(", b"c"):
        text = head.decode(errors="replace").lstrip("\ufeff \t\r\n")
        if re.match(r"<(!doctype|html|head|body|\?xml|script|!--)", text, re.IGNORECASE):
            return "a web page, as a link that has moved or wants a login gives", "download the file itself"
        return f"a text ({text.partition(chr(10))[0][:40]!r})", "copy or download the checkpoint again"
    return (_ENDINGS[path.suffix.lower()], _CONVERT) if path.suffix.lower() in _ENDINGS else None


def _foreign_archive(path):
    """`_foreign` for zip archives; torch's own files are zip archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, which torch will report
        return None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        export = f"import torch; torch.save(torch.jit.load({json.dumps(str(path))}, \"cpu\").state_dict(), " \
                 f"{json.dumps(_beside(path))})"
        return "a TorchScript program", f"save its state dict with `python -c {shlex.quote(export)}`"
    if any(name.endswith(("serialized_exported_program.json", "/archive_format")) for name in names):
        return "a program of torch.export", "save the state_dict() of the network that it was made from"
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras model", _CONVERT
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", _CONVERT
    if not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        return f"a zip archive of other files ({shown})", _UNPACK
    return None


def _is_safetensors(path, head):
    """Whether a file is in safetensors' format, which starts with the length of its JSON header in 8 little-endian
    bytes."""
    starts = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**48
    return starts or path.suffix.lower() == ".safetensors" and not head.startswith((b"PK", b"\x80"))


def _read_safetensors(path):
    try:
        from safetensors import safe_open  # late: few files need it
    except ImportError:
        raise CheckpointError(f"{path}: is a safetensors file, and the package to read it is not there: "
                              "pip install safetensors.") from None
    try:
        with safe_open(path, "pt") as file:
            state: Any = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            stated = (file.metadata() or {}).get(INPUT)
        with contextlib.suppress(ValueError, RecursionError):
            state._metadata = {"": {INPUT: json.loads(stated or "null")}}
        return state
    except Exception as error:  # safetensors, torch and the system raise many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be read as safetensors ({first_line(error)}): copy or download it "
                              "again, or give another.") from None


def _read_pickle(path):
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch's own files are never compressed
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("a compressed archive, which may unpack to any size")
        with warnings.catch_warnings(), _harmless_classes():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        asked = f" (it asks for {needs[1]})" if needs else ""
        again = f"import torch; c = torch.load({json.dumps(str(path))}, \"cpu\", weights_only=False); torch.save(c" \
                f".state_dict() if hasattr(c, \"state_dict\") else c[\"state_dict\"], {json.dumps(_beside(path))})"
        raise CheckpointError(
            f"{path}: not a file of plain tensors{asked}, nothing in it was run: save the network's state_dict() "
            f"alone; if, and only if, you trust who made the file, this runs what is in it and does so: "
            f"`python -c {shlex.quote(again)}`.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({first_line(error)}): copy or download it "
                              "again, or give another.") from None


def _beside(path):
    return str(path.with_name(f"{path.stem}_plain.pth"))


@contextlib.contextmanager
def _harmless_classes():
    """Within, torch's unpickler uses a stand-in for each class of `_HARMLESS` that a file names, so that the real
    classes' constructors never see the file's bytes."""
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(_STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _stand_in(full_name, container):
    """A class of the name `full_name` that takes any arguments and state and keeps nothing. container: a type of which
    an empty object is made instead, for classes whose items follow."""
    module, _, name = full_name.rpartition(".")
    return type(name, (), {
        "__module__": module, "__qualname__": name,
        "__new__": lambda cls, *_, **__: container() if container else object.__new__(cls),
        "__init__": lambda self, *_, **__: None,
        "__setstate__": lambda self, state: None})


_STAND_INS = [_stand_in(name, container) for name, container in _HARMLESS.items()]
