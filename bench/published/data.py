"""Label ids, files, crops, the network's input; scores."""
import re
import shutil
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from bench.inputs import photo
from bench.published.comparison import Row, outcome
from bench.published.ours import CLASSES
from dataset import labels, loaders, segmentation, views
from dataset.transforms import Window, cut_image, cut_label, draw_window
from model.networks import deeplab
from utils.config import parse_config
from utils.config_keys import KEYS, SECTION_DEFAULTS, DataConfig
from utils.metrics import class_iou, confusion_matrix

CROP, EDGE, T, IMAGES = 600, 720, 5000, 2975
SCALES = KEYS["scales"].default
GREY = 2 / 151  # two grey levels over the largest number of a network input


def rows(published) -> list[Row]:
    return [*_id_rows(published), *_loader_rows(published), *_file_rows(published), *_window_rows(published),
            *_crop_rows(published), *_score_rows(published)]


def _dataset(published, name, root="", selected=(), **transforms):
    return published.files.BaseDataSet(root, "", name, CLASSES, selected=selected, set="train", **transforms)


def _id_rows(published):
    result = []
    for name in segmentation.LAYOUTS:
        table = np.full(256, labels.IGNORE_INDEX)
        for label_id, train_id in _dataset(published, name).id2train.items():
            table[label_id] = train_id
        section = DataConfig(**SECTION_DEFAULTS[name])
        result.append(Row(f"train ids of {name}", "256 ids", table, segmentation.label_table(section, CLASSES)[:256]))
    return result


class _Keys(dict):
    """Their configuration: keys are attributes as well."""
    __getattr__, __setattr__ = dict.get, dict.__setitem__


def _loader_rows(published):
    """What their loaders ask of a DataLoader, and what that of stage 0 makes of the configuration."""
    section = _Keys(data_dir="", data_list="", input_size=(0, 0))
    keys = _Keys(source="synthia", target="cityscapes", synthia=section, cityscapes=section, batch_size=3, worker=0,
                 num_classes=CLASSES, num_steps=T, crop_src=CROP, crop_tgt=CROP, input_src=EDGE, input_tgt=EDGE)
    with (patch.object(published.loaders, "BaseDataSet"),
          patch.object(published.loaders.data, "DataLoader", lambda *_, **asked: asked)):
        asked, _ = published.loaders.init_target_dataset(keys)
        published.loaders.init_source_dataset(keys)
    cfg = parse_config("source: synthia", "-")
    steps = IMAGES // 3 if asked["drop_last"] else -(-IMAGES // 3)
    return [Row("steps of a round", f"{IMAGES} images in batches of 3", steps,
                loaders.round_steps(cfg, IMAGES, cfg.options["epochs"])),
            Row("stage 0 on SYNTHIA: `num_classes` once its loader is built (theirs: 16, for 19 outputs)", "19",
                keys.num_classes, cfg.num_classes, documented=16)]


def _write_streets(root):
    """Three images in the layout of Cityscapes; returns their names. The third label is of half the height."""
    names = [f"a/a_{i:06d}_000019" for i in range(3)]
    for i, name in enumerate(names):
        image, label = photo("cityscapes", "train", i, (512, 256))
        for folder, ending, content in (("leftImg8bit", "leftImg8bit", image),
                                        ("gtFine", "gtFine_labelIds", label[::2] if i == 2 else label)):
            path = root / folder / "train" / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    return names


def _whole_images(published, root, names, size):
    """(theirs, ours): whole images with labels, at the size (width, height) at which they are labelled."""
    steps = [published.inputs.Resize(size), published.inputs.FlipChannels(), published.inputs.SubMean(),
             published.inputs.ToTensor()]
    section = DataConfig(**{**SECTION_DEFAULTS["cityscapes"], "data_dir": str(root)})
    return (_dataset(published, "cityscapes", str(root), [f"{name}_leftImg8bit.png" for name in names],
                     transform=published.loaders.standard_transforms.Compose(steps),
                     label_transform=published.inputs.MaskToTensor()),
            views.WholeImages(segmentation.find_samples("cityscapes", section, "train"), size,
                              segmentation.label_table(section, CLASSES)))


