"""Whether the samples of a split have labels, and why they have none."""
import os
from collections.abc import Sequence
from dataclasses import dataclass

from dataset.patterns import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, Pattern, Tree, folders, scan
from dataset.samples import Sample, Samples
from dataset.segmentation import patterns_of
from utils.config import DataConfig
from utils.errors import DataError

_SPREAD = 64  # samples of a long list whose labels are looked for


def looked_at(samples: Sequence[Sample], most: int = _SPREAD) -> Sequence[Sample]:
    """The samples whose files are looked at before they are read: all, or at most `most` of a long list."""
    return samples[:: -(-len(samples) // most)] if isinstance(samples, Samples) and samples.unseen else samples


def has_labels(samples: Sequence[Sample]) -> bool:
    """True if every sample's label file exists, False if none does. Raises DataError if only some exist. Of a long list
    some are looked at."""
    some = looked_at(samples)
    missing = [s for s in some if s.label is None or not os.path.isfile(s.label)]
    if missing and len(missing) < len(some):
        raise DataError(f"{missing[0].image}: its label {missing[0].label} is missing ({len(missing)} of "
                        f"{len(some)} labels are): add it, or take the image out of the split.")
    return not missing


@dataclass(frozen=True)
class NoLabels:
    """Why no sample of a split has a label. surprising: labels were expected, so that a key is probably wrong."""

    reason: str
    surprising: bool

    def __str__(self):
        return self.reason

    def remark(self, lost: str) -> str:
        """A line for the log that says why `lost`, such as "validation skipped"; a warning if labels were expected."""
        return f"{'warning: ' if self.surprising else ''}{lost}: {self.reason}"


def why_no_labels(section_name: str, section: DataConfig, split: str, samples: Sequence[Sample]) -> NoLabels:
    """The reason why none of these samples has a label: which file was expected, and what was found instead."""
    images, pattern = patterns_of(section, split)
    tree, first = Tree(section.data_dir), samples[0].label
    if first is None:
        return NoLabels(f"{section_name} has no labels: {section_name}.labels is not set", False)
    if pattern is None:  # the list alone names them
        pattern = Pattern.parse(first.parent.relative_to(tree.root).as_posix(), split, LABEL_EXTENSIONS)
    missing = f"{section_name} has no labels for its split {split!r}: {first} is not there"
    key = f"{section_name}.labels" if section.type == "folder" else f"{section_name}.data_dir"
    if not folders(tree, pattern):
        expected = section.type == "folder" or bool(tree.folders(pattern.folder.split("/")[0]))
        return NoLabels(f"{missing}, nor is the folder {tree.root / pattern.folder}"
                        + (f": correct {key}" if expected else ""), expected)
    there = scan(tree, Pattern(pattern.folder, "", None, (*LABEL_EXTENSIONS, *IMAGE_EXTENSIONS)))[0]
    other = next((path for path in there if images.name(path) is None), None)
    if other is None:
        return NoLabels(f"{missing}, nor is any other in its folder", False)
    fault = ("and fits no image:" if other.lower().endswith(LABEL_EXTENSIONS) else
             "of a kind that does not keep ids: save labels as PNG, or")
    return NoLabels(f"{missing}, but {tree.root / other} is, {fault} correct {key}", True)


def require_labels(section_name: str, section: DataConfig, split: str, samples: Sequence[Sample]) -> None:
    """Raise DataError, with the reason, unless every sample's label file exists."""
    if not has_labels(samples):
        raise DataError(f"{samples[0].image}: its label is missing, as are all others; this step needs them: "
                        f"{why_no_labels(section_name, section, split, samples)}.")
