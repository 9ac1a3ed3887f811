"""The steps of several processes equal those of one with the same global batch; `accumulate` equals processes."""
import distributed_steps as steps
import numpy as np
import pytest
import torch
from distributed_steps import CASES, SIZE, World, trained
from torchrun import ROOT, torchrun

from trainer.classmix import class_mix
from trainer.methods import be, known

PARTS = 6
NETWORKS = ("plain", "frozen")  # without batch norm; DeepLab with its batch norms in evaluation mode
LIKE_ONE = [f"trained({case!r}, {network!r}, 'bn_stats=running', 'accumulate={{}}')" for case in CASES
            for network in NETWORKS]
LIKE_ACCUMULATE = [f"trained({case!r}, {network!r}, 'accumulate={{}}'{more})" for case, network, more in (
    ("be conf_thresh=0.6", "deeplab", ""), ("ld", "deeplab", ""), ("ld", "deeplab", ", 'checkpointing=true'"),
    ("infomax", "deeplab", ""), ("mean_teacher conf_thresh=0.6", "deeplab", ""), ("source_only", "odd", ""),
    ("ld", "odd", ""), ("be", "odd", ""), ("ld", "plain", ", 'amp=bf16'"), ("ld", "plain", ", 'amp=fp16'"))]
ALONE = ["broken({})", "without_losses({})"]


def tasks(processes):
    """What each of so many processes does; the number of parts is always PARTS, but for the last two kinds."""
    return [task.format(PARTS // processes) for task in LIKE_ONE + LIKE_ACCUMULATE] + [
        task.format(1) for task in LIKE_ACCUMULATE[:4]] + [task.format(processes - 1) for task in ALONE]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """(processes, task) -> the result of each process."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    for processes in (2, 3):
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
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_one_process_with_the_same_batch(launched, monkeypatch, case, network, processes):
    """Losses, gradients, weights, optimiser and teacher after three steps; 1: by `accumulate`. In the one process
    ClassMix mixes within the parts, with their random numbers."""
    def mixed_within_parts(images, label, conf, generator):
        mixed = []
        for slot in range(PARTS):
            seed = np.random.default_rng([1234, 0, position.step, slot]).integers(2**63)
            part = slice(slot * SIZE, (slot + 1) * SIZE)
            mixed.append(class_mix(images[part], label[part], conf[part], torch.Generator().manual_seed(int(seed))))
        return [torch.cat(tensors) for tensors in zip(*mixed)]
    words = case, network, "bn_stats=running"
    found = [trained(*words, f"accumulate={PARTS}")] if processes == 1 else launched[
        processes, f"trained({case!r}, {network!r}, 'bn_stats=running', 'accumulate={PARTS // processes}')"]
    monkeypatch.setattr(be, "class_mix", mixed_within_parts)
    world = World(*words, total=PARTS)
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
        assert distance(result, expected) < (1e-4 if "amp" in task else 1e-9)
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
@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_have_the_same_bits(launched, processes):
    """Every step's gradients, and in the end weights, running statistics, optimiser, loss scaler and teacher."""
    compared = 0
    for (number, task), results in launched.items():
        if number == processes:
            assert all(distance(other, results[0]) == 0 for other in results[1:]), task
            compared += 1
    assert compared == len(tasks(processes))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_what_one_process_finds_ends_all(launched, processes):
    """A loss that is not finite, and a method without losses in one process, for which the others would wait."""
    last = processes - 1
    assert launched[processes, f"broken({last})"] == [
        f"loss: ['image{2 * last}', 'image{2 * last + 1}']"] * processes
    said = launched[processes, f"without_losses({last})"]
    assert len(said) == processes and all("expected the same names for all" in text for text in said)


def test_every_method_is_compared():
    assert {case.split()[0] for case in CASES} | {"bn_adapt"} == set(known())
