"""Lists of very many images: what their samples are, that they stay small, and the order in which crops are drawn."""
import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import lists
from bench.inputs import QUICK, Inputs
from dataset import check, inspection, list_lines, loaders, long_lists, missing_labels, segmentation, views
from dataset.columns import Column
from dataset.messages import Messages
from dataset.order import StepKeys, crop_keys
from dataset.samples import Kept, Sample, Samples, shared_images
from dataset.toy import write_toy_world
from tests.torchrun import torchrun
from utils import distributed
from utils.config import DataConfig, load_config
from utils.errors import DataError

ROOT = Path(__file__).parents[1]
BASE = 0x9E3779B97F4A7C15
FEW = settings(max_examples=30, deadline=None)
TEXTS = st.one_of(st.none(), st.text(st.characters(blacklist_categories=()), max_size=12))


# ---- texts and samples -----------------------------------------------------------------------------------------------

@FEW
@given(st.lists(TEXTS), st.text(max_size=5), st.text(max_size=5))
def test_a_column_holds_its_texts(texts, before, behind):
    column = replace(Column.of(texts), before=before, behind=behind)
    whole = [None if text is None else before + text + behind for text in texts]
    assert [column.text(i) for i in range(len(column))] == whole


@pytest.mark.parametrize("block", [1, 2, 3, 100])
@FEW
@given(st.lists(st.text(max_size=12)), st.text(max_size=5), st.text(max_size=5))
def test_keys_are_one_polynomial_however_a_text_is_split(block, texts, before, behind):
    def slow(text):
        return sum(byte * pow(BASE, j, 2**64) for j, byte in enumerate(text.encode())) % 2**64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.columns._BLOCK", block)
        keys = replace(Column.of(texts), before=before, behind=behind).keys()
        whole = Column.of([before + text + behind for text in texts]).keys()
    assert keys.dtype == np.uint64 and keys.tolist() == whole.tolist() == [slow(before + t + behind) for t in texts]


def test_keys_of_many_names_differ():
    names = [f"a{i // 1000}/b_{i % 1000}" for i in range(100_000)]
    assert len(np.unique(Column.of(names).keys())) == len(names)


SAMPLES = st.lists(st.builds(
    lambda n, label: Sample(f"n{n}", Path(f"i/é {n}.png"), Path(f"l/{n}.png") if label else None),
    st.integers(0, 999), st.booleans()), max_size=8)
SLICES = st.slices(8)


@FEW
@given(st.sampled_from([Samples.of, Samples.packed]), SAMPLES, SLICES, SLICES, st.randoms(use_true_random=False))
def test_samples_are_the_sequence_that_they_are_made_of(make, given_, one, other, rng):
    found = make(given_)
    assert Samples.of(found) is found and list(found) == given_ == found and len(found) == len(given_)
    assert not found.unseen and found.digest() == "" and list(found.names()) == [s.name for s in given_]
    assert [found[i] for i in range(-len(given_), len(given_))] == given_ + given_
    for index in (len(given_), -len(given_) - 1):
        with pytest.raises(IndexError):
            found[index]
    part, listed = found[one][other], given_[one][other]
    assert isinstance(part, Samples) and part == listed and [part.name(i) for i in range(len(part))] == [
        s.name for s in listed]
    indices = [rng.randrange(len(listed)) for _ in range(3 * bool(listed))]
    assert part.take(np.array(indices, int)) == [listed[i] for i in indices]
    assert part.take(np.array(indices, int))[other] == [listed[i] for i in indices][other]
    assert part.without_labels() == [replace(s, label=None) for s in listed]
    assert pickle.loads(pickle.dumps(part)) == listed


