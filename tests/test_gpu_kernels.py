"""What a GPU computes in another way than the CPU: the ways themselves, on the CPU, and both against each other where
there is a GPU. And what the key `deterministic` sets."""
import itertools
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from test_pipeline import TINY, call, toy_world, weights, world  # noqa: F401  (fixtures)
from test_resume import kill_at
from torch import nn

import run as run_script
import run_so as run_so_script
from model import bilinear, deeplabv2, interface
from model.build import build_model
from model.ema import Teacher
from trainer import losses, selection
from trainer.loop import Trainer
from utils import counting, determinism
from utils.cli import EXIT_STOPPED, guarded
from utils.config import config_of
from utils.errors import ConfigError
from utils.metrics import confusion_matrix

gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
on_each = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- counting and selecting ------------------------------------------------------------------------------------------

@on_each
@pytest.mark.parametrize("size", [1, 2, 19, 256, 362, 5000, 300_000])
def test_scattered_counts_equal_a_loop(size, device):
    for seed, n in enumerate((0, 1, 3000)):
        index = torch.randint(size, (3, n), generator=torch.Generator().manual_seed(seed)) // (1 + 2 * seed)
        expected = [0] * size
        for value in index.flatten().tolist():
            expected[value] += 1
        assert counting.scattered_count(index.to(device), size).tolist() == expected


def test_few_counters_are_kept_in_many_copies_and_many_in_one(monkeypatch):
    """So that of 2 million pixels of one class 2,000 meet at an address, and memory stays small."""
    made, zeros, index = [], torch.zeros, torch.zeros(10, dtype=torch.int64)
    monkeypatch.setattr(torch, "zeros", lambda n, **k: made.append(n) or zeros(n, **k))
    for size in (5, 19, 256, 362, 19 * selection.NUM_BINS):
        counting.scattered_count(index, size)
    assert made == [5 * 1024, 19 * 1024, 256 * 1024, 362 * 512, 19 * selection.NUM_BINS]


@on_gpu
def test_selection_and_counts_on_a_gpu_equal_the_cpus(device):
    for seed in range(3):
        label, uncertainty = selection.predict(6 * random(19, 40, 50, seed=seed, dtype=torch.float32))
        thresholds = selection.uncertainty_bin(torch.rand(19, generator=torch.Generator().manual_seed(seed)))
        found = [selection.select(*(x.to(d) for x in (label, uncertainty, thresholds)), 0.3).cpu()
                 for d in ("cpu", device)]
        assert found[0].equal(found[1]) and 0 < (found[0] == 255).float().mean() < 1
        truth = torch.randint(25, label.shape, generator=torch.Generator().manual_seed(seed))
        assert confusion_matrix(truth, label, 19).equal(confusion_matrix(truth.to(device), label.to(device), 19).cpu())


BROKEN = [math.nan, math.inf, -math.inf]


@on_each
@pytest.mark.parametrize("broken", [*BROKEN, "column", "all"])
def test_numbers_that_are_not_finite_reach_no_foreign_bin(broken, device):
    """Nor an index out of range, which ends the process on a GPU; other pixels keep their labels and bins."""
    classes, logits = 5, random(5, 12, 13, dtype=torch.float32).to(device)
    spoilt = torch.zeros(12, 13, dtype=torch.bool, device=device)
    spoilt[3:5, 2:9] = True
    changed = logits.clone()
    if broken == "all":
        changed[:], spoilt[:] = torch.nan, True
    elif broken == "column":
        changed[:, spoilt] = torch.tensor(BROKEN, device=device)[torch.arange(int(spoilt.sum()), device=device) % 3]
    else:
        changed[2, spoilt] = broken
    plain, found = (selection.predict(z) for z in (logits, changed))
    bins = [selection.uncertainty_bin(uncertainty) for _, uncertainty in (plain, found)]
    for one, other in ((plain[0], found[0]), bins):
        assert one[~spoilt].equal(other[~spoilt])
    assert found[0].min() >= 0 and found[0].max() < classes
    assert bins[1].min() >= 0 and bins[1].max() < selection.NUM_BINS
    histogram = selection.uncertainty_histogram(found[0], bins[1], classes)
    assert histogram.sum(1).tolist() == [int((found[0] == c).sum()) for c in range(classes)]
    thresholds = selection.class_thresholds(histogram, 0.3)
    for chosen in (selection.select(*found, thresholds, 0.3), selection.cbst_select(changed, thresholds)):
        assert ((chosen < classes) | (chosen == 255)).all()


# ---- resizing --------------------------------------------------------------------------------------------------------

def axis_weights(length, size, aligned, factor=None):
    """Weight of position i in position y after resizing along one axis, by the definition, as lists."""
    scale = ((length - 1) / max(size - 1, 1) if size > 1 else 0) if aligned else 1 / factor if factor else length / size
    rows = [[0.0] * size for _ in range(length)]
    for y in range(size):
        place = y * scale if aligned else max((y + 0.5) * scale - 0.5, 0)
        i = min(int(place), length - 1)
        rows[i][y] += 1 - (place - i)
        rows[min(i + 1, length - 1)][y] += place - i
    return torch.tensor(rows, dtype=torch.float64)


