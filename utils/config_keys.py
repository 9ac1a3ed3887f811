"""Every configuration key with its type, default, range and meaning, declared once."""
import dataclasses
import math
from dataclasses import dataclass
from typing import Mapping

from utils.config_values import Key, key

STREETS = ("gta5", "synthia", "cityscapes")
# Keys of the released configurations that have no effect on LDBE.
NO_EFFECT = ("num_center", "lamb", "src_count", "src_pix_prop", "src_pix_select", "pool_prop", "src_fix", "tgt_fix",
             "src_select", "tgt_select", "start", "neptune", "rec", "scale_min", "scale_max")
ROUNDS_ONLY = ("round", "epochs", "round_start", "round_lr_decay")  # without effect on stage 0


@dataclass(frozen=True)
class DataConfig:
    """One data-set section: a top-level key of the YAML file whose value is a mapping."""

    type: str = key(None, str, "which layout the files have", choices=(*STREETS, "folder"))
    data_dir: str = key(None, str, "folder of the data set", path=True)
    data_list: str | None = key(None, str, "text file naming the training images, one a line, each with or without its "
                                "label behind a tab or blank; None: all in the folder", optional=True, path=True)
    data_list_val: str | None = key(None, str, "the same for the validation images", optional=True, path=True)
    input_size: tuple = key(None, [int], "(width, height) at which whole images are labelled and evaluated, pixels",
                            low=8, high=16384, length=2)
    images: str | None = key(None, str, "folder only: where images are, below data_dir; may hold {split}, {name} and, "
                             "before that, * for any one folder", optional=True)
    labels: str | None = key(None, str, "folder only: where their labels are, with as many *; None: there are none",
                             optional=True)
    classes: tuple | None = key(None, [str], "folder only: names of the classes, in the order of the train ids",
                                optional=True)
    label_ids: Mapping | None = key(None, {int: int}, "folder only: id in the label file -> train id, all others are "
                                    "ignored; None: the id is the train id", optional=True)
    protocols: Mapping | None = key(None, {str: {str: [str]}}, "scores of the target: name -> {class: [the network's "
                                    "classes that count as it]}; needed where labels have other classes than the "
                                    "network", optional=True)
    network_classes: tuple | None = key(None, [str], "with protocols: names of the network's classes, in their order; "
                                        "None: the source's, the section's own if they are as many, or Cityscapes'",
                                        optional=True)
    palette: tuple | None = key(None, [[int]], "folder only: colour of each class, (red, green, blue) in 0..255",
                                optional=True, low=0, high=255)


SECTION_DEFAULTS = {
    "gta5": {"type": "gta5", "data_dir": "data/gta5", "input_size": (1280, 720)},
    "synthia": {"type": "synthia", "data_dir": "data/synthia", "input_size": (1280, 760)},
    "cityscapes": {"type": "cityscapes", "data_dir": "data/cityscapes", "input_size": (1024, 512)},
}