def _file_rows(published):
    """Files through both readers; then files that are wrong."""
    result = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names, prepare = _write_streets(root), deeplab(CLASSES, (1, 1, 1, 1), width=1).prepare
        for title, size, tolerance in (("network input of a whole image, not resized", (512, 256), 0.0),
                                       ("the same at half the size, bicubic", (256, 128), GREY)):
            theirs, ours = _whole_images(published, root, names, size)
            result.append(Row(title, "512 x 256 pixels", theirs[0][0], prepare(ours[0]["image"])[0], tolerance))
        result.append(Row("its label", "512 x 256 pixels", theirs[0][1], ours[0]["label"]))
        result.append(Row("a label of another size than its image (theirs: taken as it is)", "512 x 128 for 512 x 256",
                          outcome(lambda: theirs[2]), outcome(lambda: ours[2]), documented="runs"))
        path = root / "leftImg8bit/train" / f"{names[1]}_leftImg8bit.png"
        path.write_bytes(path.read_bytes()[:1000])
        result.append(Row("a damaged image (theirs: its neighbour instead)", "1000 bytes of it",
                          theirs[1][4].removesuffix("_leftImg8bit.png"), outcome(lambda: ours[1]),
                          documented=names[0]))
        shutil.rmtree(root / "gtFine")
        ours = views.WholeImages(ours.samples, size)
        result.append(Row("target images without labels, to be labelled (theirs: opens the labels)", "3 images",
                          outcome(lambda: theirs[0]), outcome(lambda: ours[0]), documented="RecursionError"))
    return result


class _Paper:
    """An image that has a size and no pixels, and remembers what it was resized to and where it was cut."""

    def __init__(self, size):
        self.size, self.resized, self.box = size, None, None

    def resize(self, size, _):
        self.resized = self.size = size
        return self

    def crop(self, box):
        self.box = box
        return self


def _window_rows(published):
    """Size after resizing, side of the crop, and how far it may be moved, at each of the five scales."""
    result = []
    for name, size in (("Cityscapes", (2048, 1024)), ("GTA5", (1914, 1052)), ("SYNTHIA", (1280, 760))):
        theirs, ours, told = [], [], []
        for scale in SCALES:
            paper = _Paper(size)
            with patch("random.choice", lambda _: scale), patch("random.randint", lambda low, high: high):
                published.crops.RandomSizeAndCrop(CROP, True, pre_size=EDGE)(paper, _Paper(size), None)
            left, top, right, _ = paper.box or (0, 0, *paper.resized)
            theirs.append((*paper.resized, right - left, left, top))
            furthest = SimpleNamespace(integers=lambda n: n - 1, random=lambda: 1.0)
            window = draw_window(furthest, size[::-1], EDGE, CROP, (scale,), False)
            ours.append((*window.resized[::-1], window.side, window.left, window.top))
            width, height = (int(extent * (EDGE / size[1] * scale)) for extent in size)
            side = min(CROP, width, height)
            told.append((width, height, side, width - side, height - side))
        exact = name == "Cityscapes"
        result.append(Row(f"crop windows of {name}" + ("" if exact else " (theirs: sizes truncated)"),
                          f"{size[0]} x {size[1]}, 5 scales", theirs, ours, documented=None if exact else told))
    return result


def _crop_rows(published):
    """The pixels of the same window, at a scale where it fits and at one where it does not."""
    image, label = photo("cityscapes", "train", 0, (512, 256))
    differences = []
    for scale, (side, top, left) in ((1.0, (150, 20, 200)), (0.5, (90, 0, 60))):
        crop = published.crops.RandomSizeAndCrop(150, True, pre_size=180)
        draws = iter([left, top][: 2 if top else 1])
        with patch("random.choice", lambda _: scale), patch("random.randint", lambda *_: next(draws)):
            theirs = crop(Image.fromarray(image), Image.fromarray(label), None)
        theirs = published.crops.Resize(150)(*theirs)
        with patch("random.random", lambda: 0.0):
            theirs = published.crops.RandomHorizontallyFlip()(*theirs)
        window = Window((round(180 * scale), round(360 * scale)), top, left, side, True)
        differences.append((np.asarray(theirs[0], int), cut_image(image, window, 150), np.asarray(theirs[1]),
                            cut_label(label, window, 150)))
    their_images, our_images, their_labels, our_labels = map(np.stack, zip(*differences))
    given = "2 crops of 512 x 256, one enlarged"
    return [Row("pixels of a crop, bicubic, mirrored", given, their_images, our_images, 2 / 255),
            Row("mean of them", given, their_images.mean(), our_images.mean(), 2e-3),
            Row("its label: share of equal pixels", given, 1.0, (their_labels == our_labels).mean(), 0.02)]