@FEW
@given(st.sampled_from([Samples.of, Samples.packed]), SAMPLES, SLICES, SLICES)
def test_labels_by_a_rule_get_the_index_in_the_sequence_that_was_given_them(make, given_, one, other):
    def rule(index, sample):
        return Path(f"p/{index}/{sample.name}/{sample.label}")
    listed = [replace(s, label=rule(i, s)) for i, s in enumerate(given_[one])]
    found = make(given_)[one].with_labels(rule)
    assert found == listed and found[other] == listed[other]
    which = np.arange(len(listed)) % 2 == 0
    kept = found.with_labels(Kept(which))
    assert kept == [s if keep else replace(s, label=None) for s, keep in zip(listed, which)]
    assert kept.with_labels(rule)[other] == [replace(s, label=rule(i, s)) for i, s in enumerate(kept)][other]


@FEW
@given(SAMPLES, SAMPLES)
def test_images_of_two_sequences_are_compared_by_their_paths(one, other):
    expected = sum(s.image in {t.image for t in other} for s in one)
    assert shared_images(one, Samples.packed(other)) == shared_images(Samples.packed(one), other) == expected
    assert shared_images(Samples.packed(one)[::2].without_labels(), Samples.of(other)[1:]) == sum(
        s.image in {t.image for t in other[1:]} for s in one[::2])


# ---- long lists ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images below `i` with labels below `l`, in subfolders, some of them odd; `out` is a link out of it."""
    root = tmp_path_factory.mktemp("long").resolve()
    for name in ("a/1", "a/2", "b/1", "b/22", "c", "i/1", "a b", "a,b", "ä/ö"):
        for kind in "il":
            path = root / f"d/{kind}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    Image.new("L", (4, 4)).save(root / "d/i/b/3.jpg")
    Image.new("L", (4, 4)).save(root / "d/i/b/4.PNG")
    (root / "elsewhere").mkdir()
    Image.new("L", (4, 4)).save(root / "elsewhere/1.png")
    (root / "d/i/out").symlink_to(root / "elsewhere")
    return root


def section(root, images="i", labels="l", list_file="list.txt"):
    return DataConfig("folder", str(root / "d"), data_list=str(root / list_file), images=images, labels=labels,
                      classes=("x", "y"))


def both(folder, content, *patterns, complete=True, looked_at=200):
    """What the list is read as in one go and line by line: (samples, remarks), or the DataError."""
    (folder / "list.txt").write_bytes(content)
    results = []
    for few in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(list_lines, "LONG", few)
            patch.setattr(long_lists, "_LOOKED_AT", looked_at)
            try:
                results.append(segmentation.find_split("mine", section(folder, *patterns), "train", complete=complete))
            except DataError as error:
                results.append(error)
    return results


def known(samples):
    return [(s.name, s.image, s.label) for s in samples]


