"""Stand-in."""
from utils.config_values import Declares, key


class Network(Declares):
    brings_weights = False


class DeepLab(Network):
    layers: tuple[int, ...] = key((3, 4, 23, 3), "bottlenecks in the four stages; 3, 4, 23, 3 is ResNet-101", low=1,
                                  high=999, length=4)
    width: int = key(64, "channels of the stem; all others grow with it", low=1, high=1024)
    head_branches: int = key(4, "the first N of the head's four dilated convolutions are summed; 2 for files of "
                             "AdaptSegNet and BDL, which leave the others untrained", low=1, high=4)
    init_input: str = key("auto", "input", choices=("auto", "bgr255", "rgb01"), may_change=True)


def known():
    return {"deeplab": DeepLab}


def find(name):
    return known()[name]
