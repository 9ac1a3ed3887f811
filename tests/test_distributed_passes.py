"""Passes over images in several processes: evaluation, statistics of batch norms, candidates, eval.py and predict.py
give what one process gives, with each image in exactly one share.

As a script it makes the passes in the processes of torchrun and writes what they give to `found.<rank>.json`."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchrun import ROOT, torchrun

from dataset import loaders, segmentation
from model.alpha_bn import AlphaBatchNorm
from model.build import build_model
from model.statistics import gathered
from trainer import agreement, evaluate
from trainer.candidates import Candidates
from trainer.methods.base import Batch, Setting
from trainer.run_state import Position
from trainer.validation import Validation
from utils import distributed
from utils.checkpoint import digest
from utils.cli import guarded
from utils.config import load_config
from utils.errors import Stopped, UserError
from utils.logger import RunLog

IMAGES = 7
CLASSES = ("a", "b", "c", "d")
DEVICE = torch.device(os.environ.get("DEVICE", "cpu"))
TINY = {
    "amp": "off",
    "note": "tiny", "method": "bn_adapt", "model": "net.py:Net", "init_weight": "net.pth", "worker": 0, "screen": False,
    "device": "cpu", "source": "mine", "target": "mine", "num_classes": 4, "tensorboard": False, "model_folder": False,
    "score_images": 5, "pictures": 0, "print_freq": 1,
    "mine": {"type": "folder", "data_dir": "data", "images": "images/{split}", "labels": "labels/{split}",
             "classes": list(CLASSES), "input_size": [48, 40]}}
# A network with a batch norm that sees one value per channel. If the environment names its process by DIES, this is
# killed in the pass after its first prediction is on the disk; by STOPS, it gets a signal in the second pass with batch
# statistics.
NET = """import os, signal, time
from pathlib import Path
from torch import nn

class Pooled(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)

class Net(nn.Sequential):
    passes = 0

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 5, 4, 2), nn.BatchNorm2d(6), nn.ReLU(),
                         Pooled(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)),
                         nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, 1, 1))

    def forward(self, x):
        rank = os.environ.get("RANK", "none")
        part = Path(f"out/predict.{rank}.jsonl")
        if os.environ.get("DIES") == rank and part.exists() or os.environ.get("STOPS") == rank and self[1].training:
            self.passes += 1
            if self.passes == 2 and "STOPS" in os.environ:
                os.kill(os.getpid(), signal.SIGTERM)
            while self.passes == 2 and "DIES" in os.environ:
                if part.stat().st_size:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)
        return super().forward(x)
