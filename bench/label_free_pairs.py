"""What bench.label_free runs: pairs of a source network and a target, and the settings that each is adapted with."""
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageFilter

from bench.methods import SOURCE_ONLY, Run, Runs
from bench.processes import write_json
from dataset.toy import write_toy_world
from dataset.toy.camera import render
from dataset.toy.files import save_label, world_files
from trainer.methods import find
from utils.config import load_config
from utils.config_keys import KEYS
from utils.errors import ConfigError
from utils.processes import map_in_order

SPLITS = ("train", "val")
NETWORKS = {"good": 2000, "weak": 800, "raw": 60}  # of the toy world: steps that the source-only network has trained
# Target of each network on each toy seed. game: the source's own look, where adaptation has nothing to gain.
TOY_PAIRS = (
    {"good": "camera", "weak": "game", "raw": "fog"}, {"good": "dusk", "weak": "camera", "raw": "noise"},
    {"good": "game", "weak": "fog", "raw": "camera"}, {"good": "fog", "weak": "dusk", "raw": "camera"},
    {"good": "noise", "weak": "camera", "raw": "game"})

# (method, factor on the configuration's rate, other words); of three kinds: usual, ten times the rate, ruinous.
USUAL = (("ld", 1, ""), ("entmin", 1, ""), ("mean_teacher", 3, ""), ("pseudo", 1, ""), ("bn_adapt", 1, ""),
         ("cbst", 1, ""), ("infomax", 1, ""), ("be", 1, ""), ("maxsquare", 1, ""), ("crst_mrkld", 1, ""),
         ("pseudo_select", 1, ""))
HIGH = (("ld", 10, ""), ("entmin", 10, ""), ("pseudo", 10, ""), ("be", 10, ""), ("maxsquare", 10, ""),
        ("mean_teacher", 10, ""), ("cbst", 10, ""), ("infomax", 10, ""), ("pseudo_select", 10, ""))
RUINOUS = (("ld", 30, ""), ("pseudo", 1, "bn_stats=running"), ("infomax", 30, ""), ("ld", 10, "entropy=shannon"),
           ("crst_mrkld", 30, ""), ("be", 30, ""), ("ld", 1, "bn_stats=running"), ("maxsquare", 30, ""),
           ("ld", 1, "entropy=shannon"), ("mean_teacher", 30, ""), ("entmin", 30, ""))
OWN_CONFIG = Path("config/own_config.yml")
PAIRS_OWN = ("note", "method", "model", "num_classes", "init_weight", "source", "target", "input_tgt", "crop_tgt")
RUNS_OF_A_PAIR, RUNS = 2, 120  # of a toy pair; of the whole plan
SHORT = ("epochs=2", "num_steps=150", "score_images=32", "candidate_freq=75")  # of a toy run: a minute of a core


@dataclass(frozen=True)
class Pair:
    """A source network and a target. group: pairs of one group share target frames. words: for each run of the pair.
    rate: the configuration's learning rate. source: the toy run that trains the network, with the target's name."""

    name: str
    group: str
    config: Path
    rate: float
    words: tuple[str, ...] = ()
    source: tuple[Run, str] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Adaptation:
    """A run: a method with a factor on the pair's rate and other words. name: in place of these where they are many."""

    pair: Pair
    method: str
    factor: int
    words: str
    name: str = ""

    @property
    def note(self) -> str:
        factor = [f"x{self.factor}"] if self.factor != 1 else []
        return self.name or " ".join([self.method, *factor, *self.words.split()])


def toy_pairs(sources: Runs) -> list[Pair]:
    """sources: where worlds and source-only networks are, or are to be."""
    config, pairs = sources.configs / "ld_config.yml", []
    rate = load_config(config).learning_rate
    for seed, targets in enumerate(TOY_PAIRS):
        for network, target in targets.items():
            run = Run(seed, SOURCE_ONLY, f"num_steps={NETWORKS[network]}", None)
            words = (*SHORT, f"init_weight={sources.folder(run) / SOURCE_ONLY}.pth", f"seed={seed}",
                     f"cityscapes.data_dir={target_folder(sources, seed, target)}")
            pairs.append(Pair(f"toy{seed}--{network}-{target}", f"toy{seed}", config, rate, words, (run, target)))
    return pairs


def data_pairs(folder: Path) -> list[Pair]:
    """One pair per file of `folder`. Its group is what stands in the name in front of `--`."""
    files = sorted(folder.glob("*.yml"))
    if not files:
        raise ConfigError(f"--data: {folder} has no *.yml: each is the configuration of a source network and a target.")
    for file in files:
        if "--" not in file.stem:
            raise ConfigError(f"--data: {file}: expected a name such as SEQUENCE--network-look.yml: pairs of one "
                              "SEQUENCE are kept on one side of the split.")
    return [Pair(file.stem, file.stem.split("--")[0], file.absolute(), load_config(file).learning_rate)
            for file in files]


