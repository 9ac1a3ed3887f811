"""The steps of several processes equal those of one with the same global batch; `accumulate` equals processes."""
import copy
import random

import distributed_steps as steps
import numpy as np
import pytest
import torch
from distributed_steps import CASES, SIZE, World, trained
from torch import nn
from torchrun import ROOT, torchrun

from model.alpha_bn import AlphaBatchNorm
from model.parallel import PartStatistics, synchronised
from model.recompute import copied_buffers
from trainer.checks import require_device, require_start
from trainer.classmix import class_mix
from trainer.methods import be, known
from utils.config import parse_config
from utils.errors import ConfigError, TrainingError

PARTS = 6
NETWORKS = ("plain", "frozen")  # without batch norm; DeepLab with its batch norms in evaluation mode
LIKE_ONE = [f"trained({case!r}, {network!r}, 'bn_stats=running', 'accumulate={{}}')" for case in CASES
            for network in NETWORKS]
LIKE_ACCUMULATE = [f"trained({case!r}, {network!r}, 'accumulate={{}}'{more})" for case, network, more in (
    ("be conf_thresh=0.6", "deeplab", ""), ("ld", "deeplab", ""), ("ld", "deeplab", ", 'checkpointing=true'"),
    ("infomax", "deeplab", ""), ("mean_teacher conf_thresh=0.6", "deeplab", ""), ("source_only", "odd", ""),
    ("ld", "odd", ""), ("be", "odd", ""), ("ld", "rare", ""), (f"{steps.__file__}:Twice", "deeplab", ""),
    ("ld", "plain", ", 'amp=bf16'"), ("ld", "plain", ", 'amp=fp16'"))]
ALONE = ["broken({})", "without_losses({})"]


