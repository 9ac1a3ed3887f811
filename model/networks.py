"""The networks that the key `model` can name."""
from model.deeplabv2 import DeepLabV2
from model.families import HuggingFace, Network, Smp, Torchvision, UserNetwork
from model.interface import Interface
from model.segmenter import Segmenter
from utils.config_keys import Recognised
from utils.config_values import key, nearest
from utils.constants import HOUSE_INPUT
from utils.errors import ConfigError
from utils.user_code import is_user_code

DEEPLAB = Interface(HOUSE_INPUT, run=DeepLabV2.score_map, head=("layer5",), align_corners=True, own_blocks=True)


def known() -> dict[str, type[Network]]:
    """Pattern of the values of `model`, as a user writes them -> class."""
    return {"deeplab": DeepLab, "torchvision/NAME": Torchvision, "smp/ARCH:ENCODER": Smp, "hf/FOLDER": HuggingFace,
            "my_file.py:function": UserNetwork}


def find(name: str) -> type[Network]:
    """The class for a value of `model`. Raises ConfigError if there is none."""
    family, slash, _ = name.partition("/")
    for pattern, cls in known().items():
        if name == pattern or slash and pattern.startswith(f"{family}/") and ".py:" not in name:
            return cls
    if is_user_code(name):
        return UserNetwork
    raise ConfigError(f"model: no network {name!r}{nearest(name, known())}; there are {', '.join(known())}.")


def recognise(checkpoint: str, model: str | None = None) -> Recognised:
    """What a checkpoint tells about a configuration; see `model.recognition`."""
    from model.recognition import recognise  # late: it loads weights, which needs torch
    return recognise(checkpoint, model)


def deeplab(num_classes: int, layers: tuple[int, ...] = (3, 4, 23, 3), width: int = 64,
            head_branches: int = 4) -> Segmenter:
    """The paper's network, DeepLabV2 on a ResNet, whose input is BGR in 0..255 minus the mean."""
    return Segmenter(DeepLabV2(num_classes, layers, width, head_branches), num_classes, DEEPLAB)


class DeepLab(Network):
    """DeepLabV2 on a ResNet, the paper's."""

    layers: tuple[int, ...] = key((3, 4, 23, 3), "bottlenecks in the four stages; 3, 4, 23, 3 is ResNet-101", low=1,
                                  high=999, length=4)
    width: int = key(64, "channels of the stem; all others grow with it", low=1, high=1024)
    head_branches: int = key(4, "the first N of the head's four dilated convolutions are summed; 2 for files of "
                             "AdaptSegNet and BDL, which leave the others untrained", low=1, high=4)
    init_input: str = key("auto", "input that init_weight's network was trained with: bgr255 (0..255 minus the mean: "
                          "this field's, and this project's own), rgb01 (RGB / 255 with torchvision's mean and std: "
                          "CRST's), which is converted, or auto, which goes by the first layer's scale; checkpoints of "
                          "this program are known as what they are, whatever this says",
                          choices=("auto", "bgr255", "rgb01"), may_change=True)

    def segmenter(self, name: str, num_classes: int) -> Segmenter:
        """See `Network.segmenter`."""
        return deeplab(num_classes, self.layers, self.width, self.head_branches)