RESIZED = [((7, 9), (56, 72), None), ((7, 9), (5, 20), None), ((1, 6), (9, 1), None), ((5, 4), (1, 1), None),
           ((3, 1), (3, 1), None), ((19, 21), (150, 163), None), ((7, 9), (23, 24), (3.3, 2.7)),
           ((6, 5), (7, 13), (1.3, 2.6))]


@on_each
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape, size, factors", RESIZED)
def test_the_gradient_of_resizing_is_its_transpose(shape, size, factors, aligned, device):
    if factors and aligned:
        aligned = False  # as no network is resized by factors with aligned corners
    x, upstream = random(2, 3, *shape).to(device).requires_grad_(), random(2, 3, *size, seed=1).to(device)
    how = (None, aligned, factors) if factors else (size, aligned, None)
    resized = bilinear.Bilinear.apply(x, *how)
    assert resized.equal(F.interpolate(x, how[0], factors, "bilinear", aligned, recompute_scale_factor=False))
    gradient, = torch.autograd.grad(resized, x, upstream)
    rows, columns = (axis_weights(n, s, aligned, factors and f).to(device)
                     for n, s, f in zip(shape, size, factors or (None, None)))
    for image, channel in itertools.product(range(2), range(3)):
        made, expected = rows.T @ x[image, channel] @ columns, rows @ upstream[image, channel] @ columns.T
        torch.testing.assert_close(resized[image, channel], made, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(gradient[image, channel], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size", [(33, 47), (66, 94), (50, 40)])
def test_a_networks_scores_have_the_gradient_of_interpolation(monkeypatch, size, aligned, multiple):
    """With padding, cutting and all sizes that `Interface.resized` knows."""
    made = interface.Interface(None, align_corners=aligned, size_multiple=multiple)
    scores = random(2, 3, 12, 12).requires_grad_()
    upstream = random(2, 3, *size, seed=1)
    found = []
    for resize in (interface.bilinear, lambda x, size, aligned, factors=None:
                   bilinear.Bilinear.apply(x, size, aligned, factors)):
        monkeypatch.setattr(interface, "bilinear", resize)
        resized = made.resized(scores, size, (33, 47))
        found.append((resized, torch.autograd.grad(resized, scores, upstream)[0]))
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-11, atol=1e-11)


def test_the_gradient_of_resizing_is_computed_in_full_precision():
    x = random(1, 2, 6, 6, dtype=torch.float32).requires_grad_()
    upstream = random(1, 2, 40, 40, seed=1, dtype=torch.float32)
    plain, = torch.autograd.grad(bilinear.Bilinear.apply(x, (40, 40), True, None), x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        found, = torch.autograd.grad(bilinear.Bilinear.apply(x, (40, 40), True, None), x, upstream)
    assert found.equal(plain) and found.dtype == torch.float32


# ---- the head --------------------------------------------------------------------------------------------------------

@on_each
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (11, 13), (30, 7)])
@pytest.mark.parametrize("branches", [1, 2, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_taps_through_a_view_equal_dilated_convolutions(size, branches, memory_format, device):
    x = random(2, 6, *size).to(device, memory_format=memory_format).requires_grad_()
    kernels = [random(5, 6, 3, 3, seed=d).to(device).requires_grad_() for d in range(branches)]
    upstream = random(2, 5, *size, seed=9).to(device)
    dilated = [F.conv2d(x, w, padding=d, dilation=d) for w, d in zip(kernels, (6, 12, 18, 24))]
    ours = deeplabv2.viewed_taps(x, kernels)
    assert len(ours) == branches
    for one, other in zip(dilated, ours):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)
    for one, other in zip(*(torch.autograd.grad(sum(both), [x, *kernels], upstream) for both in (dilated, ours))):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("classes, branches", [(19, 4), (5, 1), (16, 4), (2, 3)])
def test_the_heads_product_fits_tensor_cores_and_is_added_up_in_float32(monkeypatch, classes, branches):
    rows, convolution = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, w: rows.append(len(w)) or convolution(x, w))
    monkeypatch.setattr(deeplabv2, "folded_taps", deeplabv2.viewed_taps)
    head, x = deeplabv2.Head(6, classes, branches), random(1, 6, 9, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x)
    assert found.dtype == torch.float32 and rows[0] % 8 == 0 and 0 <= rows[0] - 9 * classes * branches < 8
    torch.testing.assert_close(found, head(x), rtol=0.1, atol=0.05)


@on_gpu
def test_the_head_on_a_gpu_equals_the_cpus(device):
    head, x = deeplabv2.Head(6, 5).double(), random(2, 6, 11, 13)
    torch.testing.assert_close(head.to(device)(x.to(device)).cpu(), head.cpu()(x), rtol=1e-11, atol=1e-11)


# ---- the teacher -----------------------------------------------------------------------------------------------------

