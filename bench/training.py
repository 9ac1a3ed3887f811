"""Work of training: losses, head, samples, whole steps, the start of a run. A function that begins with `inputs,
variant` is a `bench.harness.Row.prepare`."""
import atexit
import os
import socket
import subprocess
import sys

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import baseline
from bench.harness import added_peak
from bench.inputs import NUM_CLASSES, Inputs
from bench.labelling import pinned
from dataset import files, loaders, segmentation, views
from dataset.labels import CITYSCAPES_IDS
from model.deeplabv2 import Head
from model.recompute import copied_buffers
from trainer import fused_losses
from utils import distributed
from utils.allocator import keep_freed_memory

RATE = 1e-6    # learning rate of steps that are timed
EPOCHS = 4     # crops of each image in one call of the sample row
READERS = 16   # processes that read, at most one a core
READ = 50      # batches read in one call, for each image
MATRIX = {"cuda": 8192, "cpu": 2048}  # side of the matrices whose product gives a device's rate
FIRST_STEP = """import os, run; from trainer.loop import Trainer; from utils.cli import run_stage
Trainer.step = lambda *_: os._exit(0)
run_stage('', 'config/ldbe_config.yml', run.run); raise SystemExit('no step was reached')"""
IMPORTS = "import torch, torchvision; from model.deeplabv2 import DeepLabV2; DeepLabV2({}, {}, {})"


def ld_losses(inputs: Inputs, variant: str):
    """The three LD terms of given logits and their gradient, batch 3. Baseline: as the paper writes them. Floor: one
    log-softmax with its gradient."""
    logits, label = loss_input(3, NUM_CLASSES, inputs.size.crop)
    if variant != "baseline":
        keep_freed_memory()  # as a run on the CPU does
    if variant == "floor":
        upstream = torch.randn(logits.shape)
        return lambda: logits.detach().requires_grad_().log_softmax(1).backward(upstream), 1
    function = {"baseline": baseline.ld_losses, "product": fused_losses.ld_losses}[variant]
    return lambda: with_gradient(function, logits, label), 1


def loss_growth(inputs: Inputs, variant: str, axis: str):
    """The same terms of one crop, at the size `variant` of an axis (`Size.grown`)."""
    _, classes, side, units = inputs.size.grown(axis, int(variant))
    keep_freed_memory()
    logits, label = loss_input(1, classes, side)
    return lambda: with_gradient(fused_losses.ld_losses, logits, label), units