NAMES = ["a/1", "a/2", "b/1", "b/22", "c"]
FORMS = {
    "names": "{0}.png", "without endings": "{0}", "with the folder": "i/{0}.png", "from here": "./i/{0}.png",
    "absolute": "{root}/d/i/{0}.png", "labels": "i/{0}.png\tl/{0}.png", "labels behind a comma": "{0}.png, {0}.png",
    "labels elsewhere": "i/{0}.png {root}/d/l/{0}.png", "a slash in front": "/i/{0}.png;/l/{0}.png",
    "other labels": "{0}.png i/{0}.png",  # by the label's folder no label of the pattern, but one below data_dir
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_lists_of_one_form_are_read_as_line_by_line(folder, form, ending):
    lines = [FORMS[form].format(name, root=folder) for name in NAMES]
    for start, end in ((b"", b""), (b"\xef\xbb\xbf", ending.encode())):
        many, careful = both(folder, start + ending.join(lines).encode() + end)
        if form == "other labels":
            assert str(many) == str(careful) and "its own label" in str(many)
            continue
        assert known(many[0]) == known(careful[0]) and many[1] == careful[1] == []
        assert many[0].unseen and not careful[0].unseen and [s.name for s in many[0]] == NAMES


@pytest.mark.parametrize("images, labels", [("i/{name}.png", "l/{name}.png"), ("i", None), (".", "l"), ("i/a", "l/a"),
                                            ("{name}.png", "l/{name}.png"), ("i/{name}", "l"),
                                            ("i/{name}2.png", "l/{name}2.png")])
def test_patterns_of_long_lists(folder, images, labels):
    (folder / "d/l/c.bmp").unlink(missing_ok=True)
    names = {"i/a": ["a/1", "a/2"], "i/{name}2.png": ["a/2", "b/22"]}.get(images, NAMES)
    many, careful = both(folder, "\n".join(f"i/{name}.png" for name in names).encode(), images, labels)
    if isinstance(careful, DataError):
        assert str(many) == str(careful)
    else:
        assert known(many[0]) == known(careful[0]) and many[0].unseen and many[1] == []


@pytest.mark.parametrize("line", [
    "# a comment", "#c", "a b.png", "a,b.png", "b/3.jpg", "b/4.PNG", "b/4.png", "i/c.png", "./c.png", "a/../c.png",
    "a//1.png", "a\\1.png", "a/1.png ", " a/1.png", "a/1.png l/a/1.png", "a/1", "~/x.png", "/c.png", "\tc.png", "\x01",
    "a/.png", ".png", "a/./1.png", "i/1.png", "\xa0c.png", "a\u0308/o\u0308.png"])
@pytest.mark.parametrize("form", ["{0}.png", "i/{0}.png", "i/{0}.png l/{0}.png"])
@pytest.mark.parametrize("place", [2, -1])
def test_a_line_of_another_form_makes_the_reading_careful_or_is_read_alike(folder, line, form, place):
    """Whether it is among those that are looked at or not."""
    lines = [form.format(name) for name in NAMES]
    lines.insert(place if place > 0 else len(lines), line)
    many, careful = both(folder, "\n".join(lines).encode(), looked_at=2)
    if isinstance(careful, DataError):
        assert isinstance(many, DataError) or not all(s.image.is_file() for s in many[0])
    elif isinstance(many, DataError):
        raise AssertionError(many)
    else:
        require_alike(many[0], careful[0])
        assert many[0].unseen or "is read line by line" in many[1][0] and many[1][1:] == careful[1]


LINES = st.sampled_from(["a/1.png", "a/2.png", "b/1.png", "i/a/1.png", "i/b/1.png", "b/3.jpg", "b/4.PNG", "i/i/1.png",
                         "./a/1.png", "c", "a/1", "a b.png", "a/1.png l/a/1.png", "b/1.png l/b/1.png", "out/1.png", "",
                         "ä/ö.png", "no/such.png", "c.png, c.png", "/i/c.png", "c.png\r", "# c.png", " ", "\t"])


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, min_size=2, max_size=6), st.booleans(),
       st.sampled_from(["i", "i/{name}.png", "{name}.png", "."]), st.sampled_from([1, 2, 200]))
def test_random_lists_are_read_as_line_by_line(folder, lines, complete, images, looked_at):
    many, careful = both(folder, "\n".join(lines).encode(), images, complete=complete, looked_at=looked_at)
    if isinstance(many, DataError):
        assert isinstance(careful, DataError)
    elif isinstance(careful, DataError):  # only what is found when files are read
        assert many[0].unseen and any(broken(s) for s in many[0])
    else:
        require_alike(many[0], careful[0])


def require_alike(many, careful):
    """The samples are the same but for those that reading will refuse, as a file is not there as it is spelled."""
    assert len(many) == len(careful)
    assert all(one == other or many.unseen and not one[1].is_file() for one, other in zip(known(many), known(careful)))


def broken(sample):
    return bool(inspection.inspect(sample).image_error or inspection.inspect(sample).label_error)


def test_a_line_that_is_not_written_as_others_is_named(folder):
    many, _ = both(folder, b"\n\na/1.png\na/2.png\n\nc\nb/1.png\n", looked_at=2)
    assert "line 6 is not written as others are" in many[1][0] and len(many[0]) == 4


@pytest.mark.parametrize("lines, said", [
    (["a/1.png", "b/1.png", "a/1.png"], "share the name 'a/1' (it is listed twice)"),
    (["no/1.png", "a/1.png", "b/1.png"], "no/1.png: listed in"),
    (["a/1.png", "b/1.png", "../x.png"], "points outside")])