"""


# ---- what every process does -----------------------------------------------------------------------------------------


def passes():
    """What the passes give, as plain values."""
    cfg = load_config("tiny.yml")
    samples = segmentation.find_samples("mine", cfg.target_data, "train")
    counts = (1, 2, 5, IMAGES)
    found = {"confusion": [confusion(cfg, samples[:n]) for n in counts],
             "validation": validated(cfg, samples), "alpha_bn": [alpha_bn(cfg, samples[:n]) for n in counts]}
    for words in ((), ("bn_momentum=0.3", "alpha=0.25"), ("bn_variance=population", "alpha=0.1")):
        changed = load_config("tiny.yml", words)
        whole = [adapted(changed, samples[:n]) for n in counts]
        assert adapted(changed, samples, stop=2) == whole[-1]
        found[f"bn_adapt {words}"] = whole
    for words in (["score_images=1"], ["select_by=miou"]):
        found[f"candidates {words}"] = candidates(load_config("tiny.yml", [f"note={words[0][-4:]}", *words]), samples)
    return found


def confusion(cfg, samples):
    network, _ = build_model(cfg, DEVICE)
    loader = loaders.whole_image_loader(cfg, "mine", distributed.share(samples), True)
    return evaluate.evaluate(network, loader, 4, DEVICE).tolist()


def validated(cfg, samples):
    validation, network = Validation(cfg, samples, False), build_model(cfg, DEVICE)[0]
    validation.run(network, 3, RunLog(cfg.log, "validation", False), lambda: None)
    validation.write()
    return validation.state_dict()


def alpha_bn(cfg, samples):
    network, _ = build_model(cfg, DEVICE)
    alpha = AlphaBatchNorm(network, 0.3)
    alpha.start(network, prepared(cfg, network, samples))
    return digest(network.state_dict())


def prepared(cfg, network, samples, check=lambda: None):
    for item in loaders.whole_image_loader(cfg, "mine", distributed.share(samples), False):
        check()
        yield network.prepare(item["image"].to(DEVICE))


def adapted(cfg, samples, stop=None):
    """The network after bn_adapt, which goes on from a saved state after `stop` steps."""
    network, _ = build_model(cfg, DEVICE)
    method = new_method(cfg, network, samples)
    batches = method.batches(0, 0)
    assert len(batches) == len(list(batches)) == -(-len(samples) // distributed.size())
    take_steps(method, list(batches)[:stop])
    if stop:
        state = [network.state_dict(), method.parts()["statistics"].state_dict()]
        network, _ = build_model(cfg, DEVICE)
        method = new_method(cfg, network, samples)
        network.load_state_dict(state[0])
        method.parts()["statistics"].load_state_dict(state[1])
        take_steps(method, method.batches(0, stop))
    method.end_round(0)
    assert method.statistics.images == len(samples)
    return digest(network.state_dict())


def new_method(cfg, network, samples):
    return cfg.method_class(Setting(cfg, network, DEVICE, samples, CLASSES, Position(0), None, lambda: None))


def take_steps(method, batches):
    for item in batches:
        names = [item["name"]] if isinstance(item["name"], str) else item["name"]
        pixels = item["image"].to(DEVICE)
        batch = Batch(method.network.prepare(pixels), None, names, pixels)
        assert method.losses(batch, np.random.default_rng(0)) == {}


def candidates(cfg, samples, check=lambda: None):
    """Records, verdict, and the files that are left, of two states of a network."""
    network, log = build_model(cfg, DEVICE)[0], RunLog(Path(cfg.log) / cfg.note, "run", False)
    validation = Validation(cfg, samples, False)
    made = Candidates(cfg, samples, CLASSES, DEVICE, log, check, lambda n: validation.miou(n, lambda: None))
    made.begin(network)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(DEVICE))
    made.consider(1, {"": network, "teacher": build_model(cfg, DEVICE)[0]})
    made.judge(1)
    chosen, verdict = distributed.from_main(made.hand_back)
    assert len(made.records) == 10
    state = made.state_dict()
    return {"records": state["records"], "source": state["source"].tolist(), "collapsed": made.collapsed,
            "verdict": verdict.as_dict(), "chosen": digest(torch.load(chosen, weights_only=True))}


def stops():
    """How passes end that a signal to the last process alone cuts off at its first image, and a disagreement."""
    cfg, last = load_config("tiny.yml", ["note=stops"]), distributed.rank() == distributed.size() - 1
    samples = segmentation.find_samples("mine", cfg.target_data, "train")

    def check():
        if last:
            raise Stopped("SIGTERM")
    network, ends = build_model(cfg, DEVICE)[0], []
    loader = loaders.whole_image_loader(cfg, "mine", distributed.share(samples), True)
    before = digest(network.state_dict())
    for call in (lambda: evaluate.evaluate(network, loader, 4, DEVICE, check), lambda: candidates(cfg, samples, check),
                 lambda: AlphaBatchNorm(network, 0.3).start(network, prepared(cfg, network, samples, check)),
                 lambda: gathered(network, prepared(cfg, network, samples, check)).__enter__(),
                 lambda: agreement.require_same(lambda: {"images": "some", "list": distributed.is_main()})):
        with pytest.raises((Stopped, UserError)) as end:
            call()
        ends.append([type(end.value).__name__, str(end.value)])
    assert digest(network.state_dict()) == before
    return ends


# ---- starting them ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with 7 images to train on and 7 to validate on, of several sizes, and a network."""
    root = tmp_path_factory.mktemp("passes")
    rng = np.random.default_rng(3)
    for split in ("train", "val"):
        for i in range(IMAGES):
            height, width = 40 + 5 * i, 70 - 6 * i
            label = rng.integers(0, 4, (6, 7)).repeat(12, 0).repeat(10, 1)[:height, :width]
            pixels = np.clip(60 * label[..., None] + rng.normal(9 * i, 30, (height, width, 3)), 0, 255)
            for kind, content in (("images", pixels), ("labels", label)):
                path = root / "data" / kind / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content.astype(np.uint8)).save(path)
    (root / "net.py").write_text(NET)
    (root / "tiny.yml").write_text(yaml.safe_dump(TINY))
    names = {}
    exec(NET, names)
    torch.manual_seed(2)
    network = names["Net"]()
    torch.nn.init.normal_(network[5].weight)
    torch.save(network.state_dict(), root / "net.pth")
    return root