@dataclass(frozen=True)
class Config:
    """All keys; defaults are the released LDBE values where there are any."""

    note: str = key("train", str, "name of the run: a folder below snapshot, log, plabel and result", group="Run")
    method: str = key("ld", str, "stage: ld (label denoising) or be (boundary enhancement); run_so.py sets source_only",
                      choices=("source_only", "ld", "be"))
    model: str = key("deeplab", str, "network: DeepLabV2 on a ResNet", choices=("deeplab",))
    train: bool = key(True, bool, "False: only validate init_weight")
    device: str = key("auto", str, "auto (a GPU if there is one), cpu, cuda or cuda:N",
                      pattern=r"auto|cpu|cuda(:\d\d?)?")
    seed: int = key(1234, int, "seed of all that is drawn at random", low=0, high=2**31 - 1)
    fix_seed: bool = key(True, bool, "False: a fresh seed is drawn; the saved configuration names it")
    multigpu: bool = key(False, bool, "several GPUs; only False in this version")
    resume: bool = key(False, bool, "go on from the newest saved state of this note and stage, if there is one; the "
                       "same as --resume")
    overwrite: bool = key(False, bool, "start over although this note holds the states of an unfinished run of the "
                          "stage")
    round_start: int = key(0, int, "first round to run, from 0; portion and rate are that round's", low=0)

    num_classes: int = key(19, int, "C; street data sets: 19, 16 or 13", low=2, high=255, group="Network")
    layers: tuple = key((3, 4, 23, 3), [int], "bottlenecks in the four stages; 3, 4, 23, 3 is ResNet-101", low=1,
                        high=999, length=4)
    width: int = key(64, int, "channels of the stem; all others grow with it", low=1, high=1024)
    head_branches: int = key(4, int, "the first N of the head's four dilated convolutions are summed; 2 for files of "
                             "AdaptSegNet and BDL, which leave the others untrained", low=1, high=4)
    init_weight: str | None = key(None, str, "checkpoint to start from, or imagenet; None: random start. file.pth#NAME "
                                  "takes the network NAME of a file with several", optional=True, path=True)
    init_input: str = key("auto", str, "input that init_weight's network was trained with: bgr255 (0..255 minus the "
                          "mean: this field's, and this project's own), rgb01 (RGB / 255 with torchvision's mean and "
                          "std: CRST's), which is converted, or auto, which goes by the first layer's scale; "
                          "checkpoints of this program are known as what they are, whatever this says",
                          choices=("auto", "bgr255", "rgb01"))
    restore_from: str | None = key(None, str, "only None: use init_weight", optional=True, path=True)
    fixbn: bool = key(True, bool, "freeze weight and bias of every batch norm; its statistics move on")
    bn_stats: str = key("batch", str, "batch-norm statistics that label the target: the batch's (released code) or the "
                        "running ones; the teacher's too. Training uses the batch's, evaluation the running ones",
                        choices=("batch", "running"))

    amp: str = key("off", str, "precision of the network's convolutions: off (float32), bf16, or fp16 with a loss "
                   "scaler; thresholds, losses, optimiser and teacher stay float32",
                   choices=("off", "bf16", "fp16"), group="Speed")
    channels_last: bool = key(True, bool, "keep the channels of a pixel side by side in memory")
    compile: bool = key(False, bool, "fuse network blocks and losses with torch.compile; what it cannot compile runs "
                        "plain")
    checkpointing: bool = key(False, bool, "train in less than half the memory and a quarter slower: what is inside "
                              "each bottleneck is computed again in the backward pass")
    score_budget: int = key(32, int, "MiB of memory for a round's score maps; more of them go to a scratch file below "
                            "plabel", low=0)

    learning_rate: float = key(1e-4, float, "rate of the first round, before backbone_lr_mult and head_lr_mult",
                               low=0, above=True, group="Optimisation")
    num_steps: int = key(5000, int, "stage 0: steps; stages 1, 2: T of the poly schedule of each round, at which it "
                         "stops at the latest", low=1)
    epochs: int = key(1, int, "passes over the target images in a round", low=1)
    weight_decay: float = key(5e-4, float, "of SGD", low=0)
    momentum: float = key(0.9, float, "of SGD", low=0, high=1, below=True)
    power: float = key(0.9, float, "exponent of the poly schedule, lr (1 - t/T)^power", low=0)
    round: int = key(2, int, "R, rounds of pseudo-labelling and training", low=1)
    batch_size: int = key(3, int, "B, crops in a batch", low=1, high=4096)
    backbone_lr_mult: float = key(3.0, float, "factor on the rate of the backbone; 3: the released code lists most of "
                                  "its tensors three times", low=0)
    head_lr_mult: float = key(10.0, float, "factor on the rate of the head", low=0)
    round_lr_decay: float = key(math.sqrt(2), float, "the rate is divided by this after each round", low=0, above=True)

    cb_prop: float = key(0.1, float, "alpha of round 0: share of each class's pixels that is selected", low=0, high=1,
                         above=True, group="Method")
    portion_step: float = key(0.05, float, "added to alpha after each round", low=0, high=1)
    select_image: bool = key(True, bool, "select each image's own top alpha pixels too (released code; not in the "
                             "paper)")
    entropy_on: str = key("all", str, "pixels of the entropy loss: all (released code) or unselected (paper)",
                          choices=("all", "unselected"))
    entropy: str = key("released", str, "entropy loss: released (the released code takes the softmax twice: "
                       "logsumexp(p) - sum p^2) or shannon (paper: -sum p log p)", choices=("released", "shannon"))
    neg_rank_width: int = key(3, int, "w: rank of the complementary class is floor(C/2) + U{-w..w}, kept within 2..C",
                              low=0, high=255)
    ema_alpha: float = key(0.99, float, "a, largest share of the old teacher that an update keeps", low=0, high=1)
    conf_thresh: float = key(0.97, float, "confidence whose share of pixels weights an image in BE", low=0, high=1)
    plabel_accuracy: bool = key(True, bool, "report the pseudo labels' accuracy where the target's training split has "
                                "labels; training never sees them")

    source: str = key("gta5", str, "section of the source data set", group="Data")
    target: str = key("cityscapes", str, "section of the target data set")
    worker: int = key(4, int, "processes that read images, at most one per core; the result does not depend on it",
                      low=0)
    input_src: int = key(720, int, "shorter edge of a source image at scale 1, pixels", low=1, high=16384)
    input_tgt: int = key(720, int, "shorter edge of a target image at scale 1, pixels", low=1, high=16384)
    # At 8 pixels the score map has 2 x 2 positions; batch norm cannot normalise a single one.
    crop_src: int = key(600, int, "side of a source crop, pixels", low=8, high=16384)
    crop_tgt: int = key(600, int, "side of a target crop, pixels", low=8, high=16384)
    scales: tuple = key((0.5, 0.75, 1.0, 1.25, 1.5), [float], "random factors on the shorter edge", low=0, above=True)
    mirror: bool = key(True, bool, "flip half of the crops")
    on_bad_sample: str = key("error", str, "a training image or label that is missing, damaged or of another size: "
                             "error ends the run; skip reads every sample before training, and leaves out and logs the "
                             "broken ones. No validation sample is left out", choices=("error", "skip"))

    print_freq: int = key(100, int, "steps, or images of a pass over many, between lines with the pace (losses, rate, "
                          "time left) and between the log's training events", low=1, group="Logging")
    save_freq: int = key(500, int, "steps between saves of the run's whole state, from which resume goes on; it is "
                         "also saved around each round and when a signal stops the run", low=1)
    keep: int = key(2, int, "saved states that are kept", low=1)
    val: bool = key(True, bool, "validate, where the target's validation split has labels")
    val_freq: int = key(1000, int, "steps between validations; there is one after each round anyway", low=1)
    tensorboard: bool = key(True, bool, "write TensorBoard scalars")
    screen: bool = key(True, bool, "progress bars in place of print_freq's lines, on a terminal; elsewhere there "
                       "are none")
    snapshot: str = key("./snapshot", str, "folder of the checkpoints", path=True)
    result: str = key("./miou_result", str, "folder of the last validation's figures", path=True)
    log: str = key("./log", str, "folder of the JSON lines and TensorBoard scalars", path=True)
    plabel: str = key("./plabel", str, "folder of the pseudo labels", path=True)

    sections: Mapping[str, DataConfig] = dataclasses.field(default_factory=dict)
    ignored_keys: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    given_keys: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)  # set by file, word or script

    def section(self, name: str) -> DataConfig:
        """The data-set section of that name."""
        return self.sections[name]

    @property
    def source_data(self) -> DataConfig:
        return self.sections[self.source]

    @property
    def target_data(self) -> DataConfig:
        return self.sections[self.target]


def _keys(cls) -> dict[str, Key]:
    return {f.name: f.metadata["key"] for f in dataclasses.fields(cls) if "key" in f.metadata}


KEYS, SECTION_KEYS = _keys(Config), _keys(DataConfig)