def loss_input(batch: int, classes: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits float [batch, classes, side, side] and labels, a third of the pixels labelled."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, side, side, generator=generator)
    label = torch.randint(0, 3 * classes, (batch, side, side), generator=generator)
    return logits, label.masked_fill(label >= classes, baseline.IGNORE)


def with_gradient(function, logits, label, rank: int | None = None, **options):
    """(named losses, gradient of their sum)"""
    z = logits.detach().requires_grad_()
    terms = function(z, label, rank or logits.shape[1] // 2, **options)
    sum(terms.values()).backward()
    return terms, z.grad


def network_head(inputs: Inputs, variant: str):
    """The network's head on the features of one crop, forward and backward."""
    channels, side = inputs.size.width * 32, -(-inputs.size.crop // 8)
    x = torch.randn(1, channels, side, side)
    if variant == "baseline":
        head = baseline.PlainHead(channels, NUM_CLASSES)
    else:
        keep_freed_memory()
        head, x = (part.to(memory_format=torch.channels_last) for part in (Head(channels, NUM_CLASSES), x))
    return lambda: head_with_gradients(head, x), 1


def head_with_gradients(head, x):
    """(scores, gradients of x and of the parameters)"""
    scores = head(x.requires_grad_())
    return scores, torch.autograd.grad(scores.square().mean(), [x, *head.parameters()])


def training_sample(inputs: Inputs, variant: str, dataset: str):
    """Random crops, read on one thread, as in a process that reads for a training. The product's are 8-bit: the whole
    batch becomes floating-point at once, on the device. Floor: decoding image and label."""
    torch.set_num_threads(1)
    cfg, samples = inputs.config(), inputs.samples("train", dataset)
    keys = [(0, epoch, index) for epoch in range(EPOCHS) for index in range(len(samples))]
    sizes = cfg.input_tgt, cfg.crop_tgt, cfg.scales
    table = segmentation.label_table(cfg.section(dataset), NUM_CLASSES)

    def plain(key):
        rng, sample = np.random.default_rng([cfg.seed, *key]), samples[key[2]]
        return baseline.training_sample(sample.image, sample.label, CITYSCAPES_IDS, rng, *sizes)

    def decoded(key):
        return files.read_image(samples[key[2]].image), files.read_label_ids(samples[key[2]].label)
    crop = {"baseline": plain, "floor": decoded,
            "product": views.TrainingCrops(samples, table, *sizes, cfg.mirror, cfg.seed).__getitem__}[variant]
    return lambda: [crop(key) for key in keys], len(keys)


def train_step(inputs: Inputs, variant: str, method: str, count: int, steps: int = 1, memory: bool = False,
               model: str = "", **keys):
    """A step of a method on one fixed batch of `count` crops, optimiser and teacher included; `steps` in one call.

    Variants: `baseline` (float32), `TF32` (the same with TF32 convolutions), `product` (with `keys`), `defaults`
    (without), `checkpointing`, `auto` (with amp=auto), `floor` (forward and backward of the network alone), `matrices`
    (bf16 products of large matrices with as many floating-point operations as the baseline's step). model: another
    network. memory: MiB that building everything and two steps, the second with momentum, add at their peak. Pages of
    libraries that are first touched there count as well: about 150 MiB, the same in all variants.
    """
    torch.backends.cudnn.allow_tf32 = variant != "baseline"
    inputs = inputs.light(model) if model else inputs
    batch = pinned(inputs.batch(count))

    def build():
        if variant in ("baseline", "TF32", "matrices"):
            return plain_step(inputs, method, batch)
        changed = {"product": keys, "checkpointing": {"checkpointing": True},
                   "auto": {"amp": "auto"}}.get(variant, {})
        return ProductStep(inputs, method, batch, **changed)
    if memory:
        return lambda: added_peak(lambda: build()(2)), 1
    step = build()
    if variant == "matrices":
        return matrix_products(step)
    if variant == "floor":
        network, x = step.network.train(), step.network.prepare(batch["image"].to(inputs.device))
        upstream = torch.randn_like(network(x))
        return lambda: network(x).backward(upstream), 1
    return lambda: step(steps), steps


def plain_step(inputs: Inputs, method: str, batch: dict, rate: float = RATE) -> baseline.Step:
    """The baseline's training steps on one fixed batch."""
    images = torch.stack([baseline.network_input(image) for image in batch["image"]]).to(inputs.device)
    cfg = inputs.config(method=method, batch_size=len(images))
    return baseline.Step(inputs.plain_network(), images, batch["label"].to(inputs.device), method, cfg, rate)


class ProductStep:
    """The project's training steps on one fixed batch, through the loop that trains."""

    def __init__(self, inputs: Inputs, method: str, batch: dict, rate: float = RATE, **keys):
        self.batch, self.rate = batch, rate
        self.trainer = inputs.trainer(method=method, batch_size=len(batch["label"]), **keys)
        self.network = self.trainer.network
        if keys.get("compile"):  # a round labels before it trains, and what it compiles then must not be in the way
            width, height = inputs.size.input_size
            with copied_buffers(self.network), torch.no_grad():
                self.network.use_statistics("batch")
                self.network(self.network.prepare(torch.zeros(1, height, width, 3, device=inputs.device)))

    def __call__(self, steps: int = 1) -> None:
        self.trainer.position.step = 0  # the same random numbers every time
        self.trainer.run_steps([self.batch] * steps, self.rate)


def matrix_products(step: baseline.Step):
    """(bf16 products of large matrices, how many times the work of `step` they are)"""
    with FlopCounterMode(display=False) as counter:
        step()
    device = step.label.device
    side = MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: [a @ b for _ in range(10)], 10 * 2 * side**3 / counter.get_total_flops()


def reading(inputs: Inputs, variant: str, method: str, count: int, **keys):
    """Batches of `count` random crops, read in processes as for a training; a unit is a batch. Floor: the step that
    takes one; a run reads the next ones beside it."""
    if variant == "floor":
        return train_step(inputs, "product", method, count, 5, **keys)
    cfg = inputs.config(method="entmin", batch_size=count, worker=READERS)
    loader = loaders.target_loader(cfg, inputs.samples("train"), READ * count, 0, 0, torch.cuda.is_available())
    return lambda: sum(1 for _ in loader) and None, len(loader)


def under_torchrun(inputs: Inputs, variant: str, prepare, **settings):
    """`prepare` of a product; variant `torchrun`: in a group of one process, as under torchrun."""
    if variant == "torchrun":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="localhost",
                          MASTER_PORT=str(port))
        distributed.join()
        atexit.register(distributed.leave)
    return prepare(inputs, "product", **settings)


def start_of_a_run(inputs: Inputs, variant: str):
    """run.py in a fresh process until its first step begins, pseudo labels of three small images before it included.
    Floor: imports and building the network."""
    small, size = inputs.resized("start", cityscapes=(128, 64), gta5=(64, 64), input_size=(128, 64)), inputs.size
    arguments = [FIRST_STEP, "--config", str(small.yaml(note="start", worker=2, overwrite=True))]
    if variant == "floor":
        arguments = [IMPORTS.format(NUM_CLASSES, size.layers, size.width)]
    command = [sys.executable, "-c", *arguments]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), 1
