"""Families of networks, of other packages and users' own. Each is a class that declares keys and builds networks."""
import copy
import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from model.examine import examine
from model.folder import is_folder
from model.interface import AUTO, Interface
from model.segmenter import Segmenter
from utils.config import Config
from utils.config_values import Declares, expanded, key, nearest
from utils.constants import INPUTS, InputConvention
from utils.errors import CheckpointError, ConfigError, UserError, first_line
from utils.user_code import called, load_object

_IMAGENET = INPUTS["rgb01"]


class Network(Declares):
    """Base of the families of networks. brings_weights: the networks may be trained already, so `init_weight` may be
    None."""

    brings_weights: ClassVar[bool] = False
    _untrained: tuple[str, ...] = ()

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the tensors at random in a network that brings weights."""
        return self._untrained

    def segmenter(self, name: str, num_classes: int) -> Segmenter:
        """Build the network `name`, a value of `model`, on the CPU. Raises ConfigError if there is none of that name
        or if it cannot be used."""
        raise NotImplementedError


class Foreign(Network):
    """Base of networks that are not part of this project. The keys describe a network's input and output; None stands
    for what the family knows about them."""

    input_order: str | None = key(None, "order of the colours in the network's input; None: rgb",
                                  choices=("rgb", "bgr"))
    input_max: float | None = key(None, "what a pixel of 255 is in the network's input before mean and std, 255 or 1; "
                                  "None: 1", low=0, above=True)
    input_mean: tuple[float, ...] | None = key(None, "mean of each band of the input, in the range of input_max and "
                                               "the order of input_order; None: ImageNet's")
    input_std: tuple[float, ...] | None = key(None, "standard deviation of each band, in the range of input_max; None: "
                                              "ImageNet's", low=0, above=True)
    output: str = key(AUTO, "which part of the network's output is the scores: a name, or an index from 0; auto: a "
                      "tensor, or what is called out or logits")
    output_channels: tuple[int, ...] | None = key(None, "which of the scores' channels are the classes, in their "
                                                  "order; None: all. One channel for two classes is the logit of the "
                                                  "second", low=0)
    head: tuple[str, ...] | None = key(None, "modules whose parameters have the head's learning rate; None: what the "
                                       "family calls its head, or the last module that has parameters")
    size_multiple: int | None = key(None, "heights and widths must be multiples of this: others are padded, and the "
                                    "result is cut; None: what the family says, else 1", low=1, high=4096)
    output_align_corners: bool | None = key(None, "whether scores are upsampled with aligned corners; None: False, "
                                            "unless the family does")
    model_args: Mapping | None = key(None, "arguments for building the network, name: value")

    package: ClassVar[tuple[str, str] | None] = None  # (what is imported, what is installed)

    @classmethod
    def check(cls, cfg: Config) -> None:
        """Raises ConfigError if the family's package is not installed."""
        if cls.package and importlib.util.find_spec(cls.package[0]) is None:
            raise ConfigError(f"model: {cfg.model} needs a package that is not there: pip install {cls.package[1]}.")

    def segmenter(self, name: str, num_classes: int) -> Segmenter:
        """See `Network.segmenter`. The network is tried on a tiny image, so its output is known to fit the classes."""
        try:
            network = self._build(name, num_classes, self._arguments())
        except UserError:
            raise
        except Exception as error:  # whatever a family raises for arguments that it does not know
            raise ConfigError(f"model: {name} with model_args={dict(self.model_args or {})} cannot be built "
                              f"({type(error).__name__}: {first_line(error)}).") from error
        segmenter = Segmenter(network.cpu(), num_classes, self._interface(network, name))
        if self.head:
            segmenter.parameter_groups(1, 1)  # raises if there is none of the name
        examine(segmenter)
        return segmenter

    def _arguments(self) -> dict[str, Any]:
        """A copy of model_args, which the code that gets it may change."""
        return copy.deepcopy(dict(self.model_args or {}))

    def _interface(self, network: nn.Module, name: str) -> Interface:
        """The network's interface: what the keys say, and for keys of None what the family knows."""
        known = self._defaults(network, name)

        def value(given, default):
            return default if given is None else given
        taken = known.input
        maximum = value(self.input_max, taken.maximum)
        mean, std = (tuple(v * (maximum / taken.maximum) for v in values) for values in (taken.mean, taken.std))
        taken = InputConvention(value(self.input_order, taken.order), maximum, value(self.input_mean, mean),
                                value(self.input_std, std))
        if len(taken.mean) != len(taken.std) or len(taken.mean) > 16:
            raise ConfigError(f"input_mean: {len(taken.mean)} values, input_std: {len(taken.std)}: give one for each "
                              "band to both, 1 to 16.")
        if max(taken.mean) > maximum:
            raise ConfigError(f"input_mean: {max(taken.mean):g} is beyond input_max, {maximum:g}: give input_mean and "
                              "input_std in the range of input_max, or set input_max=255.")
        if twice := [c for c in self.output_channels or () if self.output_channels.count(c) > 1]:
            raise ConfigError(f"output_channels: {twice[0]} is listed twice: give each class a channel of its own.")
        return Interface(taken, known.run, known.output if self.output == AUTO else self.output, self.output_channels,
                         value(self.head, known.head), value(self.size_multiple, known.size_multiple),
                         value(self.output_align_corners, known.align_corners))

    def _build(self, name: str, num_classes: int, args: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def _defaults(self, network: nn.Module, name: str) -> Interface:
        return Interface(_IMAGENET)


class Torchvision(Foreign):
    """Segmentation networks of torchvision, by its names. Nothing is downloaded; weights come from init_weight."""

    def _build(self, name, num_classes, args):
        from torchvision import models
        names = models.list_models(module=models.segmentation)
        wanted = name.partition("/")[2]
        if wanted not in names:
            raise ConfigError(f"model: torchvision has no segmentation network {wanted!r}{nearest(wanted, names)}; it "
                              f"has {', '.join(names)}.")
        usual = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
        taken = [n for n, p in inspect.signature(models.get_model_builder(wanted)).parameters.items()
                 if p.kind is not p.VAR_KEYWORD]  # others it would ignore silently
        if unknown := [name for name in args if name not in taken]:
            raise ConfigError(f"model_args: {unknown[0]!r} is no argument of {wanted}{nearest(unknown[0], taken)}; it "
                              f"takes {', '.join(taken)}.")
        return models.get_model(wanted, **usual | args)

    def _defaults(self, network, name):
        return Interface(_IMAGENET, run=_before_interpolation, head=("classifier", "aux_classifier"))


def _before_interpolation(network, x):
    """The forward pass of torchvision's segmentation networks without their interpolation to the size of x and without
    the auxiliary classifier."""
    features = network.backbone(x)
    return network.classifier(features.get("out", features))


class Smp(Foreign):
    """Networks of segmentation_models_pytorch, an architecture on an encoder. Nothing is downloaded."""

    package = "segmentation_models_pytorch", "segmentation-models-pytorch"

    def _build(self, name, num_classes, args):
        import segmentation_models_pytorch as smp
        arch, colon, encoder = name.partition("/")[2].partition(":")
        if not colon or not encoder:
            raise ConfigError(f"model: {name}: expected smp/ARCH:ENCODER, such as smp/unet:resnet18.")
        names = [n.lower() for n, found in vars(smp).items()
                 if isinstance(found, type) and issubclass(found, smp.base.SegmentationModel)]
        if arch.lower() not in names:
            raise ConfigError(f"model: segmentation_models_pytorch has no architecture {arch!r}{nearest(arch, names)}; "
                              f"it has {', '.join(names)}.")
        if not encoder.startswith("tu-") and encoder not in smp.encoders.encoders:
            raise ConfigError(f"model: segmentation_models_pytorch has no encoder {encoder!r}"
                              f"{nearest(encoder, smp.encoders.encoders)}; its documentation lists them.")
        network = smp.create_model(arch, encoder, **{"encoder_weights": None, "classes": num_classes} | args)
        last = network.segmentation_head[1]
        self._stops_early = isinstance(last, nn.Upsample) and last.mode == "bilinear" and bool(last.align_corners)
        if self._stops_early:
            network.segmentation_head[1] = nn.Identity()  # the Segmenter upsamples, so that score maps stay small
        return network

    def _defaults(self, network, name):
        stride = getattr(network.encoder, "output_stride", 32) if network.requires_divisible_input_shape else 1
        return Interface(_IMAGENET, head=("segmentation_head",), size_multiple=stride, align_corners=self._stops_early)


class HuggingFace(Foreign):
    """A semantic segmentation network of transformers, from a local folder with config.json. It has the folder's
    weights, or a random start if there are none. Its input is as preprocessor_config.json says. Code in the folder is
    not run, nor is the user asked whether it may be, unless model_args say so (trust_remote_code)."""

    brings_weights = True
    package = "transformers", "transformers"

    def _build(self, name, num_classes, args):
        from transformers import AutoConfig, AutoModelForSemanticSegmentation
        folder, args = _folder(name), {"trust_remote_code": False} | args
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model: {name}: there is no {folder}/config.json: give a local folder as "
                              "save_pretrained writes it.")
        if is_folder(folder):
            raise ConfigError(f"model: {name}: that is a model folder of this project, no network of transformers: "
                              "give it as init_weight, or to a script in place of --config.")
        if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
            return self._trained(name, folder, args)
        found = AutoConfig.from_pretrained(folder, local_files_only=True, **args)
        if "num_labels" not in args and self.output_channels is None:
            found.num_labels = num_classes
        network = AutoModelForSemanticSegmentation.from_config(
            found, trust_remote_code=args["trust_remote_code"]).float()
        self._untrained = tuple(network.state_dict())
        return network

    def _trained(self, name, folder, args):
        from transformers import AutoModelForSemanticSegmentation
        from transformers.utils import logging
        logging.disable_progress_bar()  # it is drawn where the output is no terminal, too
        try:
            network, found = AutoModelForSemanticSegmentation.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **args)
        except Exception as error:
            raise CheckpointError(f"model: {name}: the folder's weights do not load ({first_line(error)}).") from None
        self._untrained = tuple(sorted(found["missing_keys"]))
        if broken := [k for k, v in network.state_dict().items() if not torch.isfinite(v).all()]:
            raise CheckpointError(f"model: {name}: {broken[0]!r} holds NaN or infinite values: this is no usable "
                                  "network.")
        return network.float()

    def _defaults(self, network, name):
        named = ("decode_head", "segmentation_head", "auxiliary_head", "classifier", "head")
        head = tuple(n for n, module in network.named_children() if n in named and list(module.parameters()))
        return Interface(_preprocessing(_folder(name) / "preprocessor_config.json"), output="logits", head=head or None)


