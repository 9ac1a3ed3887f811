"""A model of a round's time against processes and images, with constants that are measured here.

    python -m bench.multi_gpu [--images N ...] [--processes P ...] [--cores N] [--label S] [--step S] [--bandwidth B]

A round labels N images and trains on them for `epochs`, on P processes with a device each (docs/multi_gpu.md has the
formulas). Decoding, cutting crops, writing labels and summing gradients are timed on this machine, on files of
Cityscapes' size; the network's own times are this machine's CPU's, or those that are given.
"""
import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from bench.processes import markdown
from utils.cli import OneLineParser, guarded, tolerant_output

WRITERS = 2  # threads that write labels in a process (trainer/rounds.py)
BACKWARD = 2 / 3  # share of a step behind which gradients are summed
SMALL = 5  # small collectives of a step: stop, counts, names, losses, running statistics


@dataclass(frozen=True)
class Constants:
    """Seconds of one unit of work. read, crop: of an image or crop, on one core. label: the network and the selection,
    of an image on one device. write: of one label file, on one core. step: of a batch on one device. bandwidth: bytes a
    second that a process sends while gradients are summed; latency: of a small collective. merge: of a line of the
    manifest, which process 0 writes alone. parameters: of the network."""

    read: float
    crop: float
    label: float
    write: float
    step: float
    bandwidth: float
    latency: float
    merge: float = 5.7e-6
    parameters: int = 43_901_000


@dataclass(frozen=True)
class Plan:
    """What runs. cores: that read, of each process. batch: crops in a batch; accumulate, epochs: the keys."""

    images: int
    processes: int = 1
    cores: int = 4
    batch: int = 3
    epochs: int = 1
    accumulate: int = 1


@dataclass(frozen=True)
class Times:
    """Seconds of a round: labelling, steps without the summing of gradients, and what of that summing the backward pass
    does not hide. limit: what the slowest part waits for."""

    labelling: float
    training: float
    summing: float
    limit: str

    @property
    def round(self) -> float:
        return self.labelling + self.training + self.summing


def summed_bytes(plan: Plan, constants: Constants) -> float:
    """Bytes that each process sends in a step: a ring sends 2 (P - 1) / P times the gradients (float32)."""
    return 8 * constants.parameters * (plan.processes - 1) / plan.processes


