"""The measuring entry: the obvious version agrees with the project, medians are right, and its checks can fail."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench import __main__ as entry
from bench import baseline, gpu, labelling, steps, training
from bench.harness import ROOT, Check, Row, Spread, Target, agreement, elsewhere, interleave, peak_memory, table
from bench.inputs import NUM_CLASSES, QUICK, Inputs
from dataset.labels import CITYSCAPES_IDS
from model.ema import Teacher, ema_decay
from trainer import classmix, fused_losses, losses
from utils.metrics import confusion_matrix


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("bench"), QUICK)


@pytest.fixture(scope="module")
def labelled(inputs):
    """(the obvious version's round, the trainer after its round, its label files)"""
    trainer = inputs.trainer()
    obvious = labelling.plain_round(labelling.SameInputs(inputs.root, inputs.size))
    obvious()
    return obvious, trainer, [sample.label for sample in trainer.label_target(0)]


def random_step(seed, batch=2, side=9):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, NUM_CLASSES, side, side, generator=generator)
    label = torch.randint(0, NUM_CLASSES, (batch, side, side), generator=generator)
    conf = torch.rand(batch, side, side, generator=generator)
    return logits, label, conf


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


def test_round_agrees(labelled):
    obvious, trainer, files = labelled
    assert labelling.threshold_check(obvious.deltas, labelling.reported_thresholds(trainer)).holds
    # The tiny network's confidences crowd together, so their share within the resolution says nothing here.
    assert labelling.label_checks(obvious, files)[1].holds


def test_wrong_thresholds_and_labels_are_found(labelled, tmp_path):
    obvious, trainer, files = labelled
    ours = labelling.reported_thresholds(trainer)
    c = next(i for i, d in enumerate(ours) if d is not None)
    for wrong in (1 - 1.02 * (1 - ours[c]), None):
        moved = [*ours[:c], wrong, *ours[c + 1:]]
        assert not labelling.threshold_check(ours, moved).holds
    label = np.array(Image.open(files[0]))
    label[label != 255] = (label[label != 255] + 1) % NUM_CLASSES
    Image.fromarray(label).save(tmp_path / "wrong.png")
    assert not any(check.holds for check in labelling.label_checks(obvious, [tmp_path / "wrong.png", *files[1:]]))


def test_stub_round_runs(tmp_path):
    for variant in ("obvious", "ours"):
        labelling.prepare_round(str(tmp_path), True, variant, 3)()
        assert len(list((tmp_path / f"{variant}3").rglob("data/cityscapes/gtFine/train/*/*.png"))) == 3


def test_validation_agrees(inputs):
    confusion = baseline.validation(inputs.plain_network(), inputs.plain_pairs(), NUM_CLASSES)
    ours = 0
    for x, truth in inputs.plain_pairs():
        model = inputs.plain_network().eval()
        with torch.no_grad():
            ours += confusion_matrix(truth, model(x, size=tuple(truth.shape))[0].argmax(0), NUM_CLASSES)
    assert confusion.dtype == torch.int64 and torch.equal(confusion, ours) and confusion.sum() > 0


@pytest.mark.parametrize("entropy", ["released", "shannon"])
@pytest.mark.parametrize("rank", [6, 9, 12])
@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_losses_agree(rank, kept, entropy):
    logits, label, conf = random_step(rank)
    label = label.masked_fill(conf >= kept, baseline.IGNORE)
    results = []
    for function in (baseline.ld_losses, fused_losses.ld_losses):
        z = logits.clone().requires_grad_()
        terms = function(z, label, rank, entropy=entropy)
        sum(terms.values()).backward()
        results.append((terms, z.grad))
    assert all(check.holds for check in training.loss_checks(*results))


def test_mixing_and_its_loss_agree():
    logits, label, conf = random_step(3, batch=3)
    images = torch.rand(3, 3, 9, 9)
    plain, ours = (mix(images, label, conf, torch.Generator().manual_seed(5))
                   for mix in (baseline.class_mix, classmix.class_mix))
    assert all(torch.equal(a, b) for a, b in zip(plain, ours)) and not torch.equal(plain[1], label)
    torch.testing.assert_close(baseline.mixed_cross_entropy(logits, *plain[1:], 0.7),
                               losses.mixed_cross_entropy(logits, *ours[1:], 0.7), rtol=1e-6, atol=0)


def test_teacher_agrees():
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


@pytest.mark.parametrize("method", ["ld", "be"])
def test_steps_agree_and_a_wrong_one_is_found(inputs, method):
    batch = inputs.batch(2)
    wrong = {**batch, "label": batch["label"].flip(0)}
    for given, agrees in ((batch, True), (wrong, False)):
        checks = steps.step_checks(steps.OurStep(inputs, method, batch), steps.PlainStep(inputs, method, given))
        assert [c.holds for c in checks] == [agrees, agrees]