def copied(world, folder):
    shutil.copytree(world, folder)
    return folder


def alone(script, *words, folder, **environment):
    """Run a script in one process, on one thread as in `torchrun`."""
    return subprocess.run([sys.executable, ROOT / script, *map(str, words)], cwd=folder, text=True, capture_output=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment})


SELF = "tests/test_distributed_passes.py"


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory):
    """What one process finds, without torchrun, and its folder."""
    folder = copied(world, tmp_path_factory.mktemp("one") / "run")
    done = alone(SELF, folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.0.json").read_text()), folder


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_passes_give_what_one_process_gives(world, expected, tmp_path, processes):
    folder = copied(world, tmp_path / "run")
    done = torchrun(processes, ROOT / SELF, folder=folder)
    assert done.returncode == 0, done.stderr
    one, its_folder = expected
    assert sum(map(sum, one["passes"]["confusion"][-1])) == sum(
        np.asarray(Image.open(path)).size for path in world.glob("data/labels/train/*.png"))
    found = [json.loads((folder / f"found.{rank}.json").read_text()) for rank in range(processes)]
    assert len(list(folder.glob("found.*.json"))) == processes
    for rank, of_rank in enumerate(found):
        for name in one["passes"]:
            assert of_rank["passes"][name] == one["passes"][name], name
        if processes > 1:
            signal_to = "SIGTERM" if rank == processes - 1 else "a signal to another process"
            others = "process 1" if processes == 2 else "processes 1, 2"
            assert of_rank["stops"] == [["Stopped", signal_to]] * 4 + [
                ["ConfigError", f"the processes of this run differ: list: True in process 0, False in {others}: start "
                 "them with the same command and the same files."]]
    assert left(folder) == left(its_folder) and len(left(folder)) > 10


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_passes_on_a_gpu_give_under_torchrun_what_they_give_without(world, tmp_path):
    folders = copied(world, tmp_path / "one"), copied(world, tmp_path / "two")
    for folder in folders:
        (folder / "tiny.yml").write_text((folder / "tiny.yml").read_text().replace("device: cpu", "device: cuda"))
    done = alone(SELF, folder=folders[0], DEVICE="cuda"), torchrun(1, ROOT / SELF, folder=folders[1], DEVICE="cuda")
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    one, two = (json.loads((folder / "found.0.json").read_text()) for folder in folders)
    assert one == two


def left(folder):
    """The files that the passes have left: those of one process, each once, with the same predictions."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.suffix in (".npy", ".json") else None
            for top in ("snapshot", "log", "miou_result") for path in (folder / top).rglob("*")
            if path.is_file() and "stops" not in path.parts}


@pytest.mark.slow
def test_eval_counts_every_image_once_and_the_first_process_alone_prints(world, tmp_path):
    words = ("--config", "tiny.yml", "net.pth", "--json", "scores.json", "--figure", "figure.png",
             "amp=auto")  # which all processes have to choose together
    folders = copied(world, tmp_path / "one"), copied(world, tmp_path / "three")
    one = alone("eval.py", *words, folder=folders[0])
    three = torchrun(3, ROOT / "eval.py", *words, folder=folders[1])
    assert one.returncode == three.returncode == 0, one.stderr + three.stderr
    assert table(three.stdout) == table(one.stdout) and three.stdout.count("mIoU") == 1
    for name in ("scores.json", "figure.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all(world, tmp_path):
    folder = copied(world, tmp_path / "run")
    (folder / "data/images/val/1.png").write_bytes(b"no image")
    done = torchrun(2, ROOT / "eval.py", "--config", "tiny.yml", "net.pth", folder=folder, timeout=120)
    assert done.returncode != 0 and "mIoU" not in done.stdout
    assert "process 1: error: data/images/val/1.png: cannot be read as an image" in done.stderr


def table(output):
    """The lines of a table, without those of the progress."""
    return [line for line in output.splitlines() if "images/s" not in line]


PREDICT = ("--config", "tiny.yml", "--checkpoint", "net.pth", "--input", "data/images", "--output", "out", "--save",
           "ids,confidence")


@pytest.fixture(scope="module")
def predicted(world, tmp_path_factory):
    """A folder with the predictions of one process, among them one that fails."""
    folder = copied(world, tmp_path_factory.mktemp("predicted") / "run")
    (folder / "data/images/train/3x.png").write_bytes(b"no image")
    shutil.copytree(folder, fresh := folder.with_name("fresh"))
    done = alone("predict.py", *PREDICT, folder=folder)
    assert done.returncode == 2 and "predicted 14 images, 1 failed" in done.stdout, done.stderr
    return folder, fresh


def pictures(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (folder / "out").rglob("*.png")}


def entries(folder):
    """(name, image) of each line of the manifest, which is the only one."""
    manifest, = (folder / "out").glob("*.jsonl")
    return sorted((entry["name"], entry["written"]["ids"])
                  for entry in map(json.loads, manifest.read_text().splitlines()[1:]))


@pytest.mark.slow
def test_predictions_are_those_of_one_process(predicted, tmp_path):
    one, fresh = predicted
    folder = copied(fresh, tmp_path / "run")
    done = torchrun(3, ROOT / "predict.py", *PREDICT, folder=folder)
    codes = set(re.findall(r"exitcode +: (-?\d+)", done.stderr))
    assert done.returncode != 0 and "2" in codes and codes <= {"2", "-15", "130"}  # a signal: torchrun was faster
    assert done.stdout.count("predicted 14 images, 1 failed: out/ids, out/confidence") == 1
    assert done.stderr.count("3x.png: cannot be read as an image") == 1
    assert pictures(folder) == pictures(one) and len(pictures(one)) == 28
    assert entries(folder) == entries(one) and len(entries(one)) == 14
    (folder / "data/images/train/3x.png").unlink()
    (folder / "out/ids/val/6.png").unlink()
    done = torchrun(2, ROOT / "predict.py", *PREDICT, folder=folder)
    assert done.returncode == 0 and "predicted 1 image, 13 were there already" in done.stdout, done.stderr
    assert pictures(folder) == pictures(one) and len(entries(folder)) == 15  # one of them twice


@pytest.mark.slow
def test_predictions_go_on_after_a_process_was_killed(predicted, tmp_path):
    one, fresh = predicted
    folder = copied(fresh, tmp_path / "run")
    (folder / "data/images/train/3x.png").unlink()
    done = torchrun(3, ROOT / "predict.py", *PREDICT, folder=folder, DIES="2")
    assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr
    kept = (folder / "out/predict.2.jsonl").read_text().splitlines()
    assert len(kept) == 1 and json.loads(kept[0])["name"] == "train/2"
    done = alone("predict.py", *PREDICT, folder=folder)
    assert done.returncode == 0, done.stderr
    assert pictures(folder) == pictures(one) and entries(folder) == entries(one)


@pytest.mark.slow
def test_runs_of_bn_adapt_hand_back_what_one_process_does(world, tmp_path):
    words = ("--config", "tiny.yml", "note=run", "select_by=miou")
    one, three = copied(world, tmp_path / "one"), copied(world, tmp_path / "three")
    done = alone("run.py", *words, folder=one), torchrun(3, ROOT / "run.py", *words, folder=three)
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    assert weights(one) == weights(three) and len(weights(one)) == 2
    for name in ("snapshot/run/bn_adapt_verdict.json", "miou_result/run/bn_adapt.json"):
        found, expected = (json.loads((folder / name).read_text()) for folder in (three, one))
        for known in found.get("candidates", []) + expected.get("candidates", []):  # steps are of several images
            known["name"], known["step"] = known["name"].replace("step 3", "step 7"), None
        assert found | {"last": None} == expected | {"last": None}
    assert json.loads((three / "snapshot/run/bn_adapt_verdict.json").read_text())["last"] == "step 3"


@pytest.mark.slow
def test_a_stopped_run_of_bn_adapt_goes_on(world, tmp_path):
    words = ("--config", "tiny.yml", "note=run", "score_images=0", "bn_momentum=0.3")
    one, three = copied(world, tmp_path / "one"), copied(world, tmp_path / "three")
    assert alone("run.py", *words, folder=one).returncode == 0
    stopped = torchrun(3, ROOT / "run.py", *words, folder=three, STOPS="1")
    assert "stopped by SIGTERM at step 2" in stopped.stderr, stopped.stderr
    assert not (three / "snapshot/run/bn_adapt.pth").exists()
    done = torchrun(3, ROOT / "run.py", *words, "--resume", folder=three)
    assert done.returncode == 0, done.stderr
    assert weights(one) == weights(three)


def weights(folder):
    return {path.name: digest(torch.load(path, weights_only=True)) for path in (folder / "snapshot/run").glob("*.pth")}


def main():
    found = {"passes": passes(), "stops": stops() if distributed.size() > 1 else []}
    Path(f"found.{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(guarded(main, debug=True, several=True))
