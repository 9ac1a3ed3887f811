"""Work on whole images: a round of pseudo-labelling, its memory, its growth, validation. A function that begins with
`inputs, variant` is a `bench.harness.Row.prepare`."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import baseline
from bench.harness import resident
from bench.inputs import NUM_CLASSES, Inputs
from dataset import loaders
from model.build import build_model
from trainer import evaluate, prediction
from utils.schedule import round_portion

FEW, SOME = 10, 40  # images of the memory row
DECODED = 16        # decoded images in one call: enough to hide what a round does once


def pseudo_label_round(inputs: Inputs, variant: str, decoded: bool = False, model: str = "", **keys):
    """Thresholds and pseudo labels of all training images, a unit is an image; label files are written. Reading is
    included, unless `decoded`: images then come from memory. Floor: one forward pass an image, input ready. model:
    another network, on files of its input size."""
    inputs = inputs.light(model) if model else inputs
    if decoded:
        inputs = inputs.resized("decoded", images=1)
        inputs.multiply(DECODED)
    count = len(inputs.samples("train"))
    if variant == "baseline":
        torch.backends.cudnn.allow_tf32 = False
        return plain_round(inputs, inputs.plain_network(), kept(inputs.plain_inputs, decoded)), count
    trainer = inputs.trainer(**keys)
    if variant == "floor":
        trainer.network.use_statistics("batch")
        return forward(trainer.network, inputs, "train"), count
    if decoded:
        items = kept(lambda: map(pinned, inputs.loader("train")), decoded)()
        loaders.whole_image_loader = lambda *_, **__: items
    return lambda: trainer.method.prepare_round(0), count


def plain_round(inputs: Inputs, network: nn.Module, images):
    """The baseline's round with the default portion: a function that writes `<root>/plain_labels/<name>.png` and
    returns the thresholds. images: a function that returns them, such as `inputs.plain_inputs`."""
    names = [sample.name for sample in inputs.samples("train")]
    options = inputs.config().options
    portion = round_portion(options["cb_prop"], options["portion_step"], 0)

    def work():
        deltas = baseline.thresholds(network, images(), NUM_CLASSES, portion)
        baseline.pseudo_labels(network, images(), names, deltas, portion, inputs.root / "plain_labels")
        return deltas
    return work


def round_memory(inputs: Inputs, variant: str):
    """MiB by which the peak memory of a round without a network grows from 10 images to many. The baseline would not
    end in time: its growth from 10 to 40 images is scaled up."""
    most = SOME if variant == "baseline" else inputs.size.many

    def round_over(count):
        small = inputs.resized(f"{variant}{count}", cityscapes=(256, 128), gta5=(64, 64), images=1)
        small.multiply(count)
        (plain_round(small, Stub(NUM_CLASSES), small.plain_inputs) if variant == "baseline" else
         stub_round(small, NUM_CLASSES))()

    def work():
        round_over(FEW)
        before = resident("VmHWM")
        round_over(most)
        return (resident("VmHWM") - before) * (inputs.size.many - FEW) / (most - FEW)
    return work, 1


def round_growth(inputs: Inputs, variant: str, axis: str):
    """A round without a network, at the size `variant` of an axis (`Size.grown`); labels are twice as high and wide as
    the network's input."""
    images, classes, side, units = inputs.size.grown(axis, int(variant))
    small = inputs.resized(f"{axis}{variant}", cityscapes=(2 * side, side), input_size=(side, side // 2), gta5=(64, 64),
                           images=1)
    small.multiply(images)
    folder = {"type": "folder", "data_dir": str(small.streets / "cityscapes"), "images": "leftImg8bit/{split}",
              "classes": [f"class {c}" for c in range(classes)], "input_size": list(small.size.input_size)}
    work = stub_round(small, classes, source="own", target="own", own=folder, val=False)
    return work, units if axis == "images" else units * images


def validation(inputs: Inputs, variant: str, decoded: bool = False, **keys):
    """The confusion matrix of the validation images; reading, units and floor as in `pseudo_label_round`."""
    count = inputs.size.images * (DECODED if decoded else 1)
    if variant == "baseline":
        torch.backends.cudnn.allow_tf32 = False
        network, pairs = inputs.plain_network(), kept(inputs.plain_pairs, decoded, DECODED)
        return lambda: baseline.validation(network, pairs(), NUM_CLASSES), count
    network, device = inputs.trainer(**keys).network, torch.device(inputs.device)
    if variant == "floor":
        return forward(network.eval(), inputs, "val"), inputs.size.images
    items = kept(lambda: map(pinned, inputs.loader("val")), decoded, DECODED)
    return lambda: evaluate.evaluate(network, items(), NUM_CLASSES, device), count


def predict(inputs: Inputs, variant: str, model: str = "", **options):
    """What predict.py does with the validation images once it has its network: reading, passes, ids in PNG files.
    Units, floor and model as in `pseudo_label_round`. options: of `trainer.prediction.Request`."""
    inputs = inputs.light(model) if model else inputs
    cfg, count = inputs.config(), len(inputs.samples("val"))
    network, _ = build_model(cfg, torch.device(inputs.device))
    if variant == "floor":
        return forward(network.eval(), inputs, "val"), count
    request = prediction.Request((str(inputs.streets / "cityscapes/leftImg8bit/val"),), inputs.root / "predicted",
                                 overwrite=True, **options)
    return lambda: prediction.predict(network, cfg, request), count


def forward(network: nn.Module, inputs: Inputs, split: str):
    """A function that passes each image through the network as it is."""
    images = [x for x, _ in inputs.plain_inputs(split)]
    return torch.no_grad()(lambda: [network(x) for x in images] and None)


def kept(read, decoded: bool, copies: int = 1):
    """`read`, or, with `decoded`, a function that returns what it has read once, `copies` times."""
    items = list(read()) * copies if decoded else None
    return (lambda: items) if decoded else read


def pinned(item: dict) -> dict:
    """A loader's item in pinned memory, where there is a GPU."""
    gpu = torch.cuda.is_available()
    return {k: v.pin_memory() if gpu and isinstance(v, Tensor) else v for k, v in item.items()}


class Stub(nn.Module):
    """A network that costs next to nothing: a linear map of 8x8 averages."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.mix = nn.Conv2d(3, num_classes, 1, bias=False)
        with torch.no_grad():  # the same in every call, as a trained network's
            self.mix.weight.copy_(torch.randn(num_classes, 3, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.avg_pool2d(x, 8))

    score_map = forward  # as the baseline calls it


def stub_round(inputs: Inputs, classes: int, **keys):
    """The project's round with a stub for its network."""
    trainer = inputs.trainer(model=f"{__name__}:Stub", model_args={"num_classes": classes}, num_classes=classes,
                             init_weight="None", **keys)
    return lambda: trainer.method.prepare_round(0)