def test_samples_agree_and_a_wrong_one_is_found(inputs):
    for row in training.sample_rows(inputs, 1):
        assert all(check.holds for check in row.checks), agreement([row])
    sample = inputs.samples("train")[0]
    crop = baseline.training_sample(sample.image, sample.label, CITYSCAPES_IDS, np.random.default_rng(0), 101, 64,
                                    (1.0,))
    assert not any(c.holds for c in training.sample_checks([crop], [tuple(t.flip(-1) for t in crop)]))


def test_interleave_takes_turns_and_medians():
    order, now = [], [0.0]
    def work(name, costs):
        def call():
            order.append(name)
            now[0] += costs[order.count(name) - 1]
        return call
    variants = {"a": work("a", [100, 2, 8, 4]), "b": work("b", [100, 1, 1, 1])}
    values = interleave(variants, 3, per=2, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert values == {"a": Spread(2.0, 1.0, 4.0), "b": Spread(0.5, 0.5, 0.5)}  # the warm-up of 100 is not among them


def test_table_marks_missed_targets_and_disagreements():
    values = {"obvious": Spread(3.0, 2.5, 3.5), "ours": Spread(0.5, 0.5, 0.5), "floor": Spread(0.4, 0.4, 0.4)}
    row = Row("work", values, targets=[Target("obvious", "ours", ">=", 2.3), Target("ours", "floor", "<=", 1.15)],
              checks=[Check("fine", 1e-7, 1e-6), Check("not a number", float("nan"), 1e-6)])
    assert table([row]).splitlines()[-1] == ("| work | 3 s | 500 ms | 400 ms | 6.00, 1.25 | obvious/ours >= 2.3, "
                                             "ours/floor <= 1.15 (missed) | obvious 2.5 s..3.5 s |")
    assert [line.rsplit(": ")[-1] for line in agreement([row]).splitlines()] == ["agrees", "DISAGREES"]


def allocate(mebibytes):
    """Prepares the work of the next test, in another process."""
    return lambda: torch.zeros(mebibytes * 2**20, dtype=torch.uint8).fill_(1)[0].item()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_work():
    held = torch.ones(2**29, dtype=torch.uint8)  # a peak of this process is none of the other's
    assert 90 <= peak_memory("tests.test_bench:allocate", 96) < 96 + 64 and held[0]


def counted(start):
    """Prepares the work of the next test, in another process."""
    numbers = iter(range(start, 100))
    def work():
        print("not an answer")
        return next(numbers)
    return work


def test_work_elsewhere_is_prepared_once_and_its_end_is_told():
    with elsewhere("tests.test_bench:counted", 97) as work:
        assert [work()["result"] for _ in range(3)] == [97, 98, 99]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="counted has ended"):
                work()


def test_a_wrong_variant_fails_the_entry(monkeypatch, capsys):
    right = baseline.ld_losses
    assert entry.main(["losses", "--quick"]) == 0
    monkeypatch.setattr(baseline, "ld_losses", lambda z, label, rank: right(z, label, rank + 1))
    assert entry.main(["losses", "--quick"]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_entry_runs_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "bench", "losses", "head", "sample", "--quick", "--markdown", tmp_path / "t.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(",")[0] for line in lines[2:]] == ["| losses of an LD step", "| head of the network",
                                                          *["| one training sample"] * 2]
    assert (tmp_path / "t.md").read_text() == f"`python -m bench losses head sample --quick`\n\n{done.stdout}"


def test_rows_of_a_gpu_run_where_there_is_none(inputs, monkeypatch):
    """Not their figures: that nothing in them breaks unseen. The tensors stay on the CPU."""
    for name, stand_in in (("is_available", lambda: True), ("synchronize", lambda: None),
                           ("set_sync_debug_mode", lambda mode: None)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    for name, value in (("DEVICE", "cpu"), ("IMAGES", 2), ("STEPS", 1)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "matmul_rate", lambda: 1e12)
    rows = gpu.step_rows(inputs, 1) + gpu.round_rows(inputs, 1)
    assert [row.work.split(",")[0] for row in rows] == ["GPU: LD step", "GPU: BE step", "GPU: pseudo-label round",
                                                        "GPU: validation"]
    assert all(check.holds for row in rows[:2] for check in row.checks) and all(row.values for row in rows)


@pytest.mark.parametrize("words, said", [(["loses"], "unknown row 'loses'"), (["--repeats", "0"], "at least 1"),
                                         (["--repeats", "x"], "--repeats"), (["--fast"], "--fast")])
def test_wrong_words_are_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        entry.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_every_row_runs(capsys):
    entry.main(["--quick"])
    out = capsys.readouterr().out
    for title in ("pseudo-label round", "memory of a round", "validation", "LD step", "BE step", "keys",
                  "start of run.py", "scaling", "GPU: LD step", "GPU: pseudo-label round"):
        assert f"| {title}" in out
