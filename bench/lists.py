"""Lists of very many images: reading them, and the order of crops. A function that begins with `inputs, variant` is a
`bench.harness.Row.prepare`. The baseline reads line by line and looks at every file, and makes all keys of an epoch at
once, as every list was read before lists of millions were thought of."""
from pathlib import Path

import numpy as np

from bench.harness import added_peak
from bench.inputs import Inputs
from dataset import list_lines, segmentation
from dataset.order import crop_keys
from utils.config import DataConfig

_LOOKED_AT = 200  # of which files must be there


def reading(inputs: Inputs, variant: str, memory: bool = False):
    """Samples and fingerprint of a list: seconds, or MiB at the peak. The baseline's figures are scaled up from fewer
    names."""
    many, few = inputs.size.names
    count = few if variant == "baseline" else many
    section = write_list(inputs.root / f"list{count}", count, count if variant == "baseline" else _LOOKED_AT)
    list_lines.LONG = count if variant == "baseline" else 0

    def work():
        samples, remarks = segmentation.find_split("many", section, "train")
        assert len(samples) == count and not remarks
        return samples, segmentation.fingerprint(samples)
    return (lambda: added_peak(work) * many / count if memory else work()), count / many


def order(inputs: Inputs, variant: str, memory: bool = False):
    """The keys of an epoch's first thousand batches of 3: seconds, or MiB at the peak."""
    count = inputs.size.names[0]
    make = eager_keys if variant == "baseline" else crop_keys

    def work():
        keys = make(0, 0, count, count)
        return keys, [keys[3 * step: 3 * step + 3] for step in range(1000)]
    return (lambda: added_peak(work) if memory else work()), 1


def eager_keys(seed: int, round_index: int, num_samples: int, count: int) -> list[tuple[int, int, int]]:
    """`crop_keys` as a list."""
    keys = []
    for epoch in range(-(-count // num_samples)):
        permutation = np.random.default_rng([seed, round_index, epoch]).permutation(num_samples)
        keys += [(round_index, epoch, int(index)) for index in permutation]
    return keys[:count]


def write_list(root: Path, count: int, files: int) -> DataConfig:
    """A section whose list names `count` images in folders of 20,000; of `files` of them, evenly spread, there is a
    file, empty."""
    names = [f"part{i // 20_000:04d}/image_{i:08d}.png" for i in range(count)]
    if not root.exists():
        for index in np.unique(np.linspace(0, count - 1, files).round().astype(int)):
            path = root / "images" / names[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (root / "list.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return DataConfig("folder", str(root), data_list=str(root / "list.txt"), images="images", labels="labels",
                      classes=("a", "b"))