def _score(published, logits, label, num_classes):
    """(mIoU, what is called mAcc, IoU of 13 classes as printed) in percent of `validate`."""
    batches = [(torch.zeros(1, 3, *z.shape[-2:]), y, 0, 0, None) for z, y in zip(logits, label)]
    answers = iter(logits)
    network = SimpleNamespace(forward=lambda _: (next(answers).unsqueeze(0), None))
    network.eval = lambda: network
    trainer = SimpleNamespace(model=network, config=SimpleNamespace(num_classes=num_classes, neptune=False,
                                                                    target="cityscapes"))
    text = StringIO()
    with (patch.object(published.base.dataset, "init_test_dataset", lambda *_, **__: batches),
          patch.object(published.base, "nn", SimpleNamespace(Upsample=lambda **_: torch.nn.Identity())),
          redirect_stdout(text)):
        error = outcome(lambda: published.base.BaseTrainer.validate(trainer))
    thirteen = re.search(r"13-Class mIoU:([\d.]+)%", text.getvalue())
    mean, precision = (100 * track[-1] if track else None for track in (published.base.L_miou, published.base.L_macc))
    return SimpleNamespace(miou=mean, macc=precision, thirteen=float(thirteen[1]) if thirteen else None, error=error)


def _random_scores(classes, num_classes=None):
    """Logits [3, C, 40, 56] and labels [3, 40, 56] of whom the network gets some right; classes: that may occur."""
    g = torch.Generator().manual_seed(10)
    label = torch.tensor(classes)[torch.randint(len(classes), (3, 40, 56), generator=g)]
    logits = torch.randn(3, num_classes or len(classes), 40, 56, generator=g)
    logits[:, [c for c in range(logits.shape[1]) if c not in classes]] = -9.0
    logits.scatter_add_(1, label.unsqueeze(1), torch.full((3, 1, 40, 56), 1.0))
    return logits, label.masked_fill(torch.rand(3, 40, 56, generator=g) < 0.2, labels.IGNORE_INDEX)


def _score_rows(published):
    given, everything = "3 x 40 x 56 pixels", tuple(range(CLASSES))
    logits, label = _random_scores(everything)
    confusion = confusion_matrix(label, logits.argmax(1), CLASSES)
    per_class, mean = class_iou(confusion, everything)
    theirs = _score(published, logits, label, CLASSES)
    batches = [(z.unsqueeze(0), y, 0, 0, None) for z, y in zip(logits, label)]
    with patch.object(published.evaluation, "nn", SimpleNamespace(Upsample=lambda **_: torch.nn.Identity())):
        network = SimpleNamespace(eval=lambda: lambda x: x)
        ious = published.evaluation.compute_iou(network, batches, SimpleNamespace(num_classes=CLASSES))[0]
    right = 100 * confusion.double().diagonal()
    gaps, truth = _random_scores([c for c in everything if c != 16], CLASSES)
    partial = class_iou(confusion_matrix(truth, gaps.argmax(1), CLASSES), everything)[1]
    def evaluation():
        import eval  # noqa: F401
    return [Row("IoU of 19 classes, eval.py", given, 100 * ious.flatten(), per_class, 1e-5),
            Row("mIoU in validation", given, theirs.miou, mean, 1e-5),
            Row("`mAcc` beside the mean recall (theirs: precision)", given, theirs.macc,
                (right / confusion.sum(1)).mean(), 1e-5, (right / confusion.sum(0)).mean()),
            Row("mIoU where a class is absent (theirs: NaN)", given, _score(published, gaps, truth, CLASSES).miou,
                partial, documented=np.nan),
            Row("validation where 19 outputs meet `num_classes` 16 (theirs: fails)", given,
                _score(published, logits, label, 16).error, "runs", documented="RuntimeError"),
            *_sixteen_rows(published, given),
            Row("importing eval.py (theirs: needs a module that is not there)", "utils.logger",
                published.evaluation_as_it_is, outcome(evaluation), documented="ModuleNotFoundError")]


def _sixteen_rows(published, given):
    """A network of 16 outputs, and the score of 13 of them."""
    logits, label = _random_scores(range(16))
    matrix = confusion_matrix(label, logits.argmax(1), 16)
    each, _ = class_iou(matrix, tuple(range(16)))
    protocol = [c for (c,) in labels.street_class_set(16).protocols["13 classes"].labelled]
    theirs = _score(published, logits, label, 16)
    return [Row("13 of 16 classes (theirs: mean of 13 of the 16 IoUs)", given, theirs.thirteen,
                class_iou(matrix, protocol)[1], 1e-3, np.mean([each[c] for c in protocol])),
            Row("validation with 16 outputs (theirs: fails behind that figure)", given, theirs.error, "runs",
                documented="RuntimeError")]