def test_faults_of_long_lists_are_named(folder, lines, said):
    many, careful = both(folder, "\n".join(lines).encode())
    assert said in str(many) and said in str(careful)


def test_equal_keys_of_other_names_are_no_fault(folder, monkeypatch):
    monkeypatch.setattr(Column, "keys", lambda self: np.zeros(len(self), np.uint64))
    many, careful = both(folder, b"a/1.png\nb/1.png\nc.png")
    assert known(many[0]) == known(careful[0])
    assert "share the name 'c'" in str(both(folder, b"a/1.png\nc.png\nc.png")[0])


def test_files_of_long_lists_are_looked_at_when_they_are_read(folder):
    many, _ = both(folder, b"a/1.png\nout/1.png\nno.png\nb/1.png", looked_at=2)
    samples, table = many[0], np.arange(65536, dtype=np.uint8)
    crops = views.TrainingCrops(samples, None, 4, 4, (1.0,), False, 1)
    for read in (lambda i: crops[0, 0, i], views.WholeImages(samples, (4, 4)).__getitem__,
                 views.WholeImages(samples, (4, 4), table).__getitem__):
        assert read(0) and read(3)
        with pytest.raises(DataError, match=r"out/1.png: is a link out of '.*/d' to '.*/elsewhere/1.png'"):
            read(1)
        with pytest.raises(DataError, match=r"no.png: image not found"):
            read(2)
    assert "link out of" in inspection.inspect(samples[1]).image_error
    assert "link out of" in inspection.header_fault(samples[1])
    pseudo = samples[:1].with_labels(lambda index, sample: folder / "elsewhere/1.png")  # not of the data set
    assert views.WholeLabels(pseudo, table)[0].shape == (4, 4)


def test_labels_of_long_lists_may_have_another_ending(folder, tmp_path):
    shutil.copytree(folder / "d", tmp_path / "d", symlinks=True)
    (tmp_path / "d/l/a").rename(tmp_path / "d/away")
    (tmp_path / "d/l/a").mkdir()
    for name in "12":
        Image.new("L", (4, 4)).save(tmp_path / f"d/l/a/{name}.bmp")
    many, careful = both(tmp_path, b"a/1.png\na/2.png")
    assert known(many[0]) == known(careful[0]) and many[0].unseen and many[0][0].label.name == "1.bmp"
    many, careful = both(tmp_path, b"a/1.png\na/2.png\nb/1.png")
    assert known(many[0]) == known(careful[0]) and "labels end in .bmp and .png" in many[1][0]


def test_the_fingerprint_of_a_long_list_covers_its_bytes(folder):
    def of(content):
        return both(folder, content)[0][0]
    whole = of(b"a/1.png\na/2.png\nb/1.png\n")
    prints = [segmentation.fingerprint(samples) for samples in (
        whole, of(b"a/2.png\na/1.png\nb/1.png\n"), of(b"a/1.png\na/2.png\nb/1.png\n\n"), whole[1:], whole[::2],
        whole.take(np.array([0, 1])), whole.take(np.array([1, 0])))]
    assert len({*prints}) == len(prints)
    assert prints[0] == segmentation.fingerprint(of(b"a/1.png\na/2.png\nb/1.png\n"))
    assert prints[0] != segmentation.fingerprint(list(whole))


def test_few_labels_of_a_long_list_are_looked_for(folder, monkeypatch):
    samples = both(folder, "\n".join(f"{name}.png" for name in NAMES).encode())[0][0]
    assert len(missing_labels.looked_at(samples, 2)) == 2 and missing_labels.looked_at(samples) == samples
    assert missing_labels.looked_at(list(samples), 2) == list(samples)
    asked = []
    monkeypatch.setattr(missing_labels, "_SPREAD", 2)
    monkeypatch.setattr(missing_labels.looked_at, "__defaults__", (2,))
    monkeypatch.setattr(os.path, "isfile", lambda path: not asked.append(path))
    assert missing_labels.has_labels(samples) and asked == [samples[0].label, samples[3].label]


