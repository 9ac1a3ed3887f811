"""A round: thresholds, selection, and what their training loop does with rate and portion."""
import functools
import random
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bench.published.comparison import Row, outcome
from bench.published.ours import CLASSES, method
from dataset.loaders import crop_keys
from trainer import selection
from utils.config_keys import KEYS
from utils.schedule import poly_lr

PORTION = 0.1
BIN = 2.0**-10  # of a threshold's uncertainty, relative
T = 5000


def rows(published) -> list[Row]:
    return [*_threshold_rows(published), *_selection_rows(published), *_saturated_rows(published),
            *_loop_rows(published), *_source_loop_rows(published)]


def _their_thresholds(published, images, portion):
    """Confidence {class: threshold} of `gene_thres`. images: logits [C, H, W] of each."""
    trainer = SimpleNamespace(config=SimpleNamespace(target="cityscapes"), target_all=None,
                              model=SimpleNamespace(forward=lambda x: (x, None)))
    batches = [(logits.unsqueeze(0), 0, 0, 0, None) for logits in images]
    with patch.object(published.ldbe.dataset, "init_test_dataset", lambda *_, **__: batches):
        return published.ldbe.Trainer.gene_thres(trainer, portion)


def _our_thresholds(images, portion):
    """Bins [C]."""
    found = [selection.predict(logits) for logits in images]
    counts = sum(selection.uncertainty_histogram(label, selection.uncertainty_bin(uncertainty), CLASSES)
                 for label, uncertainty in found)
    return selection.class_thresholds(counts, portion)


def _told(images, portion):
    """Every fifth of each image's confidences of a class, from the lowest; of those, place floor(portion n) from the
    top, which for 0 is the lowest."""
    kept = [[] for _ in range(CLASSES)]
    for logits in images:
        conf, label = logits.softmax(0).max(0)
        for c in range(CLASSES):
            kept[c] += sorted(conf[label == c].tolist())[::5]
    return {c: sorted(values)[-int(len(values) * portion)] for c, values in enumerate(kept) if values}


def _prescribed(label, generator):
    """Logits [C, H, W] that predict `label`, each pixel as sure as chance has it."""
    logits = torch.randn(CLASSES, *label.shape, generator=generator)
    top = logits.amax(0) + 0.5 + 3 * torch.rand(label.shape, generator=generator)
    return logits.scatter_(0, label.unsqueeze(0), top.unsqueeze(0))


def _uncertainties(thresholds):
    return [1 - thresholds[c] for c in sorted(thresholds)]


def _threshold_rows(published):
    g = torch.Generator().manual_seed(8)
    random_images = [3 * torch.randn(CLASSES, 96, 128, generator=g) for _ in range(2)]
    # 20 pixels of each class, each five times: every fifth is then all of them.
    alike = [_prescribed(torch.arange(CLASSES).repeat_interleave(20).view(CLASSES, 20), g).repeat_interleave(5, 2)]
    few = [_prescribed(torch.arange(CLASSES).repeat_interleave(20).view(CLASSES, 20), g)]
    absent = [_prescribed(torch.zeros(4, 5, dtype=torch.long), g)]
    result = []
    for title, given, images, documented in (
            ("class thresholds (1 - conf) where every fifth pixel stands for all", "19 x 100 pixels", alike, False),
            ("class thresholds (theirs: of every fifth pixel)", "2 x 96 x 128 pixels", random_images, True),
            ("class thresholds of few pixels (theirs: the lowest confidence)", "20 pixels of each class", few, True)):
        theirs = _uncertainties(_their_thresholds(published, images, PORTION))
        ours = 1 - selection.threshold_confidence(_our_thresholds(images, PORTION))
        result.append(Row(title, given, theirs, ours, 2 * BIN if not documented else 1e-6,
                          _uncertainties(_told(images, PORTION)) if documented else None))
    def selected():
        thresholds = _our_thresholds(absent, PORTION)
        selection.select(*selection.predict(absent[0]), thresholds, None)
    theirs = _their_thresholds(published, absent, PORTION)
    return [*result, Row("selecting where a class is never predicted (theirs: KeyError)", "18 classes of 19",
                         outcome(lambda: published.selection.thres_cb_plabel(absent[0].unsqueeze(0), theirs)),
                         outcome(selected), documented="KeyError")]


