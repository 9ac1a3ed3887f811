"""Declarations of the general configuration keys: type, default, range and meaning. Methods and networks declare their
own (`config_values.Declares`)."""
import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.config_values import Declares, declared, key

STREETS = ("gta5", "synthia", "cityscapes")
# Keys of the released configurations that have no effect on LDBE.
NO_EFFECT = ("num_center", "lamb", "src_count", "src_pix_prop", "src_pix_select", "pool_prop", "src_fix", "tgt_fix",
             "src_select", "tgt_select", "start", "neptune", "rec", "scale_min", "scale_max")
# Keys whose value names a class that declares keys of its own -> the module that finds the class. These modules import
# this one, so they are imported by name, and only when a configuration is read.
_FINDERS = {"method": "trainer.methods", "model": "model.networks"}


def known_classes(choosing: str) -> dict[str, type[Declares]]:
    """Name -> class of all methods or networks of this project. choosing: "method" or "model"."""
    return importlib.import_module(_FINDERS[choosing]).known()


def find_class(choosing: str, name: str) -> type[Declares]:
    """The class that a value of the key `choosing` ("method" or "model") names, a user's own too. Raises ConfigError if
    there is none."""
    return importlib.import_module(_FINDERS[choosing]).find(name)


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint tells about a configuration: values of general keys and of the network's own, values of keys of
    the target's section, and remarks. weight: the network's memory for each pixel in training, beside that of
    DeepLabV2 on a ResNet-101; None if not known."""

    keys: Mapping[str, Any]
    section: Mapping[str, Any]
    remarks: tuple[str, ...]
    weight: float | None = None


def recognise(checkpoint: str, model: str | None = None) -> Recognised:
    """What a checkpoint, a file or a folder, tells about a configuration. model: a value of that key that is known, for
    a folder that cannot name its own. Raises CheckpointError if it cannot be read."""
    return importlib.import_module(_FINDERS["model"]).recognise(checkpoint, model)


@dataclass(frozen=True)
class DataConfig:
    """A data-set section: the keys that describe one data set."""

    type: str = key(None, "which layout the files have", choices=(*STREETS, "folder"))
    data_dir: str = key(None, "folder of the data set", path=True, may_change=True)
    data_list: str | None = key(None, "text file naming the training images, one a line, each with or without its "
                                "label behind a tab or blank; None: all in the folder", path=True, may_change=True)
    data_list_val: str | None = key(None, "the same for the validation images", path=True, may_change=True)
    input_size: tuple[int, int] = key(None, "(width, height) at which whole images are labelled and evaluated, "
                                      "pixels", low=8, high=16384, length=2)
    images: str | None = key(None, "folder only: where images are, below data_dir; may hold {split}, {name} and, "
                             "before that, * for any one folder", may_change=True)
    labels: str | None = key(None, "folder only: where their labels are, with as many *; None: there are none",
                             may_change=True)
    classes: tuple[str, ...] | None = key(None, "folder only: names of the classes, in the order of the train ids")
    label_ids: Mapping[int, int] | None = key(None, "folder only: id in the label file -> train id, or 255 for an id "
                                              "that is ignored; so are all others, with a warning; None: the id is the "
                                              "train id")
    protocols: Mapping[str, Mapping[str, tuple[str, ...]]] | None = key(None, "scores of the target: name -> "
                                                                        "{class: [the network's classes that count "
                                                                        "as it]}; needed where labels have other "
                                                                        "classes than the network")
    network_classes: tuple[str, ...] | None = key(None, "with protocols: names of the network's classes, in their "
                                                  "order; None: the source's, the section's own if they are as "
                                                  "many, or Cityscapes'")
    palette: tuple[tuple[int, ...], ...] | None = key(None, "folder only: colour of each class, (red, green, blue) "
                                                      "in 0..255", low=0, high=255, may_change=True)
    bands: int = key(3, "folder only: how many channels an image has, and the network gets: 1 grey, 3 RGB, others "
                     "are read from TIFF or PNG files of as many", low=1, high=16)
    value_range: tuple[float, ...] | None = key(None, "folder only: low, high: the values that become 0 and 255 "
                                                "where files hold more than 8 bits, or low, high of each band one "
                                                "after the other; values beyond are clipped, those between rounded "
                                                "to one of 256 levels; 8-bit files are read as they are; None: "
                                                "8-bit files only", low=-1e38, high=1e38)


SECTION_DEFAULTS = {
    "gta5": {"type": "gta5", "data_dir": "data/gta5", "input_size": (1280, 720)},
    "synthia": {"type": "synthia", "data_dir": "data/synthia", "input_size": (1280, 760)},
    "cityscapes": {"type": "cityscapes", "data_dir": "data/cityscapes", "input_size": (1024, 512)},
}


@dataclass(frozen=True)
class Config:
    """A whole configuration: the general keys, the data-set sections, and the keys of the chosen method and network.

    Defaults are those of the released LDBE code where it has the key.
    """

    note: str = key("train", "name of the run: a folder below snapshot, log, plabel and result", group="Run")
    method: str = key("ld", "what trains: a name of trainer/methods, or your own as my_file.py:MyMethod; run_so.py "
                      "sets source_only", path=True)
    model: str = key("deeplab", "network: deeplab (DeepLabV2 on a ResNet), torchvision/NAME, smp/ARCH:ENCODER, "
                     "hf/FOLDER, or a function that returns yours, my_file.py:function or package.module:function",
                     path=True)
    train: bool = key(True, "False: only validate init_weight", may_change=True)
    device: str = key("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d\d?)?",
                      may_change=True)
    seed: int = key(1234, "seed of all that is drawn at random", low=0, high=2**31 - 1)
    fix_seed: bool = key(True, "False: a fresh seed is drawn; the saved configuration names it", may_change=True)
    multigpu: bool = key(False, "True: refuse to run unless torchrun has started several processes (docs/multi_gpu.md)",
                         may_change=True)
    resume: bool = key(False, "go on from the newest saved state of this note and method, if there is one; the same "
                       "as --resume", may_change=True)
    overwrite: bool = key(False, "start over although this note holds saved states of an unfinished run of the same "
                          "method", may_change=True)

    num_classes: int = key(19, "C; street data sets: 19, 16 or 13", low=2, high=255, group="Network")
    init_weight: str | None = key(None, "checkpoint to start from, a file or a model folder, or imagenet; None: random "
                                  "start. file.pth#NAME takes the network NAME of a file with several", path=True,
                                  may_change=True)
    restore_from: str | None = key(None, "only None: use init_weight", path=True, may_change=True)
    fixbn: bool = key(True, "freeze weight and bias of every batch norm; its running statistics are still updated")
    bn_stats: str = key("batch", "batch-norm statistics of the network that labels the target, and of the teacher: "
                        "those of the batch (released code) or the running ones. Training uses the batch's, "
                        "evaluation the running ones",
                        choices=("batch", "running"))
    bn_source: float = key(0.0, "share of the statistics of init_weight in those by which batch norms normalise the "
                           "target in training, and in the running ones (alpha-BN); 0: none, as published. Use it with "
                           "bn_stats=running", low=0, high=1)

    amp: str = key("auto", "precision of the network's convolutions: off (float32; on a GPU TF32), bf16, fp16 (with a "
                   "loss scaler), or auto: bf16 where the device has units for it, else off. Thresholds, losses, "
                   "optimiser and teacher stay float32", choices=("auto", "off", "bf16", "fp16"), group="Speed")
    channels_last: bool = key(True, "keep the channels of a pixel side by side in memory")
    compile: bool = key(False, "fuse network blocks and losses with torch.compile, where it can")
    deterministic: bool = key(False, "on a GPU compute the same bits each time, with kernels that are slower "
                              "(docs/guarantees.md); the CPU does so anyway")
    sync_bn: bool = key(False, "batch norms normalise training batches by the statistics of all processes' batches "
                        "together (CUDA only)")
    checkpointing: bool = key(False, "train in less memory: what is inside each block of the network is computed again "
                              "in the backward pass; with deeplab less than half the memory, a quarter slower",
                              may_change=True)
    score_budget: int = key(32, "MiB of memory for a round's score maps; beyond that they are kept in a scratch file "
                            "below plabel", low=0, may_change=True)

    learning_rate: float = key(1e-4, "rate of the first round, before backbone_lr_mult and head_lr_mult", low=0,
                               above=True, group="Optimisation")
    num_steps: int = key(5000, "T of the poly schedule: the steps of source_only; other methods use it for each "
                         "round, which has at most as many steps", low=1)
    weight_decay: float = key(5e-4, "of SGD", low=0)
    momentum: float = key(0.9, "of SGD", low=0, high=1, below=True)
    power: float = key(0.9, "exponent of the poly schedule, lr (1 - t/T)^power", low=0)
    batch_size: int = key(3, "B, crops in a batch of each process", low=1, high=4096)
    accumulate: int = key(1, "batches whose gradients are added up for a step of a process: with N, one process takes "
                          "the steps that N take without", low=1, high=4096)
    backbone_lr_mult: float = key(3.0, "factor on the rate of the backbone; 3: the released code lists most of its "
                                  "tensors three times", low=0)
    head_lr_mult: float = key(10.0, "factor on the rate of the head", low=0)

    source: str = key("gta5", "section of the source data set", group="Data")
    target: str = key("cityscapes", "section of the target data set")
    worker: int = key(4, "processes that read images, at most one per core; the result does not depend on it", low=0,
                      may_change=True)
    input_src: int = key(720, "shorter edge of a source image at scale 1, pixels", low=1, high=16384)
    input_tgt: int = key(720, "shorter edge of a target image at scale 1, pixels", low=1, high=16384)
    # At 8 pixels the score map has 2 x 2 positions; batch norm cannot normalise a single one.
    crop_src: int = key(600, "side of a source crop, pixels", low=8, high=16384)
    crop_tgt: int = key(600, "side of a target crop, pixels", low=8, high=16384)
    scales: tuple[float, ...] = key((0.5, 0.75, 1.0, 1.25, 1.5), "random factors on the shorter edge", low=0,
                                    above=True)
    mirror: bool = key(True, "flip half of the crops")
    on_bad_sample: str = key("error", "a training image or label that is missing, damaged or of another size: error "
                             "ends the run; skip reads every sample before training, and leaves out and logs the "
                             "broken ones. No validation sample is left out", choices=("error", "skip"),
                             may_change=True)

    score_images: int = key(64, "target images, drawn once, on which candidates are scored without labels; 0: no "
                            "candidates, no verdict", low=0, group="Choice")
    candidate_freq: int | None = key(None, "steps between candidates in a round; None: a quarter of the round", low=1)
    select_by: str = key("trust", "what chooses the candidate that is handed back: a label-free score, last (the last "
                         "state), or miou (of the validation split, which takes labels)",
                         choices=("trust", "agreement", "consistency", "entropy", "information", "density", "nuclear",
                                  "last", "miou"))
    stop_when: str = key("never", "end training early: never, or when the network has collapsed (docs/label_free.md)",
                         choices=("never", "collapse"))
    keep_candidates: bool = key(False, "keep the weights and predictions of all candidates, after the run too")

    plabel_accuracy: bool = key(True, "report the pseudo labels' accuracy where the target's training split has "
                                "labels; training never sees them", group="Logging", may_change=True)
    print_freq: int = key(100, "steps, or images of a pass over many, between lines with the pace (losses, rate, "
                          "time left) and between the log's training events", low=1, may_change=True)
    save_freq: int = key(500, "steps between saves of the run's whole state, from which resume goes on; it is also "
                         "saved around each round and when a signal stops the run", low=1, may_change=True)
    keep: int = key(2, "saved states that are kept", low=1, may_change=True)
    val: bool = key(True, "validate, where the target's validation split has labels", may_change=True)
    val_freq: int = key(1000, "steps between validations; there is one after each round anyway", low=1, may_change=True)
    tensorboard: bool = key(True, "write scalars and pictures for TensorBoard", may_change=True)
    pictures: int = key(4, "target images, spread over the split, that TensorBoard (each round) and the report show "
                        "with predictions and pseudo labels; 0: none", low=0, high=64, may_change=True)
    screen: bool = key(True, "progress bars in place of print_freq's lines, where the output is a terminal",
                       may_change=True)
    model_folder: bool = key(True, "leave each network as a folder for other programs, too, beside its .pth file, as "
                             "large as this one (docs/checkpoints.md)", may_change=True)
    snapshot: str = key("./snapshot", "folder of the checkpoints", path=True, may_change=True)
    result: str = key("./miou_result", "folder of the last validation's figures", path=True, may_change=True)
    log: str = key("./log", "folder of the JSON lines and of what TensorBoard reads", path=True, may_change=True)
    plabel: str = key("./plabel", "folder of the pseudo labels", path=True, may_change=True)
    plabel_shard: int = key(0, "images whose pseudo labels share a tar file, where millions of files are too many; 0: "
                            "a PNG file for each image. Several processes label whole tar files each", low=0,
                            may_change=True)

    sections: Mapping[str, DataConfig] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the method's and network's own keys
    ignored_keys: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    other_keys: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)  # given key -> its owners
    given_keys: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)  # set by file, word or script

    def section(self, name: str) -> DataConfig:
        """The data-set section of that name."""
        return self.sections[name]

    def value(self, name: str) -> Any:
        """The value of a general key, or of one that the method or the network declares."""
        return getattr(self, name) if name in KEYS else self.options[name]

    @property
    def stage(self) -> str:
        """The name of the run's files: the method's name, or, of a user's own, the name of its class."""
        return self.method.rpartition(":")[2]

    @property
    def method_class(self) -> Any:
        """The class of the method (`trainer.methods.base.Method`)."""
        return find_class("method", self.method)

    @property
    def network_class(self) -> Any:
        """The class of the network's family (`model.networks.Network`)."""
        return find_class("model", self.model)

    @property
    def source_data(self) -> DataConfig:
        """The section of the source."""
        return self.sections[self.source]

    @property
    def target_data(self) -> DataConfig:
        """The section of the target."""
        return self.sections[self.target]


KEYS, SECTION_KEYS = declared(Config), declared(DataConfig)
