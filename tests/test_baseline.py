"""The project agrees with the published recipe written plainly (bench/baseline.py), piece by piece, and a wrong
piece is found. Random draws are the same, so only rounding may differ."""
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bench import baseline, labelling, training
from bench.inputs import FULL, NUM_CLASSES, QUICK, Inputs
from dataset import loaders
from dataset.labels import CITYSCAPES_IDS
from model.deeplabv2 import Head
from model.ema import Teacher, ema_decay
from trainer import classmix, evaluate, fused_losses, losses
from utils.metrics import confusion_matrix
from utils.schedule import round_portion

RESOLUTION = 2**-7        # relative, of 1 - conf: what a threshold may be off by
FLOAT32 = 2**-23          # the baseline knows 1 - conf of confident pixels only to this
DIFFERING = 1e-4          # share of pixels whose label may differ
RATE = 1e-2               # of the step whose update is compared
DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")])]
SIZES = {"quick": QUICK, "deep": replace(FULL, cityscapes=(512, 256), gta5=(512, 256), input_size=(256, 128),
                                         shorter_edge=160, crop=128, images=1)}


@pytest.fixture(scope="module", params=["quick", pytest.param("deep", marks=[pytest.mark.slow, pytest.mark.long])])
def size(request):
    return request.param


@pytest.fixture(scope="module", params=DEVICES)
def inputs(request, size, tmp_path_factory):
    torch.backends.cudnn.allow_tf32 = False  # agreement is one of float32
    yield Inputs(tmp_path_factory.mktemp("bench"), SIZES[size], request.param)
    torch.backends.cudnn.allow_tf32 = True


def same_inputs(inputs, trainer, split="train"):
    """(network input, size (H, W) of the file, label or None) of each whole image, as the project reads it."""
    return [(trainer.network.prepare(item["image"].to(inputs.device)), item["size"], item.get("label"))
            for item in inputs.loader(split)]


# ---- whole images ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def rounds(inputs):
    """(the baseline's network, its thresholds and label files, the product's, the network inputs, the portion)"""
    trainer, network = inputs.trainer(), inputs.plain_network()
    images = [pair[:2] for pair in same_inputs(inputs, trainer)]
    deltas = labelling.plain_round(inputs, network, lambda: images)()
    files = [inputs.root / "plain_labels" / f"{sample.name}.png" for sample in trainer.samples]
    trainer.method.prepare_round(0)
    lines = Path(trainer.cfg.log, trainer.cfg.note, "ld.jsonl").read_text().splitlines()
    found = [event for event in map(json.loads, lines) if event["event"] == "pseudo_label"][-1]["threshold"]
    ours = [sample.label for sample in trainer.method.pseudo_labels.samples(0)]
    options = trainer.cfg.options
    portion = round_portion(options["cb_prop"], options["portion_step"], 0)
    return network, (deltas, files), (list(found.values()), ours), images, portion


def threshold_difference(plain, ours):
    """Largest relative difference of 1 - delta_c, less what float32 cannot tell; infinite where one has none."""
    def difference(a, b):
        if a is None or b is None:
            return 0.0 if a is b else float("inf")
        return max(0.0, abs(a - b) - FLOAT32) / max(1 - a, FLOAT32)
    return max(map(difference, plain, ours))


def label_differences(network, images, deltas, portion, plain, ours):
    """(share of pixels that are labelled differently, how many of them no near tie explains)"""
    pixels = differing = unexplained = 0
    for (x, size), mine, other in zip(images, ours, plain):
        differs = torch.from_numpy(np.asarray(Image.open(mine)) != np.asarray(Image.open(other)))
        pixels, differing = pixels + differs.numel(), differing + int(differs.sum())
        if differs.any():
            with torch.no_grad():
                logits = baseline.upsampled(network.train(), x, size)[0].cpu()
            unexplained += int((~near_tie(logits, differs, deltas, portion)).sum())
    return differing / pixels, unexplained


