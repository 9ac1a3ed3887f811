"""One process of those that label images together: what test_distributed_labelling.py starts, by torchrun or alone.

    torchrun --nproc_per_node N tests/labelling_process.py FOLDER DEVICE [broken]

FOLDER holds c.yml and its toy world. The files of each scenario go to FOLDER/DEVICEN/SCENARIO, what each process has
found to FOLDER/DEVICEN/RANK.pt. `broken`: process 1 meets an image that is gone.
"""
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dataset import segmentation
from model.build import build_model
from trainer import selection
from trainer.label_files import MANIFEST, intact
from trainer.rounds import label_round
from utils import distributed
from utils.cli import guarded
from utils.config import load_config
from utils.errors import Stopped, TrainingError

SCENARIOS = {  # keys of the configuration, number of images
    "plain": ((), 7), "tars": (("plabel_shard=2",), 7), "one_tar": (("plabel_shard=100",), 7),
    "running": (("bn_stats=running", "score_budget=0"), 7), "two": ((), 2),
    "no_labels": (("plabel_accuracy=False",), 7)}


def network_of(cfg, device="cpu"):
    """A network with random weights, whose statistics have been moved a little from where they begin."""
    torch.manual_seed(0)
    network, _ = build_model(cfg, torch.device("cpu"), load=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    network.train()(torch.randn(4, 3, 48, 96, generator=torch.Generator().manual_seed(1)))
    return network.to(device)


def select(logits, thresholds):
    label, uncertainty = selection.predict(logits)
    return label, selection.select(label, uncertainty, thresholds, 0.2)


def labelled(root, device, folder, words, count, check=lambda: None, change=lambda network: None, leave_out=None):
    """(what a round has found, its network, its samples)."""
    cfg = load_config(root / "c.yml", words)
    samples = segmentation.find_samples("cityscapes", cfg.target_data, "train")[:count]
    if leave_out is not None:
        samples = list(samples)
        samples[leave_out] = replace(samples[leave_out], image=root / "gone.png")
    network = network_of(cfg, device)
    change(network)
    return label_round(network, cfg, samples, tuple(map(str, range(19))), 0.2, select, folder, check), network, samples


def ended(work):
    """The error with which it ended."""
    try:
        work()
    except (TrainingError, Stopped) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(root, device, broken=""):
    torch.set_num_threads(1)
    rank, out = distributed.rank(), root / f"{device}{distributed.size() if distributed.launched() else 0}"
    if broken:
        labelled(root, device, out / "broken", (), 7, leave_out=1)
        return
    found = {}
    for name, (words, count) in SCENARIOS.items():
        result, network, samples = labelled(root, device, out / name, words, count)
        state = {key: value.cpu() for key, value in network.state_dict().items()}
        found[name] = {**vars(result), "remarks": network.remarks, "state": state}
    found["intact"] = intact(out / "running", samples, found["running"]["manifest"])
    distributed.wait()
    if distributed.is_main():  # the second image is of process 1, if there are several
        path = out / "running" / f"{samples[1].name}.png"
        path.write_bytes(path.read_bytes()[:-1])
    distributed.wait()
    found["damaged"] = intact(out / "running", samples, found["running"]["manifest"])

    def stop():
        if rank == distributed.size() - 1:
            raise Stopped("SIGTERM")
    found["stopped"] = ended(lambda: labelled(root, device, out / "stopped", (), 7, stop))
    found["without"] = (out / "stopped" / MANIFEST).exists()
    passes = []

    def spoil(network):  # the second image of the first process, the third of one that is alone
        plain = network.score_map

        def spoiled(x):
            passes.append(1)
            broken = rank == 0 and len(passes) == (2 if distributed.size() > 1 else 3)
            return plain(x) * (torch.nan if broken else 1)
        network.score_map = spoiled
    found["spoiled"] = ended(lambda: labelled(root, device, out / "spoiled", (), 7, change=spoil))
    torch.save(found, out / f"{rank}.pt")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(Path(sys.argv[1]), *sys.argv[2:]), several=True))