def test_a_label_that_a_run_will_miss_is_an_error_of_check(world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world / "world", tmp_path / "world")
    images = sorted((tmp_path / "world/cityscapes/leftImg8bit/train").rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in images))
    (tmp_path / "c.yml").write_text((world / "c.yml").read_text().replace(str(world), str(tmp_path)))
    words = [f"cityscapes.data_list={tmp_path}/list.txt"]
    cfg = load_config(tmp_path / "c.yml", words)
    label = segmentation.find_samples("cityscapes", cfg.target_data, "train")[1].label
    label.unlink()
    assert not inspection.labels_compared(cfg, inspection.training_samples(cfg, "cityscapes", False)[0])
    monkeypatch.setattr(list_lines, "LONG", 0)
    monkeypatch.setattr(missing_labels.looked_at, "__defaults__", (1,))
    samples, lines = inspection.training_samples(cfg, "cityscapes", False)
    assert samples.unseen and inspection.labels_compared(cfg, samples) and lines == []
    with pytest.raises(DataError, match=f"{label}: label not found"):
        list(loaders.whole_label_loader(cfg, "cityscapes", samples))
    code = check.main(["--config", str(tmp_path / "c.yml"), "--split", "target_train", *words])
    assert code == 1 and f"error: {label}: label not found" in capsys.readouterr().out


# ---- their size ------------------------------------------------------------------------------------------------------

MANY = """
import os, sys, time
from dataset import segmentation
from utils.config import DataConfig
def status(name, process="self"):
    lines = open(f"/proc/{process}/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))
def private():
    return sum(int(line.split()[1]) / 1024 for line in open("/proc/self/smaps_rollup") if line.startswith("Private_"))
root, count = sys.argv[1], int(sys.argv[2])
before, began = status("VmRSS"), time.process_time()
section = DataConfig("folder", root, data_list=f"{root}/list.txt", images="i", labels="l", classes=("x", "y"))
samples, remarks = segmentation.find_split("mine", section, "train")
seconds = time.process_time() - began
assert len(samples) == count and remarks == [] and samples[count - 1].name == f"a/{count - 1:08d}"
read, write = os.pipe()
if not os.fork():
    held = private()
    for index in range(0, count, max(1, count // 20000)):
        samples[index]
    os.write(write, repr(private() - held).encode())
    os._exit(0)
print(seconds, status("VmHWM"), float(os.read(read, 99)), status("VmRSS") - before)
"""


def test_the_bench_reads_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(list_lines, "LONG", list_lines.LONG)  # put back at the end
    inputs = Inputs(tmp_path, QUICK)
    for variant, count in (("product", 3000), ("baseline", 300)):
        work, units = lists.reading(inputs, variant)
        samples, _ = work()
        assert len(samples) == count and units == count / 3000 and samples.unseen == (variant == "product")
        keys, batches = lists.order(inputs, variant)[0]()
        assert keys == eager(0, 0, 3000, 3000) and [key for batch in batches for key in batch] == list(keys)