@on_each
def test_the_teachers_update_gives_torch_lists_of_one_type(monkeypatch, device):
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1).double(), nn.BatchNorm2d(2))
    student.to(device)
    teacher = Teacher(student, 0.9)
    expected = {name: value.double() for name, value in teacher.model.state_dict().items()}
    types = []
    for name in ("_foreach_mul_", "_foreach_add_", "_foreach_copy_"):
        call_it = getattr(torch, name)
        def watched(*lists, call_it=call_it, **options):
            types.append({t.dtype for tensors in lists if isinstance(tensors, list) for t in tensors})
            return call_it(*lists, **options)
        monkeypatch.setattr(torch, name, watched)
    for update in range(3):
        with torch.no_grad():
            for value in student.state_dict().values():
                value.copy_(value + 1 if value.dtype == torch.int64 else torch.rand_like(value))
        teacher.update(student)
        decay = min(1 - 1 / (update + 1), 0.9)
        parameters = {name for name, _ in student.named_parameters()}
        for name, value in student.state_dict().items():
            kept = decay if name in parameters else 0
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    assert types and all(len(found) == 1 for found in types) and set.union(*types) == {
        torch.float32, torch.float64, torch.int64}
    for name, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)


# ---- deterministic ---------------------------------------------------------------------------------------------------

def settings():
    memory, cudnn = torch.utils.deterministic, torch.backends.cudnn
    return (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark,
            memory.fill_uninitialized_memory, os.environ.get("CUBLAS_WORKSPACE_CONFIG"))


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with determinism.same_kernels():
        torch.backends.cudnn.benchmark = True
        yield


def test_deterministic_settings_and_the_way_back(unset):
    before = settings()
    with determinism.same_kernels():
        determinism.compute_deterministically(torch.device("cpu"))
        assert settings() == before  # harmless where it is not needed
        determinism.compute_deterministically(torch.device("cuda", 0))
        assert settings() == (True, True, False, False, ":4096:8")
        determinism.compute_deterministically(torch.device("cuda", 0))
    assert settings()[:4] == before[:4]


@pytest.mark.parametrize("value, accepted", [(":16:8", True), (":4096:8", True), (":4096:2", False), ("", False)])
def test_an_environment_that_contradicts_is_refused(unset, monkeypatch, value, accepted):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
    before = settings()
    if accepted:
        determinism.compute_deterministically(torch.device("cuda"))
        assert settings() == (True, True, False, False, value)
    else:
        with pytest.raises(ConfigError, match="^deterministic: .*CUBLAS_WORKSPACE_CONFIG"):
            determinism.compute_deterministically(torch.device("cuda"))
        assert settings() == before


@pytest.mark.parametrize("words, asked", [({}, []), ({"deterministic": True}, [torch.device("cpu")])])
def test_whatever_builds_a_network_asks_for_deterministic_kernels_if_the_key_does(monkeypatch, words, asked):
    calls = []
    monkeypatch.setattr("model.build.compute_deterministically", calls.append)
    build_model(config_of({**TINY, **words}, "TINY"), torch.device("cpu"), load=False)
    assert calls == asked


def test_an_operation_without_a_deterministic_kernel_is_one_line(capsys):
    def main():
        raise RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you "
                           "set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism ...")
    assert guarded(main) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: deterministic: ") and "adaptive_max_pool2d_backward_cuda" in error
    assert "deterministic=false" in error and "\n" not in error


@on_gpu
def test_cross_entropy_is_deterministic_and_that_of_the_cpu(unset, device):
    logits, label = 3 * random(2, 7, 40, 50), torch.randint(8, (2, 40, 50), generator=torch.Generator().manual_seed(0))
    label[label == 7] = 255
    determinism.compute_deterministically(torch.device(device))
    found = [losses.cross_entropy(logits.to(d), label.to(d)).cpu() for d in ("cpu", device)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)


@on_gpu
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_runs_end_with_the_same_bits_on_a_gpu(world, monkeypatch, device, amp):  # noqa: F811
    """All three stages, each once without a stop, and once stopped and resumed."""
    words = (f"device={device}", f"amp={amp}", "deterministic=true", "save_freq=100")
    stages = (("source_only", run_so_script, ()),
              ("ld", run_script, ("method=ld", "init_weight=snapshot/a/source_only.pth")),
              ("be", run_script, ("method=be", "init_weight=snapshot/a/ld.pth")))
    with determinism.same_kernels():
        for stage, script, more in stages:
            assert call(monkeypatch, script, *more, *words, "note=a") == 0
            with monkeypatch.context() as patch:
                kill_at(patch, Trainer, 3, signal.SIGTERM)
                assert call(patch, script, *more, *words, "note=b") == EXIT_STOPPED
            assert call(monkeypatch, script, *more, *words, "note=b", "--resume") == 0
            first, second = (weights(f"snapshot/{note}/{stage}.pth") for note in ("a", "b"))
            assert all(value.equal(second[name]) for name, value in first.items())
