"""A round's pseudo labels equal those of two passes and full sorts in float64; packed scores; background work."""
import copy
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dataset import loaders, segmentation
from dataset.toy import write_toy_world
from model.build import build_model
from trainer import selection
from trainer.rounds import label_round
from utils.background import Background, host_copy
from utils.config import load_config
from utils.counting import count
from utils.disk_buffer import TensorBuffer
from utils.errors import TrainingError, UserError

PORTION = 0.2
RESOLUTION = 2**-7  # of 1 - conf: bins of 2^-10 and scores of 2^-10 stay well within it


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelling")
    write_toy_world(root / "world", seed=3, size=(128, 64), source=0, synthia=0, train=5, val=1)
    (root / "c.yml").write_text("layers: [1, 1, 1, 1]\nwidth: 8\nchannels_last: False\nworker: 0\n"
                                "screen: False\ndevice: cpu\n"
                                f"cityscapes: {{data_dir: {root / 'world/cityscapes'}, input_size: [96, 48]}}\n")
    return root


def setting(world, *words):
    """Configuration, a network whose logits spread as a trained one's do, samples, class names."""
    cfg = load_config(world / "c.yml", words)
    torch.manual_seed(0)
    model, _ = build_model(cfg, torch.device("cpu"), load=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    samples = segmentation.find_samples("cityscapes", cfg.target_data, "train")
    if cfg.bn_stats == "running":  # running statistics are usable only after some images
        with torch.no_grad():
            for item in 10 * list(loaders.whole_image_loader(cfg, cfg.target, samples, False)):
                model.train()(model.prepare(item["image"]))
    return cfg, model, samples, tuple(map(str, range(19)))


def select(logits, thresholds, portion=PORTION):
    """Class-balanced selection, with each image's own share."""
    label, uncertainty = selection.predict(logits)
    return label, selection.select(label, uncertainty, thresholds, portion)


def baseline_round(model, cfg, samples, select_image):
    """The baseline, two float64 passes over every image and full sorts. Returns labels, which pixels lie within
    RESOLUTION of another label (by confidence or by the margin between the two best classes), and thresholds."""
    model = copy.deepcopy(model).double().train(cfg.bn_stats == "batch")
    per_class, images = {}, []
    for item in loaders.whole_image_loader(cfg, cfg.target, samples, False):
        def probabilities(size):
            with torch.no_grad():
                scores = model.score_map(model.prepare(item["image"]).double())
                return F.interpolate(scores, size, mode="bilinear", align_corners=True)[0].softmax(0)
        conf, label = probabilities(item["image"].shape[1:3]).max(0)
        for c in label.unique().tolist():
            per_class.setdefault(c, []).extend(conf[label == c].tolist())
        images.append(probabilities(tuple(item["size"])).topk(2, dim=0))
    threshold = {c: sorted(v, reverse=True)[max(1, math.floor(PORTION * len(v))) - 1] for c, v in per_class.items()}
    result = []
    for (conf, second), (label, _) in images:
        limit = sorted(conf.flatten().tolist(), reverse=True)[max(1, math.floor(PORTION * conf.numel())) - 1]
        own = torch.tensor([threshold.get(c, 2.0) for c in range(cfg.num_classes)], dtype=torch.float64)[label]
        selected = (conf >= own) | (select_image & (conf >= limit))
        near = (conf / second).log() < RESOLUTION
        for edge in (own, torch.tensor(limit)):
            near |= ((1 - conf) / (1 - edge)).log().abs() < RESOLUTION
        result.append((torch.where(selected, label, 255), near))
    return result, threshold


@pytest.mark.parametrize("words", [(), ("select_image=False",), ("bn_stats=running",), ("score_budget=0",)])
def test_a_round_equals_two_passes_and_full_sorts(world, tmp_path, words):
    cfg, model, samples, names = setting(world, *words)
    share = PORTION if cfg.options["select_image"] else None
    expected, threshold = baseline_round(model, cfg, samples, cfg.options["select_image"])
    found = label_round(model, cfg, samples, names, PORTION, lambda *given: select(*given, share), tmp_path)
    for c, conf in zip(range(19), selection.threshold_confidence(found.thresholds).tolist()):
        assert math.isnan(conf) if c not in threshold else 1 - conf == pytest.approx(1 - threshold[c], rel=RESOLUTION)
    labels = [torch.from_numpy(np.array(Image.open(tmp_path / f"{s.name}.png"))).long() for s in samples]
    total, wrong = sum(a.numel() for a in labels), 0
    for found_label, (label, near) in zip(labels, expected, strict=True):
        assert ((found_label == label) | near).all()
        wrong += (found_label != label).sum().item()
    assert wrong <= total * 1e-3, f"{wrong} of {total} pixels"
    selected = sum((a != 255).sum().item() for a in labels)
    assert found.coverage["all"] == pytest.approx(selected / total) and PORTION - 0.02 < found.coverage["all"] < 1
    table = segmentation.label_table(cfg.target_data, 19)
    true = [torch.from_numpy(segmentation.read_pair(s, table)[1]) for s in samples]
    pairs = [(a[a != 255], t[a != 255]) for a, t in zip(labels, true)]
    right = sum((a == t).sum().item() for a, t in pairs)
    assert found.accuracy["all"] == pytest.approx(right / sum((t != 255).sum().item() for _, t in pairs))


def test_the_network_sees_each_image_once(world, tmp_path):
    cfg, model, samples, names = setting(world)
    seen = []
    model.network.conv1.register_forward_hook(lambda *_: seen.append(1))
    label_round(model, cfg, samples, names, PORTION, select, tmp_path)
    assert len(seen) == len(samples) == model.network.bn1.num_batches_tracked.item()
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == sorted([f"{Path(s.name).name}.png" for s in samples] + ["manifest.jsonl"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_named_before_labels_are_made_of_them(world, tmp_path, value):
    cfg, model, samples, names = setting(world)
    plain, seen = model.score_map, []

    def poisoned(image):
        seen.append(1)
        scores = plain(image)
        scores[0, 3, 1, 2] = value if len(seen) in (2, 4) else scores[0, 3, 1, 2]
        return scores
    model.score_map = poisoned
    with pytest.raises(TrainingError) as refused:
        label_round(model, cfg, samples, names, PORTION, select, tmp_path)
    assert f"2 of {len(samples)} images, the first {samples[1].name!r}" in str(refused.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_uncertainties_that_are_not_numbers_stay_within_the_bins():
    uncertainty = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, 0.5, 1.0])
    bins = selection.uncertainty_bin(uncertainty)
    assert bins.min() >= 0 and bins.max() <= selection.NUM_BINS - 1
    counts = selection.uncertainty_histogram(torch.zeros(9, dtype=torch.int64), bins, 3)
    assert counts[1:].sum() == 0  # under no other class


def test_no_accuracy_without_labels(world, tmp_path):
    cfg, model, samples, names = setting(world, "plabel_accuracy=False")
    assert label_round(model, cfg, samples, names, PORTION, select, tmp_path).accuracy is None


@pytest.mark.parametrize("scale", [0.5, 5, 25])
def test_packed_scores_keep_every_uncertainty(scale):
    scores = scale * torch.randn(7, 9, 11, generator=torch.Generator().manual_seed(0))
    packed = selection.pack_scores(scores)
    assert packed.dtype == torch.int16
    unpacked, below = selection.unpack_scores(packed), scores - scores.amax(0)
    near = below > -64
    assert (unpacked - below)[near].max() < 1e-5 and (unpacked - below)[near].min() > -2**-10 - 1e-5
    assert (scores.argmax(0) == unpacked.argmax(0)).all()
    assert unpacked.amax(0).eq(0).all() and unpacked.min() >= -64
    _, exact = selection.predict(scores)
    _, uncertainty = selection.predict(unpacked)
    kept = exact > 1e-23  # smaller ones are beyond the end of the range at e^-64
    assert kept.float().mean() > 0.9
    assert (uncertainty / exact - 1)[kept].abs().max() < math.exp(2**-10) - 1 + 1e-5


@pytest.mark.parametrize("num_classes", [2, 19, 60])
def test_classes_more_confident_than_16_bits_can_hold_are_selected(num_classes):
    """Both exact and packed scores fall into bin 0, whatever the number of classes."""
    scores = torch.full((num_classes, 4, 5), -200.0)
    scores[1] = 0
    assert (selected_after_packing(scores, 0.1) == 1).all()


@pytest.mark.parametrize("seed", range(20))
def test_pixels_selected_with_exact_scores_are_selected_with_packed_ones(seed):
    """Uniform maps, where rounding could lose every pixel, and random ones; beyond them only near ties are selected."""
    g = torch.Generator().manual_seed(seed)
    assert (selected_after_packing((3 * torch.randn(3, 1, 1, generator=g)).expand(3, 4, 5), 0.1) != 255).all()
    scores = 3 * torch.randn(5, 40, 50, generator=g)
    label, uncertainty = selection.predict(scores)
    thresholds = selection.class_thresholds(selection.uncertainty_histogram(*binned(scores), 5), 0.1)
    chosen, exact = selected_after_packing(scores, 0.1), selection.select(label, uncertainty, thresholds, None)
    assert (chosen == exact)[exact != 255].all() and (chosen == label)[chosen != 255].all()
    largest = torch.stack([uncertainty[exact == c].max() for c in range(5)])
    assert (uncertainty <= largest[label] * (1 + 2**-9) * (1 + 1e-5))[chosen != 255].all()


def selected_after_packing(scores, portion):
    thresholds = selection.class_thresholds(selection.uncertainty_histogram(*binned(scores), len(scores)), portion)
    label, uncertainty = selection.predict(selection.unpack_scores(selection.pack_scores(scores)))
    return selection.select(label, uncertainty, thresholds, None)


def binned(scores):
    label, uncertainty = selection.predict(scores)
    return label, selection.uncertainty_bin(uncertainty)


@pytest.mark.parametrize("budget", [0, 5000, 10**8])
def test_buffer_gives_back_what_it_took(tmp_path, budget):
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randint(-2**15, 2**15, (3, i + 1, 40), dtype=torch.int16, generator=g) for i in range(30)]
    with TensorBuffer(budget, tmp_path) as buffer:
        numbers = [tuple(range(-2**40, -2**40 + i % 4)) for i in range(30)]
        for tensor, own in zip(tensors, numbers):
            buffer.append(tensor, *own)
        for _ in range(2):
            assert all(a.equal(b) and own == found
                       for a, own, (b, found) in zip(tensors, numbers, buffer, strict=True))
        assert not list(tmp_path.iterdir())  # the scratch file has no name


def test_a_full_disk_under_the_buffer_is_one_clear_error(tmp_path, monkeypatch):
    with TensorBuffer(0, tmp_path) as buffer:
        def full(*_):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(buffer._file, "write", full)
        with pytest.raises(UserError, match="score_budget"):
            buffer.append(torch.zeros(2, 2, dtype=torch.int16))


def test_background_cannot_run_ahead_and_keeps_order():
    done, waiting = [], threading.Event()
    with Background(pending=3) as background:
        background.submit(waiting.wait)
        for i in range(2):
            background.submit(done.append, i)
        blocked = threading.Thread(target=background.submit, args=(done.append, 2))
        blocked.start()
        time.sleep(0.05)
        assert blocked.is_alive() and not done  # the fourth has to wait for the first
        waiting.set()
        blocked.join()
    assert done == [0, 1, 2]


def test_background_raises_what_its_calls_raise():
    def fail():
        raise ValueError("broken")
    with pytest.raises(ValueError, match="broken"), Background() as background:
        background.submit(fail)
    with pytest.raises(KeyError), Background() as background:  # the body's own error takes precedence
        background.submit(fail)
        raise KeyError


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])])
def test_count_equals_a_loop(device):
    index = torch.randint(0, 9, (7, 50), generator=torch.Generator().manual_seed(0))
    expected = [sum(int(v) == i for v in index.flatten()) for i in range(12)]
    assert count(index.to(device), 12).tolist() == expected
    assert host_copy(index.to(device))().equal(index)


def test_memory_is_kept_only_where_glibc_is():
    import sys

    from utils import allocator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        patch.setattr(allocator.ctypes, "CDLL", lambda _: 1 / 0)
        allocator.keep_freed_memory()
        patch.setattr(sys, "platform", "linux")
        patch.setattr(allocator.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("no such library")))
        allocator.keep_freed_memory()
    allocator.keep_freed_memory()