def measured(root, count):
    """(seconds of computing, MiB of the process at its peak, MiB that a forked process copies, MiB that stay) of
    reading a list."""
    names = [f"a/{i:08d}.png" for i in range(count)]
    (root / "i/a").mkdir(parents=True)
    (root / "list.txt").write_text("".join(f"{name}\n" for name in names))
    for index in np.linspace(0, count - 1, 200).round().astype(int):
        (root / "i" / names[index]).touch()
    done = subprocess.run([sys.executable, "-c", MANY, str(root), str(count)], cwd=ROOT, text=True, capture_output=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return map(float, done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_five_million_names(tmp_path):
    seconds, peak, copied, _ = measured(tmp_path, 5_000_000)
    assert seconds < 5 and peak < 1024 and copied < 16


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_forked_process_does_not_copy_the_list(tmp_path):
    """Nor does a name take more than its bytes and two places."""
    _, _, copied, kept = measured(tmp_path, 400_000)
    assert copied < 8 and kept < 40


# ---- the order of crops ----------------------------------------------------------------------------------------------

def eager(seed, round_index, num_samples, count):
    keys = []
    for epoch in range(-(-count // num_samples)):
        order = np.random.default_rng([seed, round_index, epoch]).permutation(num_samples)
        keys += [(round_index, epoch, int(index)) for index in order]
    return keys[:count]


@FEW
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 20), st.integers(0, 90), st.slices(90))
def test_lazy_keys_are_the_eager_ones(seed, round_index, num_samples, count, part):
    keys, expected = crop_keys(seed, round_index, num_samples, count), eager(seed, round_index, num_samples, count)
    assert list(keys) == expected == keys and len(keys) == count and keys[part] == expected[part]
    assert [keys[i] for i in range(-count, count)] == expected + expected
    with pytest.raises(IndexError):
        keys[count]


def test_keys_cost_one_permutation(monkeypatch):
    keys, drawn = crop_keys(1, 0, 1000, 10**15), []
    draw = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    assert len(keys) == 10**15 and len(keys[5000:9000]) == 4000 and [seed[2] for seed in drawn] == [5, 6, 7, 8]
    assert keys[10**15 - 1][1] == 10**12 - 1


@FEW
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))
def test_processes_take_together_the_crops_of_one(processes, count, first, steps):
    total, which = processes * count, range(first, first + steps)
    keys = crop_keys(3, 1, 7, (first + steps) * total)
    single = StepKeys(keys, total, which, 0, 1)
    shares = [StepKeys(keys, count, which, rank, processes) for rank in range(processes)]
    assert [len(share) for share in (single, *shares)] == [steps] * (processes + 1)
    for step, batch in enumerate(single):
        assert [key for share in shares for key in share[step]] == batch == keys[
            (first + step) * total: (first + step + 1) * total]
    assert single[1:] == list(single)[1:]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_toy_world(root / "world", seed=2, size=(64, 32), source=9, synthia=2, train=7, val=3)
    sections = "".join(f"{name}: {{data_dir: {root}/world/{name}}}\n" for name in ("gta5", "synthia", "cityscapes"))
    (root / "c.yml").write_text("worker: 0\nscreen: False\nbatch_size: 1\nnum_steps: 6\ncrop_src: 16\ncrop_tgt: 16\n"
                                f"input_src: 32\ninput_tgt: 32\n{sections}")
    return root


@pytest.mark.parametrize("load", ["source", "target"])
def test_loaders_of_processes_give_the_crops_of_one(world, monkeypatch, load):
    def batches(*words, rank=0, processes=1):
        cfg = load_config(world / "c.yml", words)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "size", lambda: processes)
        samples = segmentation.find_samples("gta5", cfg.source_data, "train")
        if load == "source":
            return list(loaders.source_loader(cfg, samples, 1))
        assert loaders.round_steps(cfg, 9, 2) == 4  # 18 crops, 4 a step
        return list(loaders.target_loader(cfg, samples, 2, 1, 1))
    whole = batches("batch_size=4")
    shares = [batches("accumulate=2", rank=rank, processes=2) for rank in range(2)]
    assert [len(share) for share in shares] == [len(whole)] * 2 and len(whole) == (5 if load == "source" else 3)
    for batch, *parts in zip(whole, *shares):
        assert [name for part in parts for name in part["name"]] == batch["name"]
        assert torch.cat([part["image"] for part in parts]).equal(batch["image"])


# ---- passes over all samples -----------------------------------------------------------------------------------------

def test_messages_are_counted_beyond_those_that_are_kept(monkeypatch):
    monkeypatch.setattr("dataset.messages.MOST", 3)
    parts = [Messages(), Messages()]
    for number in range(7):
        parts[number % 2].add(number, f"line {number}")
    monkeypatch.setattr(distributed, "gathered", lambda value: parts)
    merged = parts[0].merged()
    assert merged.lines() == ["line 0", "line 1", "line 2", "and 4 more like these"] and merged.count == 7


