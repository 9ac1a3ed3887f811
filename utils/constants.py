"""The conventions in which networks take images."""
from dataclasses import dataclass

# Mean of the training images in the Caffe convention of the field's checkpoints: blue, green, red in 0..255.
BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)


@dataclass(frozen=True)
class InputConvention:
    """How a network expects its images: per channel (value - mean) / std.

    The channels are in `order` and the values in 0..`maximum`; mean and std are given in that order and range.
    """

    order: str  # "bgr" or "rgb"
    maximum: float
    mean: tuple[float, ...]
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def words(self) -> str:
        """The convention in words, for messages."""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        order = self.order if len(self.mean) == 3 else f"{len(self.mean)} bands,"
        return f"{order} 0..{self.maximum:g} minus ({mean}) over ({std})"

    def on_pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(offset, scale) of each channel, in `order`: for pixels in 0..255 the input is (pixel - offset) / scale."""
        return tuple(255 / self.maximum * m for m in self.mean), tuple(255 / self.maximum * s for s in self.std)


INPUTS = {
    "bgr255": InputConvention("bgr", 255, BGR_MEAN),  # Caffe's, usual in the field
    "rgb01": InputConvention("rgb", 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's, CRST's
}
HOUSE_INPUT = INPUTS["bgr255"]