def _folder(name):
    return Path(expanded(name.partition("/")[2], "model"))


def _preprocessing(path):
    """The input that a preprocessor_config.json of transformers describes. Where it says nothing, ImageNet's."""
    if not path.is_file():
        return _IMAGENET
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scale = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1
        order = "bgr" if found.get("do_flip_channel_order") else "rgb"
        mean, std = found.get("image_mean", _IMAGENET.mean), found.get("image_std", _IMAGENET.std)
        if not found.get("do_normalize", "image_mean" in found):
            mean, std = [0.0] * 3, [1.0] * 3
        return InputConvention(order, round(255 * float(scale), 9), tuple(map(float, mean)), tuple(map(float, std)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"model: {path} cannot be read ({first_line(error)}): correct it, or remove it and set "
                          "input_max, input_mean and input_std.") from None


class UserNetwork(Foreign):
    """A user's own network: what a function in a file or module, called with model_args, returns."""

    brings_weights = True

    @classmethod
    def check(cls, cfg: Config) -> None:
        """Raises ConfigError if there is no such file or function."""
        load_object(cfg.model, "model")

    def _build(self, name, num_classes, args):
        network = called(name, "model", args)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"model: {name} returns a {type(network).__name__}, expected a torch.nn.Module.")
        if any(nn.parameter.is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
            raise ConfigError(f"model: {name} returns a network whose lazy modules do not know their sizes yet: pass "
                              "an example through it before it is returned.")
        self._built = name, network
        return network

    @property
    def untrained(self) -> tuple[str, ...]:
        """The tensors that come out otherwise when the function is called again: those that it draws at random."""
        name, network = self._built
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() ^ 1)
            again = called(name, "model", self._arguments()).state_dict()
        return tuple(k for k, v in network.state_dict().items() if not v.equal(again[k]))
