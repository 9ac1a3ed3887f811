"""One step: the losses of every stage, ClassMix, the teacher."""
import copy
import functools
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bench.published.comparison import Row, outcome
from bench.published.ours import CLASSES, batch, method, segmenter
from trainer import losses
from trainer.classmix import class_mix
from trainer.methods.be import BoundaryEnhancement

SHAPE = 2, 24, 31
GIVEN = "2 x 24 x 31 pixels, float64"
CONF_THRESH = BoundaryEnhancement.conf_thresh


def rows(published) -> list[Row]:
    return [*_ld_rows(published), *_edge_rows(published), *_source_rows(published), *_mix_rows(published),
            *_be_rows(published), *_teacher_rows(published)]


def _their_ld(published, logits, label, shift):
    """(the three terms, gradient of their sum) of one `iter`; shift: what it draws for the rank."""
    z = logits.clone().requires_grad_()
    trainer = SimpleNamespace(config=SimpleNamespace(method="ld", num_classes=logits.shape[1]),
                              losses=SimpleNamespace(), model=SimpleNamespace(forward=lambda _: (z, None)))
    trainer.entropy_loss = functools.partial(published.ldbe.Trainer.entropy_loss, trainer)
    with patch("random.randint", lambda low, high: {-3: low, 3: high}.get(shift, shift)):
        published.ldbe.Trainer.iter(trainer, (torch.zeros(len(z), 3, 1, 1), label, 0, 0, None), 0)
    found = trainer.losses
    return [found.loss_source.item(), found.loss_entropy.item(), found.loss_neg.item()], z.grad


def _our_ld(logits, label, shift, *words):
    z = logits.clone().requires_grad_()
    draws = SimpleNamespace(integers=lambda low, high: shift)
    terms = method("ld", lambda _: z, *words).losses(batch(torch.zeros(len(z), 3, 1, 1), label), draws)
    sum(terms.values()).backward()
    return [terms[name].item() for name in ("positive", "entropy", "negative")], z.grad


def _ld_rows(published):
    torch.manual_seed(1)
    logits = 3 * torch.randn(SHAPE[0], CLASSES, *SHAPE[1:], dtype=torch.float64)
    label = torch.randint(CLASSES, SHAPE).masked_fill(torch.rand(SHAPE) < 0.6, 255)
    theirs, ours, shannon = zip(*((_their_ld(published, logits, label, shift), _our_ld(logits, label, shift),
                                   _our_ld(logits, label, shift, "entropy=shannon")) for shift in range(-3, 4)))
    def term(found, index):
        return [terms[index] for terms, _ in found]
    p = logits.softmax(1)
    twice = (p.logsumexp(1) - p.square().sum(1)).mean()
    ranks = f"{GIVEN}, ranks 6..12"
    return [Row("positive loss", ranks, term(theirs, 0), term(ours, 0), 1e-12),
            Row("entropy loss, `entropy: released`", ranks, term(theirs, 1), term(ours, 1), 1e-12),
            Row("entropy loss, `entropy: shannon` (theirs: softmax taken twice)", ranks, term(theirs, 1),
                term(shannon, 1), 1e-12, [twice.item()] * 7),
            Row("negative loss", ranks, term(theirs, 2), term(ours, 2), 1e-12),
            Row("gradient of their sum", ranks, *(torch.stack([g for _, g in found]) for found in (theirs, ours)),
                1e-11)]


def _edge_rows(published):
    logits, nothing = torch.randn(1, CLASSES, 4, 4, dtype=torch.float64), torch.full((1, 4, 4), 255)
    sure = torch.zeros(1, CLASSES, 4, 4, dtype=torch.float64)
    sure[:, 2] = 1e4
    label, conf = torch.full((1, 4, 4), 2), torch.ones(1, 4, 4)
    theirs = published.ldbe.compute_unsupervised_loss(sure, label, conf, CONF_THRESH)
    return [Row("positive loss where no pixel is selected (theirs: NaN)", "16 pixels",
                _their_ld(published, logits, nothing, 0)[0][0], _our_ld(logits, nothing, 0)[0][0],
                documented=np.nan),
            Row("BE loss where none is positive (theirs: NaN)", "16 pixels", theirs,
                losses.mixed_cross_entropy(sure, label, conf, CONF_THRESH), documented=np.nan)]