def _selection_rows(published):
    g = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(CLASSES, 96, 128, generator=g)
    label, uncertainty = selection.predict(logits)
    conf, p = 1 - uncertainty, logits.softmax(0)
    def theirs(thresholds):
        return published.selection.thres_cb_plabel(logits.unsqueeze(0), dict(enumerate(thresholds.tolist())))[1]
    def ours(bins):
        return selection.select(label, uncertainty, bins, None)
    result = []
    # Above 1/2 only the predicted class can pass; below, another may.
    for low, high, documented in ((0.5, 0.9, False), (0.02, 0.4, True)):
        bins = selection.uncertainty_bin(1 - torch.linspace(low, high, CLASSES))
        thresholds = selection.threshold_confidence(bins)
        told = torch.where((p > thresholds.float().view(-1, 1, 1)).any(0), label, 255)
        found, mine = theirs(thresholds), ours(bins)
        more = f"; theirs has {(found != mine).sum()} pixels more" if documented else ""
        result.append(Row(f"selection by class thresholds of {low} to {high}"
                          + (" (theirs: by any class's)" if documented else ""), f"96 x 128 pixels{more}", found, mine,
                          documented=told if documented else None))
    places = conf.flatten().sort(descending=True).values
    nothing = torch.full((CLASSES,), selection.NOTHING)
    their_mask, their_own = published.selection.gene_plabel_prop(logits.unsqueeze(0), PORTION)
    our_own = selection.select(label, uncertainty, nothing, PORTION)
    # All but the last of theirs: the threshold is the confidence of the last one, and must be exceeded.
    told = torch.where(conf > places[int(PORTION * conf.numel()) - 1], label, 255)
    result.append(Row("selection of the image's own top share (theirs: less the last pixel and its ties)",
                      f"96 x 128 pixels; {(their_own != 255).sum()} / {(our_own != 255).sum()} selected", their_own,
                      our_own, documented=told))
    bins = selection.uncertainty_bin(1 - torch.linspace(0.5, 0.9, CLASSES))
    class_mask = published.selection.thres_cb_plabel(logits.unsqueeze(0), dict(enumerate(
        selection.threshold_confidence(bins).tolist())))[0]
    _, fused = published.selection.mask_fusion(logits.unsqueeze(0), class_mask, their_mask)
    exceeded = selection.image_threshold(uncertainty, (int(PORTION * conf.numel()) - 1) / conf.numel())
    mine = torch.where((ours(bins) != 255) | (uncertainty <= exceeded), label, 255)
    return [*result, Row("both together, with as many pixels of the image's own", "96 x 128 pixels", fused, mine)]


def _saturated_rows(published):
    sure = torch.zeros(CLASSES, 4, 5)
    sure[3] = 50
    kept = selection.select(*selection.predict(sure), _our_thresholds([sure], PORTION), PORTION)
    _, theirs = published.selection.thres_cb_plabel(sure.unsqueeze(0), dict.fromkeys(range(CLASSES), 0.999999999))
    _, own = published.selection.gene_plabel_prop(sure.unsqueeze(0), PORTION)
    nothing = np.full((4, 5), 255)
    return [Row("selection where every pixel is saturated (theirs: none exceeds 0.999999999 in float32)", "20 pixels",
                theirs, kept, documented=nothing),
            Row("the same by the image's own top share", "20 pixels", own, kept, documented=nothing)]