def near_tie(logits, where, deltas, portion):
    """bool, one for each pixel of the mask `where`: is its 1 - conf within RESOLUTION of a threshold's, or are its two
    largest logits? logits: float [C, H, W]."""
    conf = logits.softmax(0).max(0).values.flatten()
    own = conf.sort(descending=True).values[baseline.top_count(portion, conf.numel()) - 1].double()
    top, classes = logits[:, where].double().topk(2, dim=0)
    uncertainty = 1 - 1 / (logits[:, where].double() - top[0]).exp().sum(0)
    delta = torch.tensor([torch.nan if d is None else d for d in deltas], dtype=torch.float64)

    def close(threshold):
        return (uncertainty - (1 - threshold)).abs() <= RESOLUTION * (1 - threshold) + FLOAT32
    return (top[0] - top[1] <= RESOLUTION) | close(delta[classes[0]]) | close(own)


def test_rounds_agree(rounds, size):
    network, (deltas, files), (found, ours), images, portion = rounds
    assert threshold_difference(deltas, found) <= RESOLUTION
    share, unexplained = label_differences(network, images, deltas, portion, files, ours)
    # The tiny network's confidences crowd together, so their share within the resolution says nothing here.
    assert unexplained == 0 and (size == "quick" or share <= DIFFERING)


def test_wrong_thresholds_and_labels_are_found(rounds, tmp_path):
    network, (deltas, files), (found, ours), images, portion = rounds
    c = next(i for i, d in enumerate(found) if d is not None)
    for wrong in (1 - 1.02 * (1 - found[c]), None):
        assert threshold_difference(found, [*found[:c], wrong, *found[c + 1:]]) > RESOLUTION
    label = np.array(Image.open(ours[0]))
    label[label != 255] = (label[label != 255] + 1) % NUM_CLASSES
    Image.fromarray(label).save(tmp_path / "wrong.png")
    share, unexplained = label_differences(network, images, deltas, portion, files, [tmp_path / "wrong.png", *ours[1:]])
    assert share > DIFFERING and unexplained > 0