def _source_rows(published):
    """Their loss of stage 0 with the network's logits handed in as it expects them, and with what the network gives."""
    torch.manual_seed(2)
    pixels = torch.randint(256, (2, 24, 31, 3), dtype=torch.uint8)
    label = torch.randint(CLASSES, SHAPE).masked_fill(torch.rand(SHAPE) < 0.3, 255)
    network = segmenter(nn.Conv2d(3, CLASSES, 3, padding=1))
    images = network.prepare(pixels)
    def theirs(answer):
        trainer = SimpleNamespace(model=lambda x: answer(network(x)), losses=SimpleNamespace())
        published.source_only.Trainer.iter(trainer, (images, label, 0, 0, None))
        return trainer.losses.seg_loss
    def ours():
        return method("source_only", network).losses(batch(images, label), None)["cross_entropy"]
    return [Row("stage 0: cross entropy", "2 x 24 x 31 pixels", theirs(lambda z: {"out": z}), ours(), 1e-6),
            Row("stage 0: a step with the network as it is (theirs: asks a tuple for `out`)", "so_run.py",
                outcome(lambda: theirs(lambda z: (z, None))), outcome(ours), documented="TypeError")]


def _mix_rows(published):
    torch.manual_seed(3)
    images, conf = torch.randn(3, 3, 24, 31), torch.rand(3, 24, 31)
    label = torch.randint(CLASSES, (3, 4, 4)).repeat_interleave(6, 1).repeat_interleave(8, 2)[..., :31]
    torch.manual_seed(4)
    theirs = published.ldbe.generate_unsup_data(images, label, conf)
    ours = class_mix(images, label, conf, torch.Generator().manual_seed(4))
    return [Row(f"ClassMix: {name}", "3 images, the same draws", a, b)
            for name, a, b in zip(("images", "labels", "confidences"), theirs, ours)]


def _be_rows(published):
    """A whole step. Both networks have a batch norm, so that it matters what the teacher sees in one pass."""
    torch.manual_seed(5)
    label = torch.randint(CLASSES, (3, 24, 31)).masked_fill(torch.rand(3, 24, 31) < 0.7, 255)
    pixels = torch.randint(256, (3, 24, 31, 3), dtype=torch.uint8)
    pixels[0] //= 3  # one image's statistics are not the batch's
    student, teacher = (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, CLASSES, 1)) for _ in range(2))
    for network in (student, teacher):
        network[1].weight.data *= 8
    images = segmenter(student).prepare(pixels)
    shifts = int(np.random.default_rng(6).integers(2**63))
    results = []
    for side in ("theirs", "ours"):
        mine, guide = copy.deepcopy(student), copy.deepcopy(teacher)
        if side == "theirs":
            trainer = SimpleNamespace(ema=SimpleNamespace(model=lambda x: (guide(x), None)), losses=SimpleNamespace(),
                                      model=lambda x: (mine(x), None))
            torch.manual_seed(shifts)
            published.ldbe.Trainer.dis_iter(trainer, (images, label, 0, 0, None))
            loss = trainer.losses.loss_s
        else:
            step = method("be", segmenter(mine))
            step.teacher.model = segmenter(guide)
            loss = step.losses(batch(images, label), np.random.default_rng(6))["mixed"]
            loss.backward()
        results.append((loss, mine[1].weight.grad, guide[0].running_mean))
    loss, gradient, seen = zip(*results)
    given = "3 x 24 x 31 pixels, the same draws"
    return [Row("BE step: loss", given, *loss, 1e-5), Row("BE step: gradient", given, *gradient, 1e-4),
            Row("BE step: statistics of what the teacher sees in one pass, the batch", given, *seen, 1e-6)]


def _teacher_rows(published):
    torch.manual_seed(7)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    be = method("be", student)
    theirs, ours = published.ldbe.EMA(student, be.ema_alpha), be.teacher
    start = student[1].running_mean.clone()
    tracks = [], []
    for _ in range(150):
        for parameter in student.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        student(torch.randn(2, 3, 5, 5, dtype=torch.float64))
        for teacher, track in zip((theirs, ours), tracks):
            teacher.update(student)
            track.append(torch.cat([p.detach().flatten() for p in teacher.model.parameters()]).clone())
    means = [teacher.model[1].running_mean for teacher in (theirs, ours)]
    return [Row("teacher: parameters", "after each of 150 updates", *map(torch.stack, tracks), 1e-12),
            Row("teacher: running statistics (theirs: no update touches them)", "150 updates", *means,
                documented=start)]
