"""Finding out by what their names have in common which label belongs to which image."""
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataset import files
from dataset.patterns import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, Pattern, Tree
from dataset.survey import spread
from utils.errors import DataError

SPLITS = ("train", "val")
_LESS_LIKELY = ("color", "colour", "instance", "panoptic", "vis", "overlay")  # in names of files beside the labels
_SAMPLED, _TRIED = 40, 40  # images by which affixes are found; affixes that are tried on all images
_COMPARED = 400_000  # names that are compared at most, with each of the affixes that images may have


@dataclass(frozen=True)
class Pairing:
    """Patterns of images and labels, and how many images have a label by them."""

    images: str
    labels: str
    count: int


def paired(tree: Tree, paths: Sequence[str], image_folder: str, label_paths: Sequence[str],
           label_folder: str) -> Pairing:
    """The patterns by which most images have a label, with what their names have before and behind the common part."""
    images = _names(paths, image_folder, IMAGE_EXTENSIONS)
    labels: dict[tuple, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    split_labels = "{split}" in label_folder
    for path, (split, folder, stem) in _names(label_paths, label_folder, LABEL_EXTENSIONS).items():
        labels[split if split_labels else "", folder][stem].append(path)
    def near(name):
        return labels.get((name[0] if split_labels else "", name[1]), {})
    stems = [name[2] for name in images.values()]
    counts: Counter = Counter()
    for path in spread(list(images), max(3, min(_SAMPLED, _COMPARED // max(1, len(label_paths))))):
        for before, behind in _affixes(stems):
            if core := _core(images[path][2], before, behind):
                for stem, there in near(images[path]).items():
                    at = stem.find(core)
                    if at >= 0 and there != [path] and not set(stem[:at] + stem[at + len(core):]) & set("{}*/"):
                        counts[before, behind, stem[:at], stem[at + len(core):]] += 1
    best, most = Pairing(image_folder, label_folder, 0), (0, False, 0, 0)
    for affixes, _ in counts.most_common(_TRIED):
        before, behind, label_before, label_behind = affixes
        pairs = {path: found for path, name in images.items() if (core := _core(name[2], before, behind))
                 and (found := [p for p in near(name).get(label_before + core + label_behind, ()) if p != path])}
        worth = (len(pairs), *_likely(tree, pairs, affixes)) if pairs else most
        if worth > most:
            most = worth
            of_labels = [p for found in pairs.values() for p in found]
            sure = len(of_labels) == len(pairs) and image_folder != label_folder
            best = Pairing(_pattern(image_folder, before, behind, pairs, True),
                            _pattern(label_folder, label_before, label_behind, of_labels, sure), len(pairs))
    return best


def _names(paths: Iterable[str], folder: str, extensions: tuple[str, ...]) -> dict[str, tuple[str, str, str]]:
    """path -> (split, folders below the pattern's, stem), of the paths that match."""
    found = {}
    for split in SPLITS if "{split}" in folder else ("",):
        pattern = Pattern.parse(folder, split, extensions)
        for path in paths:
            if (name := pattern.name(path)) is not None:
                above, _, stem = name.rpartition("/")
                found[path] = (split, above, stem)
    return found


def _affixes(stems: Sequence[str]) -> list[tuple[str, str]]:
    """(text before, text behind) that all stems share, cut at separators; nothing first."""
    def cuts(texts):
        shared = os.path.commonprefix(texts)  # noqa: RUF071
        return ["", *(shared[: i + 1] for i, c in enumerate(shared) if c in "_-. ")][:4]
    behind = [text[::-1] for text in cuts([stem[::-1] for stem in stems])]
    return [(before, after) for before in cuts(list(stems)) for after in behind]


def _core(stem, before, behind):
    return stem[len(before): len(stem) - len(behind)] if len(stem) > len(before) + len(behind) else ""


def _likely(tree, pairs, affixes):
    """How likely the files of a pairing are the labels: whether they can be read as such, what their names say, and how
    little they add to the images' names."""
    first = next(iter(pairs.values()))[0]
    try:
        readable = files.look(tree.root / first, lambda picture: picture.ids is not None)
    except DataError:
        readable = False
    text = "".join(affixes[2:]).lower()
    said = -2 * any(word in text for word in _LESS_LIKELY) + ("trainid" in text)
    return readable, said, -len("".join(affixes))


def _pattern(folder, before, behind, paths, sure):
    """The pattern of files with these affixes. sure: without any, the folder alone says which files are meant."""
    if sure and not before and not behind:
        return folder
    ending = Counter(os.path.splitext(path)[1] for path in paths).most_common(1)[0][0]
    name = f"{before}{{name}}{behind}{ending}"
    return name if folder == "." else f"{folder}/{name}"