def tasks(processes):
    """What each of so many processes does; the number of parts is always PARTS, but for the last two kinds."""
    if processes == 1:
        return [task.format(1) for task in LIKE_ACCUMULATE]
    return [task.format(PARTS // processes) for task in LIKE_ONE + LIKE_ACCUMULATE] + [
        task.format(1) for task in LIKE_ACCUMULATE[:4]] + [task.format(processes - 1) for task in ALONE]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """(processes, task) -> the result of each process."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    for processes in (1, 2, 3):
        done = torchrun(processes, ROOT / "tests/distributed_steps.py", folder, *tasks(processes))
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stderr and "find_unused" not in done.stderr, done.stderr
        ranks = [torch.load(folder / f"{processes}_{rank}.pt") for rank in range(processes)]
        found |= {(processes, task): [results[task] for results in ranks] for task in ranks[0]}
    return found


def distance(found, expected):
    """The largest difference of two states, relative to the largest value of a tensor; inf if they differ otherwise."""
    if isinstance(expected, torch.Tensor) and expected.is_floating_point():
        finite = expected.isfinite()
        if not finite.equal(found.isfinite()) or not found[~finite].equal(expected[~finite]):
            return np.inf
        found, expected = found[finite], expected[finite]
        return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item() if len(found) else 0.0
    if isinstance(expected, torch.Tensor):
        return 0.0 if found.equal(expected) else np.inf
    if isinstance(expected, dict):
        return max([0.0, *(distance(found[k], expected[k]) for k in expected)]) if (
            found.keys() == expected.keys()) else np.inf
    if isinstance(expected, (list, tuple)):
        return max([0.0, *map(distance, found, expected)]) if len(found) == len(expected) else np.inf
    if isinstance(expected, float):
        return abs(found - expected) / max(abs(expected), 1e-300)
    return 0.0 if found == expected else np.inf


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_one_process_with_the_same_batch(launched, monkeypatch, case, network, processes):
    """Losses, gradients, weights, optimiser and teacher after three steps."""
    task = f"trained({case!r}, {network!r}, 'bn_stats=running', 'accumulate={PARTS // processes}')"
    require_as_one_batch(monkeypatch, case, network, launched[processes, task])


@pytest.mark.parametrize("case", ["ld entropy_on=unselected entropy=shannon", "be conf_thresh=0.6 ema_alpha=0.5",
                                  "crst_mrkld kld_weight=0.3", "infomax", "source_only"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(monkeypatch, case):
    found = trained(case, "plain", "bn_stats=running", f"accumulate={PARTS}")
    require_as_one_batch(monkeypatch, case, "plain", [found])


def require_as_one_batch(monkeypatch, case, network, found):
    """What was found equals one process whose batch is the whole. In it ClassMix mixes within the parts, with their
    random numbers."""
    def mixed_within_parts(images, label, conf, generator):
        mixed = []
        for slot in range(PARTS):
            seed = np.random.default_rng([1234, 0, position.step, slot]).integers(2**63)
            part = slice(slot * SIZE, (slot + 1) * SIZE)
            mixed.append(class_mix(images[part], label[part], conf[part], torch.Generator().manual_seed(int(seed))))
        return [torch.cat(tensors) for tensors in zip(*mixed)]
    monkeypatch.setattr(be, "class_mix", mixed_within_parts)
    world = World(case, network, "bn_stats=running", total=PARTS)
    position = world.position
    losses, gradients = zip(*(world.step() for _ in range(steps.STEPS)))
    assert all(g.abs().max() > 1e-6 for g in gradients[0].values() if g is not None)
    for result in found:
        assert distance(result["losses"], losses) < 1e-9 and distance(result["gradients"], gradients) < 1e-9
        assert distance(result["state"], world.state()) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("task", LIKE_ACCUMULATE)
def test_accumulating_equals_processes(launched, task, processes):
    """With batch statistics, layers dropped at random, unused parameters, recomputed blocks and half precision too.
    Running statistics move by the mean over the parts, and are counted once a step."""
    expected = eval(task.format(PARTS), vars(steps))
    for result in launched[processes, task.format(PARTS // processes)]:
        if "amp" in task:  # after a step, weights that differ by a rounding are other halves
            result, of_first = ({k: v[:1] for k, v in r.items() if k != "state"} for r in (result, expected))
            assert distance(result, of_first) < 0.01  # halves are rounded after a division by `accumulate`
        else:
            assert distance(result, expected) < 1e-9
    if "odd" in task:
        assert expected["gradients"][0]["unused.weight"] is None
        network = expected["state"]["network"]
        assert network["constants"].equal(World("ld", "odd").network.state_dict()["constants"])
        assert network["norm.num_batches_tracked"] == steps.STEPS == network["passes"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("task", LIKE_ACCUMULATE[:4])
def test_a_part_a_process(launched, task, processes):
    """Means over forward passes come from one collective then, not from a first pass."""
    expected = eval(task.format(processes), vars(steps))
    assert all(distance(result, expected) < 1e-9 for result in launched[processes, task.format(1)])


@pytest.mark.slow
@pytest.mark.parametrize("task", LIKE_ACCUMULATE)
def test_torchrun_with_one_process_gives_the_bits_of_a_run_without_it(launched, task):
    result, = launched[1, task.format(1)]
    assert distance(result, eval(task.format(1), vars(steps))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_have_the_same_bits(launched, processes):
    """Every step's gradients, and in the end weights, running statistics, optimiser, loss scaler and teacher."""
    for task in tasks(processes)[:-len(ALONE)]:
        first, *others = launched[processes, task]
        assert len(others) == processes - 1 and all(distance(other, first) == 0 for other in others), task


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_what_one_process_finds_ends_all(launched, processes):
    """A loss that is not finite, and a method without losses in one process, for which the others would wait."""
    last = processes - 1
    assert launched[processes, f"broken({last})"] == [
        f"loss: ['image{2 * last}', 'image{2 * last + 1}']"] * processes
    said = launched[processes, f"without_losses({last})"]
    assert len(said) == processes and all("expected the same names for all" in text for text in said)


def test_parts_draw_numbers_of_their_own(monkeypatch):
    """All but the generator that is given to `losses` beside the batch, which is the same for all parts; those of the
    first part are a single process's."""
    def drawn(*words):
        world, found = World("entmin", "plain", *words), []
        def losses(batch, rng):
            own = batch.rng.random(), torch.rand(()).item(), np.random.rand(), random.random()
            found.append((own, rng.random()))
            return {"a": world.network(batch.images).square().mean()}
        world.method.losses = losses
        world.step()
        return found
    (alone, shared), = drawn()
    parts = drawn("accumulate=3")
    assert len(parts) == 3 and parts[0] == (alone, shared) and {rng for _, rng in parts} == {shared}
    assert all(len({own[i] for own, _ in parts}) == 3 for i in range(4))


def test_statistics_move_by_the_mean_over_the_parts():
    """Infinite constants stay as they are, and so does what no part has moved, to the bit; counts are the last's."""
    network = steps.odd().double()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    xs, moved = [torch.randn(2, 3, 8, 8, dtype=torch.float64) * scale for scale in (1, 2, 5)], []
    for x in xs:
        one = copy.deepcopy(network)
        one(x)
        moved.append(dict(one.named_buffers()))
    statistics = PartStatistics(network, 3)
    for x in xs:
        statistics.rewind()
        network(x)
        statistics.add()
    statistics.settle()
    for name, buffer in network.named_buffers():
        if name.startswith("norm.running"):
            assert buffer.allclose(sum(m[name] for m in moved) / 3, rtol=1e-12) and not buffer.equal(before[name])
        else:
            assert buffer.equal(moved[-1][name])
    PartStatistics(nn.Linear(2, 2), 3).settle()  # without buffers


def test_synchronised_norms_share_all_with_the_networks_own():
    """In one process, where torch's SyncBatchNorm normalises as any other; and a pass on copies moves nothing."""
    torch.manual_seed(3)
    norm, x = nn.BatchNorm2d(4), torch.randn(3, 4, 5, 5)
    nn.init.uniform_(norm.weight)
    plain = copy.deepcopy(norm)
    forward = synchronised([norm])
    assert forward(norm, x).equal(plain(x)) and distance(norm.state_dict(), plain.state_dict()) == 0
    with copied_buffers(norm):
        forward(norm, 2 * x)
    assert distance(norm.state_dict(), plain.state_dict()) == 0
    forward(norm, x).sum().backward()
    assert norm.weight.grad is not None


def test_a_copy_of_the_network_averages_nothing():
    network = World("entmin", "plain").network
    network.parallel = object()
    assert copy.deepcopy(network).parallel is None


@pytest.mark.parametrize("words, said", [
    (["bn_source=0.5"], "sync_bn: it does not go together with bn_source"),
    (["compile=true"], "sync_bn: it does not go together with compile"),
    ([], "sync_bn: batch norms are synchronised on CUDA GPUs only, and this run is on cpu: set sync_bn=false")])
def test_sync_bn_is_refused_by_name(words, said):
    cfg = parse_config("", "-", ["sync_bn=true", "init_weight=some.pth", *words], method="ld")
    with pytest.raises(ConfigError, match=said):
        require_start(cfg)
        require_device(cfg, torch.device("cpu"))


def test_what_accumulate_cannot_divide_is_refused():
    with pytest.raises(TrainingError, match="has 2 images, expected accumulate x batch_size = 3 x 2"):
        World("entmin", "plain", "accumulate=3", total=1).step()
    world = World("entmin", "plain", "accumulate=2")
    world.method.losses = lambda batch, rng: {"a": world.method.mean(world.network(batch.images).mean())}
    with pytest.raises(TrainingError, match="set `uses_mean = True` in the class"):
        world.step()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torchrun_on_a_gpu_gives_what_a_run_without_it_gives(tmp_path):
    """nccl, with one process."""
    named = [f"trained({case!r}, 'deeplab', device='cuda')" for case in ("ld", "be", "source_only")]
    done = torchrun(1, ROOT / "tests/distributed_steps.py", tmp_path, *named)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "1_0.pt")
    assert all(distance(found[task], eval(task, vars(steps))) < 1e-9 for task in named)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_synchronised_norms_give_the_gradients_of_the_whole_batch(tmp_path):
    done = torchrun(2, ROOT / "tests/distributed_steps.py", tmp_path,
                    "trained('source_only', 'deeplab', 'sync_bn=true', device='cuda')")
    assert done.returncode == 0, done.stderr
    found, = torch.load(tmp_path / "2_0.pt").values()
    expected = trained("source_only", "deeplab", total=2, device="cuda")
    assert distance(found["gradients"], expected["gradients"]) < 1e-9
    assert distance(found["state"], expected["state"]) < 1e-9


def test_every_method_is_compared():
    assert {case.split()[0] for case in CASES} | {"bn_adapt"} == set(known())


def test_batch_norms_that_compute_more_are_replaced_by_no_key():
    class Active(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()
    synchronised([nn.BatchNorm2d(2), nn.SyncBatchNorm(2)])
    with pytest.raises(ConfigError, match="sync_bn: the network's Active computes more"):
        synchronised([nn.BatchNorm2d(2), Active(2)])
    with pytest.raises(ConfigError, match="bn_source: the network's Active computes more"):
        AlphaBatchNorm(nn.Sequential(nn.BatchNorm2d(2), Active(2)), 0.5)