def times(plan: Plan, c: Constants) -> Times:
    """The model. Reading and writing are hidden behind the network while there are cores enough; gradients are summed
    while the backward pass goes on."""
    share = plan.images / plan.processes
    label = {"network": c.label, "decoding": c.read / plan.cores, "writing": c.write / min(WRITERS, plan.cores)}
    steps = max(1, plan.epochs * plan.images // (plan.processes * plan.accumulate * plan.batch))
    step = {"network": c.step, "decoding": plan.batch * c.crop / plan.cores}
    labelling = share * max(label.values()) + plan.images * c.merge
    training = steps * plan.accumulate * max(step.values())
    late = max(0.0, summed_bytes(plan, c) / c.bandwidth - BACKWARD * c.step) + SMALL * c.latency
    summing = steps * late if plan.processes > 1 else 0.0
    parts = {max(label, key=label.get): labelling, max(step, key=step.get): training, "summing gradients": summing}
    return Times(labelling, training, summing, max(parts, key=parts.get))


def scaling(plan: Plan, c: Constants, processes: list[int]) -> str:
    """Markdown: a row for each number of processes."""
    alone = times(replace(plan, processes=1), c).round
    rows = [["processes", "labelling", "training", "summing gradients", "round", "faster", "steps", "slowest"]]
    for count in processes:
        at = replace(plan, processes=count)
        found = times(at, c)
        rows.append([str(count), *(_span(v) for v in (found.labelling, found.training, found.summing, found.round)),
                     f"{alone / found.round:.1f}x", f"{max(1, at.epochs * at.images // (count * at.batch)):,}",
                     found.limit])
    return markdown(rows)


def _span(seconds):
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else (
        f"{seconds:.1f} s")


# ---- measuring -------------------------------------------------------------------------------------------------------


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """The median of `repeats` calls, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def of_files(inputs) -> dict[str, float]:
    """`read`, `crop` and `write` of `Constants`, on files of Cityscapes' size."""
    import numpy as np
    from PIL import Image

    from bench.inputs import NUM_CLASSES
    from dataset import segmentation, views
    from dataset.outputs import write_png
    cfg, samples = inputs.config(init_weight="None"), inputs.samples("train")
    table = segmentation.label_table(cfg.target_data, NUM_CLASSES)
    whole = views.WholeImages(samples, cfg.target_data.input_size)
    crops = views.TrainingCrops(samples, table, cfg.input_tgt, cfg.crop_tgt, cfg.scales, cfg.mirror, cfg.seed)
    keys = [(0, epoch, index) for epoch in range(3) for index in range(len(samples))]
    label = Image.fromarray(np.array(Image.open(samples[0].label)))
    return {"read": median_seconds(lambda: [whole[i] for i in range(len(samples))]) / len(samples),
            "crop": median_seconds(lambda: [crops[key] for key in keys], 5) / len(keys),
            "write": median_seconds(lambda: write_png(inputs.root / "label.png", label))}


def of_network(inputs) -> dict[str, float]:
    """`label` and `step` of `Constants`, on this machine's device: a forward pass of a whole image, an LD step."""
    import torch

    from dataset import views
    trainer = inputs.trainer(method="ld")
    network, cfg = trainer.network, trainer.cfg
    image = network.prepare(views.WholeImages(inputs.samples("train"), cfg.target_data.input_size)[0]["image"])
    trainer.begin_optimisation()
    trainer.optimisation.schedule(1e-9, 0)

    def label():
        network.use_statistics("batch")
        with torch.no_grad():
            network(image)
    return {"label": median_seconds(label, 3),
            "step": median_seconds(lambda: trainer.step(inputs.batch(cfg.batch_size)), 3)}


def of_gloo(parameters: int) -> dict[str, float]:
    """`bandwidth` and `latency` of `Constants`, between two processes of this machine (gloo, over its own network)."""
    import torch.multiprocessing as processes
    with tempfile.TemporaryDirectory() as folder:
        context = processes.get_context("spawn")
        results = context.SimpleQueue()
        processes.spawn(_summing, (folder, parameters, results), nprocs=2)
        whole, small = results.get()
    return {"bandwidth": 4 * parameters / whole, "latency": small}  # of two processes, each sends the gradients once


def _summing(rank, folder, parameters, results):
    """One of the two processes: (seconds of a sum of all gradients, of one number)."""
    import torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                            timeout=timedelta(minutes=2))
    found = [median_seconds(lambda: dist.all_reduce(tensor), repeats)
             for tensor, repeats in ((torch.zeros(parameters), 5), (torch.zeros(1), 100))]
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = OneLineParser(prog="python -m bench.multi_gpu", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2975, 100_000], metavar="N", help="(default: "
                        "%(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64], metavar="P",
                        help="(default: %(default)s)")
    parser.add_argument("--cores", type=int, default=4, metavar="N", help="that read, of each process (default: "
                        "%(default)s)")
    parser.add_argument("--label", type=float, metavar="S", help="seconds of a device for an image that is labelled "
                        "(default: measured on this machine's)")
    parser.add_argument("--step", type=float, metavar="S", help="seconds of a device for an LD step (default: "
                        "measured)")
    parser.add_argument("--bandwidth", type=float, metavar="B", help="bytes a second between processes (default: gloo "
                        "within this machine, measured)")
    parser.add_argument("--quick", action="store_true", help="a tiny network and small images: shows that it works")
    given = parser.parse_args(arguments)
    tolerant_output()
    from bench.harness import machine
    from bench.inputs import FULL, QUICK, Inputs
    size = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as root:
        inputs = Inputs(Path(root), size)
        known = {"label": given.label, "step": given.step}
        network = known if None not in known.values() else {
            **of_network(inputs), **{name: value for name, value in known.items() if value is not None}}
        constants = Constants(**of_files(inputs), **network, **of_gloo(Constants.parameters))
    if given.bandwidth:
        constants = replace(constants, bandwidth=given.bandwidth)
    print(f"Machine: {machine()}.\n")
    print(markdown([["constant", "value"], *([name, number(name, value)] for name, value in vars(constants).items())]))
    for images in given.images:
        print(f"\n{images:,} images, {given.cores} reading cores a process:\n")
        print(scaling(Plan(images, cores=given.cores), constants, given.processes))


def number(name: str, value: float) -> str:
    """A constant with its unit."""
    if name == "bandwidth":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value:,}" if name == "parameters" else f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


if __name__ == "__main__":
    sys.exit(guarded(main))