PROGRAM = """
import sys
from dataset import check, inspection
from utils import distributed
from utils.cli import guarded, leave
from utils.config import load_config
def skipped():
    cfg = load_config("c.yml", ["on_bad_sample=skip", *sys.argv[1:]])
    found = [*inspection.training_samples(cfg, "gta5", True), *inspection.training_samples(cfg, "cityscapes", False)]
    found = [[(s.name, s.image, s.label) for s in part] if i % 2 == 0 else part for i, part in enumerate(found)]
    assert distributed.gathered(found) == [found] * distributed.size()
    if distributed.is_main():
        print(found)
    return check.main(["--config", "c.yml", *sys.argv[1:]])
leave(guarded(skipped, several=True))
"""


OTHERS = """
from dataset import inspection, segmentation
from dataset.check import check
from utils import distributed
from utils.cli import guarded, leave
from utils.config import load_config
def main():
    cfg, find = load_config("c.yml"), segmentation.find_split
    def fewer(*given, **named):
        samples, remarks = find(*given, **named)
        return samples[:len(samples) - distributed.rank()], remarks
    segmentation.find_split = fewer
    errors = check(cfg, ["target_train"])["target_train"].errors
    assert len(errors) == 1 and "the processes of this run differ" in errors[0], errors
    inspection.training_samples(load_config("c.yml", ["on_bad_sample=skip"]), "cityscapes", False)
leave(guarded(main, several=True))
"""


@pytest.mark.slow
def test_processes_with_other_lists_are_refused_before_they_share_out_the_reading(world, tmp_path):
    (tmp_path / "c.yml").write_text((world / "c.yml").read_text())
    (tmp_path / "program.py").write_text(OTHERS)
    done = torchrun(2, "program.py", folder=tmp_path, timeout=120)
    error, = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "process 0: error: the processes of this run differ: the images (names and sizes)" in error


MACHINES = """
import os, sys
from dataset import check
from utils import distributed
from utils.cli import leave
plain, (what, *words) = os.path.isdir, sys.argv[1:]
if what == "folder" and distributed.rank() == 1:
    os.path.isdir = lambda path: not str(path).endswith("gta5") and plain(path)
parts = ["--split", "target_val"] if what == "words" and distributed.rank() == 1 else []
leave(check.main(["--config", "c.yml", *words, *parts]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "words"])
def test_machines_without_the_source_or_with_other_words_do_not_wait_for_each_other(world, tmp_path, what):
    (tmp_path / "c.yml").write_text((world / "c.yml").read_text())
    (tmp_path / "program.py").write_text(MACHINES)
    done = torchrun(2, "program.py", what, "method=ld", folder=tmp_path, timeout=120)
    if what == "folder":
        assert done.returncode == 0 and done.stdout.count("source_train (gta5): not read, no folder") == 1, done.stderr
        assert "target_train" in done.stdout and "Traceback" not in done.stderr
    else:
        error, = [line for line in done.stderr.splitlines() if "error:" in line]
        assert "process 0: error: --split, method, source, target: they differ between the processes" in error


@pytest.mark.slow
def test_processes_find_what_one_finds(world, tmp_path):
    shutil.copytree(world / "world", tmp_path / "world")
    (tmp_path / "c.yml").write_text((world / "c.yml").read_text().replace(str(world), str(tmp_path)))
    rng = random.Random(1)
    images = sorted((tmp_path / "world/gta5/images").iterdir())
    targets = sorted((tmp_path / "world/cityscapes/leftImg8bit/train").rglob("*.png"))
    for path in (images[1], images[4], targets[2]):
        path.write_bytes(path.read_bytes()[:100])
    for one, other in ((0, 5), (2, 7)):
        shutil.copy(images[one], images[other])
    for path in rng.sample(sorted((tmp_path / "world/gta5/labels").iterdir()), 3):
        ids = np.array(Image.open(path))
        ids[0, :5] = 99
        Image.fromarray(ids).save(path)
    (tmp_path / "program.py").write_text(PROGRAM)
    one = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    several = torchrun(3, "program.py", folder=tmp_path)
    assert one.returncode == 1 and "errors: 3; a run would stop" in one.stdout, one.stderr
    assert "images with the content of another: 2" in one.stdout and "label id 99" in one.stdout
    assert several.stdout == one.stdout
