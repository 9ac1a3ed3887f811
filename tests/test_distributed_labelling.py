"""Several processes label a round together: the files are those of one process, byte for byte, and all processes know,
hold and raise the same."""
import os
import subprocess
import sys
import time

import pytest
import torch
from labelling_process import SCENARIOS, network_of
from torchrun import ROOT, torchrun

from dataset import loaders, segmentation
from dataset.toy import write_toy_world
from utils.config import load_config

pytestmark = pytest.mark.slow
PROCESSES = (0, 1, 2, 3)  # 0: without torchrun
SCRIPT = ROOT / "tests/labelling_process.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelling")
    write_toy_world(root / "world", seed=3, size=(128, 64), source=0, synthia=0, train=7, val=1)
    (root / "c.yml").write_text("layers: [1, 1, 1, 1]\nwidth: 8\nchannels_last: False\nworker: 0\nscreen: False\n"
                                "device: cpu\namp: off\n"
                                f"cityscapes: {{data_dir: {root / 'world/cityscapes'}, input_size: [96, 48]}}\n")
    label(root, "cpu", *PROCESSES)
    return root


def label(root, device, *counts):
    """Run the script in so many processes."""
    for count in counts:
        done = torchrun(count, SCRIPT, root, device) if count else subprocess.run(
            [sys.executable, SCRIPT, root, device], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            capture_output=True)
        assert done.returncode == 0, done.stderr


def found(root, count, device="cpu"):
    """What each of `count` processes has found."""
    return [torch.load(root / f"{device}{count}/{rank}.pt", weights_only=False) for rank in range(max(1, count))]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_files_are_those_of_one_process(root, name):
    alone, images = contents(root / "cpu0" / name), SCENARIOS[name][1]
    if name != "running":  # of which a file is damaged afterwards
        assert len(alone) == {"tars": 4 + 2, "one_tar": 1 + 2}.get(name, images + 1)
        assert all(contents(root / f"cpu{count}" / name) == alone for count in PROCESSES[1:])
    expected, = found(root, 0)
    for count in PROCESSES[1:]:
        for process in found(root, count):
            for fact in ("coverage", "accuracy", "unseen", "manifest"):
                assert repr(process[name][fact]) == repr(expected[name][fact])  # NaN is not equal to itself
            assert process[name]["thresholds"].equal(expected[name]["thresholds"])
            idle = any("plabel_shard" in remark for remark in process[name]["remarks"])
            assert idle == (name == "one_tar" and count > 1)
    assert (expected[name]["accuracy"] is None) == (name == "no_labels")


@pytest.mark.parametrize("count", PROCESSES[1:])
@pytest.mark.parametrize("name", SCENARIOS)
def test_all_processes_hold_the_weighted_mean_of_the_statistics(root, name, count):
    words, images = SCENARIOS[name]
    cfg = load_config(root / "c.yml", words)
    samples = segmentation.find_samples("cityscapes", cfg.target_data, "train")[:images]
    before, total = network_of(cfg).state_dict(), {}
    for rank in range(count):
        network, block = network_of(cfg), cfg.plabel_shard or 1
        share = [sample for i, sample in enumerate(samples) if i // block % count == rank]
        network.use_statistics(cfg.bn_stats)
        with torch.no_grad():
            for item in loaders.whole_image_loader(cfg, "cityscapes", share, False):
                network.score_map(network.prepare(item["image"]))
        for key, value in network.state_dict().items():
            total[key] = total.get(key, 0) + value.double() * len(share)
    moved, states = 0, [process[name]["state"] for process in found(root, count)]
    for key, state in states[0].items():
        if key.endswith("num_batches_tracked"):
            assert state == before[key] + images * (cfg.bn_stats == "batch")
        else:
            torch.testing.assert_close(state.double(), total[key] / images, rtol=1e-6, atol=1e-7)
        moved += not state.equal(before[key])
        assert all(other[key].equal(state) for other in states)
    assert (moved > 0) == (cfg.bn_stats == "batch")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])])
def test_one_process_of_torchrun_has_the_bits_of_one_without_it(root, device):
    if device == "cuda":  # gloo and nccl together
        label(root, device, 0, 1)
    (without,), (alone,) = found(root, 0, device), found(root, 1, device)
    for name in SCENARIOS:
        assert alone[name]["manifest"] == without[name]["manifest"]
        assert all(value.equal(without[name]["state"][key]) for key, value in alone[name]["state"].items())


@pytest.mark.parametrize("count", PROCESSES)
def test_all_processes_agree_on_damage_and_on_how_a_round_ends(root, count):
    for process in found(root, count):
        assert process["intact"] and not process["damaged"]
        assert process["stopped"] in ("Stopped: SIGTERM", "Stopped: a signal to another process")
        assert not process["without"]
    (spoiled,) = {process["spoiled"] for process in found(root, count)}
    third = sorted((root / "world/cityscapes/leftImg8bit/train").rglob("*.png"))[2 if count < 3 else 3]
    name = third.relative_to(root / "world/cityscapes/leftImg8bit/train").as_posix().removesuffix("_leftImg8bit.png")
    assert spoiled.startswith(f"TrainingError: pseudo labels: the network's outputs are not finite for 1 of 7 images, "
                              f"the first {name!r}")


def test_an_image_that_is_gone_ends_all_with_its_name(root):
    began = time.monotonic()
    done = torchrun(2, SCRIPT, root, "cpu", "broken")
    assert done.returncode and "gone.png: image not found" in done.stderr and time.monotonic() - began < 60
    assert not (root / "cpu2/broken/manifest.jsonl").exists()