class Scores(torch.nn.Module):
    """A network that returns the logits it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def score_map(self, x):
        return self.logits


def test_thresholds_take_the_top_share_and_at_least_one_pixel():
    logits = torch.full((1, 3, 1, 10), -20.0)
    logits[0, 0, 0, :9], logits[0, 1, 0, 9] = torch.arange(9.0), 1.0
    x = torch.zeros(1, 3, 1, 10)
    top = logits[0].double().softmax(0).amax(0)[0]
    first, second, nobody = baseline.thresholds(Scores(logits), [(x, None)], 3, 0.25)  # floors of 9 / 4 and of 1 / 4
    assert first == pytest.approx(top[:9].sort(descending=True).values[1].item(), abs=1e-6)
    assert second == pytest.approx(top[9].item(), abs=1e-6) and nobody is None


def test_validations_agree(inputs):
    trainer = inputs.trainer()
    pairs = [(x, label.to(inputs.device)) for x, _, label in same_inputs(inputs, trainer, "val")]
    plain = baseline.validation(inputs.plain_network(), pairs, NUM_CLASSES)
    ours = evaluate.evaluate(trainer.network, inputs.loader("val"), NUM_CLASSES, torch.device(inputs.device))
    assert plain.dtype == torch.int64 and plain.sum() > 0
    assert (plain - ours).abs().sum().item() / 2 / plain.sum().item() <= DIFFERING


def test_the_baseline_counts_every_pixel_of_its_own_inputs(inputs):
    network, ours = inputs.plain_network().eval(), 0
    for x, label in inputs.plain_pairs():
        with torch.no_grad():
            ours += confusion_matrix(label, network(x, size=tuple(label.shape))[0].argmax(0), NUM_CLASSES).cpu()
    assert torch.equal(baseline.validation(network, inputs.plain_pairs(), NUM_CLASSES), ours) and ours.sum() > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("work", [labelling.pseudo_label_round, labelling.validation])
def test_a_gpu_is_waited_for_less_than_once_an_image(work, tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "whole_image_loader", loaders.whole_image_loader)  # put back at the end
    run, images = work(Inputs(tmp_path, QUICK, "cuda"), "product", decoded=True, amp="bf16")
    run()
    torch.cuda.set_sync_debug_mode("warn")  # waiting for an event, as a writer of finished labels does, is not told
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(w.message) for w in caught) < images


# ---- training --------------------------------------------------------------------------------------------------------

def random_step(seed, batch=2, side=9):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, NUM_CLASSES, side, side, generator=generator)
    label = torch.randint(0, NUM_CLASSES, (batch, side, side), generator=generator)
    conf = torch.rand(batch, side, side, generator=generator)
    return logits, label, conf


def relative_difference(a, b):
    """The largest over named losses, tensors or numbers."""
    assert set(a) == set(b)
    a, b = ({k: torch.as_tensor(v).item() for k, v in found.items()} for found in (a, b))
    return max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-12) for k in a)


@pytest.mark.parametrize("entropy", ["released", "shannon"])
@pytest.mark.parametrize("rank", [6, 9, 12])
@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_losses_agree(rank, kept, entropy):
    logits, label, conf = random_step(rank)
    label = label.masked_fill(conf >= kept, baseline.IGNORE)
    (plain, gradient), (ours, found) = (training.with_gradient(f, logits, label, rank, entropy=entropy)
                                        for f in (baseline.ld_losses, fused_losses.ld_losses))
    assert relative_difference(plain, ours) <= 1e-6
    assert (gradient - found).abs().max() <= 1e-5 * gradient.abs().max()


def test_losses_of_another_rank_are_found():
    logits, label, _ = random_step(0)
    plain, ours = (training.with_gradient(fused_losses.ld_losses, logits, label, rank)[0] for rank in (9, 10))
    assert relative_difference(plain, ours) > 1e-6


def plain_class_mix(images, label, conf, generator):
    """Half of the classes of image i pasted over image i + 1; shapes as in `classmix.class_mix`."""
    mixed = images.clone(), label.clone(), conf.clone()
    for i in range(len(images)):
        present = label[i].unique()
        mask = torch.zeros_like(label[i], dtype=torch.bool)
        for k in torch.randperm(len(present), generator=generator)[: len(present) // 2]:
            mask |= label[i] == present[k]
        for whole, source in zip(mixed, (images, label, conf)):
            whole[i] = torch.where(mask, source[i], source[(i + 1) % len(images)])
    return mixed


def plain_mixed_cross_entropy(logits, label, conf, conf_thresh):
    """Per-pixel cross entropy weighted image by image; arguments as in `losses.mixed_cross_entropy`."""
    total = count = 0
    for i in range(len(logits)):
        loss = F.cross_entropy(logits[i: i + 1], label[i: i + 1], reduction="none")
        total = total + (conf[i] >= conf_thresh).float().mean() * loss.sum()
        count = count + (loss > 0).sum()
    return total / count.clamp(min=1)


def test_mixing_and_its_loss_agree():
    logits, label, conf = random_step(3, batch=3)
    images = torch.rand(3, 3, 9, 9)
    plain, ours = (mix(images, label, conf, torch.Generator().manual_seed(5))
                   for mix in (plain_class_mix, classmix.class_mix))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours)) and not torch.equal(plain[1], label)
    torch.testing.assert_close(plain_mixed_cross_entropy(logits, *plain[1:], 0.7),
                               losses.mixed_cross_entropy(logits, *ours[1:], 0.7), rtol=1e-6, atol=0)


def test_teachers_agree():
    torch.manual_seed(0)
    student, plain = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    ours = Teacher(student, 0.99)
    for t in range(3):
        torch.nn.init.normal_(student.weight)
        student(torch.randn(2, 4, 3, 3))
        ours.update(student)
        baseline.average(plain, student, ema_decay(t, 0.99))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, ours.model.state_dict()[name])


@pytest.mark.parametrize("shape", [(1, 128, 8, 8), (2, 32, 5, 9)])
def test_heads_agree(shape):
    torch.manual_seed(0)
    plain, ours = baseline.PlainHead(shape[1], NUM_CLASSES), Head(shape[1], NUM_CLASSES)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    a, a_gradients = training.head_with_gradients(plain, x.clone())
    b, b_gradients = training.head_with_gradients(ours.to(memory_format=torch.channels_last), x.clone())
    for p, q in zip((a, *a_gradients), (b, *b_gradients)):
        assert (p - q).abs().max() <= 1e-5 * p.abs().max()


def logged_losses(step):
    """Losses of the product's last step, from its run's log."""
    cfg = step.trainer.cfg
    event = json.loads(Path(cfg.log, cfg.note, f"{cfg.stage}.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in event["loss"].items() if name != "total"}


@pytest.mark.parametrize("keys", [{}, {"checkpointing": True}], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", ["ld", "be"])
def test_steps_agree_and_a_wrong_one_is_found(inputs, method, keys):
    """The bounds are those of float32 through a hundred layers whose convolutions add in another order."""
    batch = inputs.batch(2)
    # No pixel is labelled by the teacher, whose nearest classes float32's rounding may swap.
    batch = {**batch, "label": batch["label"] % NUM_CLASSES}
    wrong = {**batch, "label": batch["label"].flip(0)}
    for given, agrees in ((batch, True), (wrong, False)):
        ours = training.ProductStep(inputs, method, batch, RATE, **keys)
        plain = training.plain_step(inputs, method, given, RATE)
        start = [p.detach().clone() for p in plain.network.parameters()]
        ours(), plain()
        moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(plain.network.parameters(), start)])
        apart = torch.cat([(p - q).detach().flatten()
                           for p, q in zip(plain.network.parameters(), ours.network.parameters())])
        assert (relative_difference(plain.losses, logged_losses(ours)) <= 1e-4) == agrees
        assert (apart.norm() / moved.norm() <= 0.05) == agrees


def sample_differences(plain, ours):
    """(mean difference of the network inputs in grey levels, share of pixels with another label than any within two
    pixels). A pixel whose source lies half-way between two may take either, and the smallest images are enlarged to the
    crop: labels agree where ours is one of the baseline's within two pixels."""
    (image, label), (other_image, other_label) = plain, ours
    padded = F.pad(label[None].float(), (2, 2, 2, 2), mode="replicate")[0]
    height, width = label.shape
    near = [padded[y: y + height, x: x + width] == other_label for y in range(5) for x in range(5)]
    return (image - other_image).abs().mean().item(), 1 - torch.stack(near).any(0).double().mean().item()


@pytest.mark.parametrize("dataset", ["gta5", "cityscapes"])
@pytest.mark.parametrize("size", [QUICK, pytest.param(replace(FULL, layers=(1, 1, 1, 1), width=4, images=1),
                                                      marks=pytest.mark.slow)], ids=["quick", "full"])
def test_samples_agree(tmp_path, size, dataset, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # which would outlast this test
    inputs = Inputs(tmp_path, size)
    found = [training.training_sample(inputs, variant, dataset)[0]() for variant in ("baseline", "product")]
    for plain, ours in zip(*found):
        ours = baseline.network_input(ours["image"]), ours["label"].long()
        image, label = sample_differences(plain, ours)
        assert image <= 0.1 and label == 0


def test_a_wrong_sample_is_found(tmp_path):
    sample = Inputs(tmp_path, QUICK).samples("train")[0]
    crop = baseline.training_sample(sample.image, sample.label, CITYSCAPES_IDS, np.random.default_rng(0), 101, 64,
                                    (1.0,))
    image, label = sample_differences(crop, tuple(t.flip(-1) for t in crop))
    assert image > 0.1 and label > 0