def _their_loop(published, rounds, epochs, length):
    """What their loop over rounds does, as it is, with stand-ins for what it calls. It trains a network of one number,
    with `num_steps` 100."""
    config = SimpleNamespace(
        neptune=False, resume=False, round=rounds, epochs=epochs, method="ld", cb_prop=method("ld").cb_prop,
        learning_rate=KEYS["learning_rate"].default, num_steps=100, power=KEYS["power"].default, momentum=0.9,
        weight_decay=0.0, plabel="", note="", print_freq=1000, val_freq=1000, save_freq=1000,
        gta5=SimpleNamespace(data_list=""), cityscapes=SimpleNamespace(data_list=""))
    seen = SimpleNamespace(portions=[], draws=[], clamped=[], rates=[], fresh=[])
    network = _number()
    def thresholds(portion):
        seen.portions.append(portion)
        seen.draws.append(random.random())
        return {0: 1.0}
    def step(batch, r):
        if len(seen.rates) % (epochs * length) == 0:
            seen.fresh.append(not trainer.optim.state)
        seen.clamped.append(trainer.cb_thres[0])
        seen.rates.append([group["lr"] for group in trainer.optim.param_groups])
        network.weight.grad = torch.ones_like(network.weight)
    trainer = SimpleNamespace(config=config, model=network, gene_thres=thresholds, save_pred=lambda r: None, iter=step,
                              validate=lambda: 0.0, print_loss=lambda i: None,
                              ema=SimpleNamespace(update=lambda model: None))
    with (patch.object(published.ldbe, "get_list", lambda path: []),
          patch.object(published.ldbe, "time", SimpleNamespace(clock=lambda: 0.0)),  # gone since Python 3.8
          patch.object(published.ldbe.dataset, "init_target_dataset", lambda *_, **__: ([None] * length, None))):
        published.ldbe.Trainer.train(trainer)
    return seen


def _number():
    """A network of one weight, in the backbone's group, and one bias, in the head's."""
    network = nn.Linear(1, 1)
    network.optim_parameters = lambda lr: [{"params": [network.weight], "lr": lr}, {"params": [network.bias], "lr": lr}]
    return network


def _loop_rows(published):
    rounds, epochs, length = 3, 2, 4
    theirs = _their_loop(published, rounds, epochs, length)
    ours = method("ld")
    def rates(total):
        return [poly_lr(ours.base_lr(r), t, total, ours.cfg.power) for r in range(rounds)
                for t in range(epochs * length)]
    portions = [ours.portion(r) for r in range(rounds)]
    orders = {tuple(crop_keys(1234, r, 1000, 9)) for r in range(rounds)}
    sure = torch.eye(CLASSES)[0].view(-1, 1, 1).expand(-1, 4, 5) * 80
    saturated = selection.threshold_confidence(_our_thresholds([sure], PORTION))[0].item()
    listed, head = zip(*theirs.rates)
    given = f"{rounds} rounds of {epochs} x {length} steps"
    return [Row("portion of each round", given, theirs.portions, portions, 1e-12),
            Row("rate of each step with `num_steps` 5000", given, listed, rates(T), 1e-12),
            Row("the same with `num_steps` 100 (theirs: 5000)", given, listed, rates(100), 1e-12, rates(T)),
            Row("rate of the head over it", given, np.divide(head, listed), [ours.cfg.head_lr_mult] * len(head),
                1e-12),
            Row("a round starts with a new optimiser", given, theirs.fresh, [True] * rounds),
            Row("different orders of crops (theirs: every round draws the same)", given, len(set(theirs.draws)),
                len(orders), documented=1),
            Row("threshold of a saturated class (theirs: clamped to 0.999999999)", given, theirs.clamped,
                [saturated] * len(head), documented=[0.999999999] * len(head))]


def _source_loop_rows(published):
    """Their loop of stage 0, and where it ends."""
    base, power = 5e-5, KEYS["power"].default
    config = SimpleNamespace(neptune=False, multigpu=False, learning_rate=base, num_steps=10, power=power, momentum=0.9,
                             weight_decay=0.0, print_freq=1000, val=False, save_freq=1000)
    network, rates = _number(), []
    trainer = SimpleNamespace(config=config, model=network)
    def step(batch):
        rates.append(trainer.optim.param_groups[0]["lr"])
        network.weight.grad = torch.ones_like(network.weight)
    trainer.iter = step
    run = functools.partial(published.source_only.Trainer.train, trainer)
    with patch.object(published.source_only.dataset, "init_source_dataset", lambda *_: ([None] * 10, None)):
        run()
    first, within = list(rates), [poly_lr(base, t, 10, power) for t in range(10)]
    with patch.object(published.source_only.dataset, "init_source_dataset", lambda *_: ([None] * 11, None)):
        outcome(run)  # an error, of another kind in other versions of torch
    return [Row("stage 0: rate of each step (theirs: counts from t = 1)", "10 steps", first, within, 1e-12,
                [base * (1 - t / 10) ** power for t in range(1, 11)]),
            Row("stage 0: a step past T (theirs: a complex rate)", "step 11 of 10", type(rates[-1]).__name__,
                type(poly_lr(base, 11, 10, power)).__name__, documented="complex")]