def settings() -> Iterator[tuple[str, int, str]]:
    """Endless: every second one usual, every fourth one at ten times the rate, every fourth one ruinous."""
    usual, high, ruinous = (itertools.cycle(kind) for kind in (USUAL, HIGH, RUINOUS))
    for kind in itertools.cycle((usual, high, usual, ruinous)):
        yield next(kind)


def plan(toy: list[Pair], data: list[Pair], limit: int = RUNS) -> list[Adaptation]:
    """Every toy pair a few times, and the pairs of --data as evenly as the rest of `limit` allows. Which setting meets
    which pair is fixed by their order."""
    chosen = settings()
    runs = [Adaptation(pair, *next(chosen)) for pair in toy for _ in range(RUNS_OF_A_PAIR)][:limit]
    chosen, rest = settings(), limit - len(runs)
    if data and rest:
        turns, more = divmod(rest, len(data))
        spread = [data[i * len(data) // more] for i in range(more)]
        times = [(pair, turns + (pair in spread)) for pair in data]
        runs += [Adaptation(pair, *next(chosen)) for pair, number in times for _ in range(number)]
    return list(dict.fromkeys(runs))  # a pair with very many turns meets a setting again


def own_plan(pairs: list[Pair]) -> list[Adaptation]:
    """Every pair once, with the settings of OWN_CONFIG: all its keys but those of the data, the network and the run."""
    content = yaml.safe_load(OWN_CONFIG.read_text(encoding="utf-8"))
    words = [f"{key}={str(value).replace(' ', '')}" for key, value in content.items()
             if key in KEYS | find("ld").keys and key not in PAIRS_OWN]
    return [Adaptation(pair, "ld", 1, " ".join(words), "own settings") for pair in pairs]


# ---- toy targets -----------------------------------------------------------------------------------------------------

def target_folder(sources: Runs, seed: int, target: str) -> Path:
    world = sources.world(seed)
    return world / "cityscapes" if target == "camera" else world.parent / target / "cityscapes"


def prepare(sources: Runs, pairs: list[Pair]) -> None:
    """Write the worlds and targets of toy pairs and train their source-only networks, where that is not done yet."""
    for run, target in dict.fromkeys(pair.source for pair in pairs if pair.source):
        write_toy_world(sources.world(run.seed), run.seed)
        write_target(target_folder(sources, run.seed, target), sources.world(run.seed), run.seed, target)
    sources.execute([pair.source[0] for pair in pairs if pair.source])


def write_target(folder: Path, world: Path, seed: int, target: str, train: int = 300, val: int = 100) -> None:
    """Write a toy target in Cityscapes' layout below `folder`, unless it is there: new frames in the look of the game,
    or the world's Cityscapes images degraded."""
    marker = folder.parent / "target.json"
    if target == "camera" or marker.is_file():
        return
    files = list(world_files(folder.parent, 0, 0, train, val))
    for path in {path.parent for item in files for path in item[3:]}:
        path.mkdir(parents=True, exist_ok=True)
    for _ in map_in_order(partial(write_frame, folder=folder, world=world, seed=seed, target=target), files, 0):
        pass
    write_json(marker, {"target": target, "seed": seed, "train": train, "val": val})


def write_frame(item: tuple, folder: Path, world: Path, seed: int, target: str) -> None:
    """item: one of `world_files`."""
    _, split, index, image_path, label_path = item
    if target == "game":  # another seed: the source network has not seen these
        with Image.open(world / "cityscapes" / image_path.relative_to(folder)) as size_of:
            image, label = render(seed + 1000, "gta5", split, index, size_of.size)
        save_label(label_path, label, "cityscapes")
    else:
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        with Image.open(world / "cityscapes" / image_path.relative_to(folder)) as clean:
            image = degrade(np.asarray(clean.convert("RGB")), target, rng)
        label_path.write_bytes((world / "cityscapes" / label_path.relative_to(folder)).read_bytes())
    Image.fromarray(image).save(image_path, compress_level=3)


def degrade(image: np.ndarray, look: str, rng: np.random.Generator) -> np.ndarray:
    """An image, RGB uint8 [H, W, 3], in another look: dusk (dark, blue, out of focus, noisy), fog (a veil that is
    thickest above the middle), noise. Raises KeyError for another one."""
    height = len(image)
    def blurred(radius):
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
    if look == "dusk":
        changed = blurred(height / 160) ** 1.6 * np.array([0.42, 0.5, 0.7]) * rng.uniform(0.8, 1.2)
        sigma = 0.03
    elif look == "fog":
        depth = np.clip(2 - 2 * np.arange(height) / height, 0.2, 1)[:, None, None]  # 1 down to the middle row
        veil = 1 - np.exp(-rng.uniform(1.2, 2.0) * depth)
        changed, sigma = blurred(0.5) * (1 - veil) + 0.8 * veil, 0.01
    else:
        changed, sigma = image / np.float32(255), {"noise": 0.15}[look]
    noisy = changed + sigma * rng.standard_normal(image.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8)
