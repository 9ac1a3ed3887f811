"""dataset.check finds what is wrong with a data set, and `on_bad_sample: skip` leaves out exactly that."""
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import check, class_sets, loaders, segmentation
from dataset.inspection import inspect, readable, training_samples
from dataset.toy import write_toy_world
from utils.config import load_config
from utils.errors import DataError

TRAIN = "world/cityscapes/leftImg8bit/train/{city}/{city}_000000_000019_leftImg8bit.png"
TRAIN_LABEL = "world/cityscapes/gtFine/train/{city}/{city}_000000_000019_gtFine_labelIds.png"
VAL = "world/cityscapes/leftImg8bit/val/suderburg/suderburg_{:06d}_000019_leftImg8bit.png"
VAL_LABEL = "world/cityscapes/gtFine/val/suderburg/suderburg_{:06d}_000019_gtFine_labelIds.png"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    write_toy_world(root / "world", seed=2, size=(64, 32), source=6, synthia=2, train=4, val=3)
    return root


@pytest.fixture
def cfg(template, tmp_path, monkeypatch):
    """cfg(*words): the configuration of a world of its own, in the working directory."""
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    sections = "".join(f"{name}: {{data_dir: world/{name}}}\n" for name in ("gta5", "synthia", "cityscapes"))
    Path("c.yml").write_text("worker: 0\nscreen: False\nbatch_size: 2\nnum_steps: 6\ncrop_src: 16\ncrop_tgt: 16\n"
                             + sections)
    return lambda *words: load_config("c.yml", words)


def checked(capsys, *words):
    """(exit code, lines of the report)."""
    code = check.main(["--config", "c.yml", *words])
    out, error = capsys.readouterr()
    assert error == ""
    return code, out.splitlines()


def only(lines, *words):
    """The one line that holds all the words."""
    (line,) = [line for line in lines if all(word in line for word in words)]
    return line


def truncate(path):
    Path(path).write_bytes(Path(path).read_bytes()[:200])


def relabel(path, old, new):
    ids = np.array(Image.open(path))
    ids[ids == old] = new
    ids[0, 0] = new
    Image.fromarray(ids).save(path)


# ---- the report ------------------------------------------------------------------------------------------------------

def test_a_sound_set_and_its_class_shares(cfg, capsys):
    code, lines = checked(capsys)
    assert code == 0 and not any("error" in line for line in lines)
    assert lines[-1] == "nothing in the data would stop a run"
    heads = [line for line in lines[:lines.index("")] if not line.startswith("  note: classes never seen: ")]
    assert heads == ["source_train (gta5): 6 images, 6 labels, 64x32 (6)",
                     "target_train (cityscapes): 4 images, 4 labels, 64x32 (4)",
                     "target_val (cityscapes): 3 images, 3 labels, 64x32 (3)"]
    table = segmentation.label_table(cfg().target_data, 19)
    train_ids = np.concatenate([table[np.array(Image.open(VAL_LABEL.format(i)))].ravel() for i in range(3)])
    counts = np.bincount(train_ids, minlength=256)
    for train_id, name in enumerate(class_sets.label_classes(cfg().target_data, 19).names):
        row = [line for line in lines if line.startswith(name + " ")][-1]
        assert float(row.split()[-1]) == pytest.approx(100 * counts[train_id] / counts[:19].sum(), abs=6e-4)
    ignored = [line for line in lines if line.startswith("ignored")][-1]
    assert float(ignored.split()[-1]) == pytest.approx(100 * counts[255] / counts.sum(), abs=6e-4)


@pytest.mark.parametrize("worker", ["0", "2"])
def test_every_fault_is_named_once(cfg, capsys, worker):
    truncate("world/gta5/images/00002.png")
    Path("world/gta5/images/00003.png").write_text("text")
    Path("world/gta5/labels/00004.png").unlink()
    Image.new("L", (9, 9)).save("world/gta5/labels/00005.png")
    Path("world/gta5/images/00007.png").symlink_to("nowhere.png")
    relabel("world/gta5/labels/00006.png", 7, 99)
    truncate(TRAIN.format(city="morwald"))
    shutil.copy(TRAIN.format(city="lindenau"), VAL.format(1))
    shutil.copy(VAL.format(0), VAL.format(2))
    Path(VAL_LABEL.format(2)).unlink()
    code, lines = checked(capsys, f"worker={worker}")
    assert code == 1 and lines[-1] == "errors: 8; a run would stop"
    for words in (("images/00002.png", "truncated"), ("images/00003.png", "cannot be read as an image"),
                  ("labels/00004.png", "not found"), ("labels/00005.png", "9x9", "64x32"),
                  ("images/00007.png", "not found"), ("labels/00007.png", "not found"), ("morwald", "leftImg8bit.png"),
                  ("suderburg_000002_000019_gtFine_labelIds.png", "not found")):
        assert "error: " in only(lines, *words)
    assert "1 files" in only(lines, "label id 99 ", "labels/00006.png")
    assert only(lines, "content of another").startswith("  note: images with the content of another: 2 (")
    assert "lindenau" in only(lines, "content of another") and "suderburg_000002" in only(lines, "content of another")


def test_images_of_both_splits_are_no_copies_of_themselves(cfg, capsys):
    with open("c.yml", "a") as file:
        file.write("mine: {type: folder, data_dir: world/cityscapes/leftImg8bit/train, images: ., input_size: [64, 32],"
                   f" classes: {[f'c{i}' for i in range(19)]}}}\n")
    code, lines = checked(capsys, "target=mine")
    assert code == 0 and "as well: 4" in only(lines, "images that are adapted to as well")
    assert not any("content of another" in line for line in lines)


def test_a_set_without_splits_holds_no_image_twice(tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_text("text")
    (tmp_path / "c.yml").write_text("target: own\nsource: own\nmethod: ld\nnum_classes: 2\nown: {type: folder, images: "
                                    f"., data_dir: {tmp_path}, input_size: [32, 32], classes: [a, b]}}\n")
    assert check.main(["--config", str(tmp_path / "c.yml"), "worker=0"]) == 1
    said = capsys.readouterr().out
    assert "content of another" not in said and said.endswith("errors: 1; a run would stop\n")


def test_known_void_ids_are_no_surprise_and_others_are(cfg, capsys):
    relabel(VAL_LABEL.format(0), 7, 3)
    relabel(VAL_LABEL.format(1), 7, 255)
    assert not any("not in the table" in line for line in checked(capsys, "--split", "target_val")[1])
    relabel(VAL_LABEL.format(1), 8, 34)
    code, lines = checked(capsys, "--split", "target_val")
    assert code == 0 and "id 34 " in only(lines, "not in the table")
    assert not any("not in the table" in line for line in checked(capsys, "source=synthia", "num_classes=16")[1]
                   if "synthia" in line)


def test_classes_never_seen(cfg, capsys):
    _, lines = checked(capsys, "source=synthia", "--split", "source_train")
    unseen = only(lines, "  note: classes never seen: ").split(": ")[2].split(", ")
    assert {"terrain", "truck", "train"} <= set(unseen) and not {"road", "building"} & set(unseen)


def test_what_a_run_does_not_need_does_not_stop_it(cfg, capsys):
    shutil.rmtree("world/gta5")
    shutil.rmtree("world/cityscapes/gtFine")
    code, lines = checked(capsys)
    assert code == 0 and "method ld opens nothing of it" in only(lines, "gta5")
    assert only(lines, "validation skipped") and only(lines, "accuracy of pseudo labels is not reported")
    assert "pixels, %" not in "\n".join(lines)
    for words in (["method=source_only"], ["--split", "source_train"]):
        code, lines = checked(capsys, *words)
        assert code == 1 and "error: gta5.data_dir" in only(lines, "gta5.data_dir")
    shutil.rmtree("world/cityscapes/leftImg8bit/val")
    code, lines = checked(capsys)
    assert code == 0 and only(lines, "no images in its split 'val'")
    shutil.rmtree("world/cityscapes/leftImg8bit/train")
    assert checked(capsys)[0] == 1


def test_broken_target_labels_stop_a_run_only_where_it_reads_them(cfg, capsys):
    truncate(TRAIN_LABEL.format(city="lindenau"))
    assert checked(capsys)[0] == 1
    assert checked(capsys, "plabel_accuracy=False")[0] == 0
    Path(TRAIN_LABEL.format(city="lindenau")).unlink()
    code, lines = checked(capsys)
    assert code == 0 and "1 of 4 labels" in only(lines, "accuracy of pseudo labels is not reported")


def test_with_skip_only_an_empty_split_stops_a_run(cfg, capsys):
    truncate("world/gta5/images/00002.png")
    code, lines = checked(capsys, "on_bad_sample=skip")
    assert code == 0 and "note: " in only(lines, "00002.png") and "1 of 6" in only(lines, "would leave out")
    for path in Path("world/gta5/images").iterdir():
        truncate(path)
    assert checked(capsys, "on_bad_sample=skip")[0] == 1
    truncate(VAL.format(0))
    code, lines = checked(capsys, "on_bad_sample=skip", "--split", "target_val")
    assert code == 1 and "error: " in only(lines, "suderburg_000000")


# ---- on_bad_sample ---------------------------------------------------------------------------------------------------

def spoil():
    truncate("world/gta5/images/00002.png")
    truncate("world/gta5/labels/00004.png")
    Image.new("L", (9, 9)).save("world/gta5/labels/00005.png")
    return ["00002.png: cannot be read as an image", "00004.png: cannot be read as a label", "00005.png: label is 9x9"]


@pytest.mark.parametrize("worker", [0, 2])
def test_skip_leaves_out_the_broken_names_each_and_counts(cfg, worker):
    sound, lines = training_samples(cfg(f"worker={worker}", "on_bad_sample=skip"), "gta5", True)
    assert len(sound) == 6 and lines == []
    reasons = spoil()
    kept, lines = training_samples(cfg(f"worker={worker}", "on_bad_sample=skip"), "gta5", True)
    assert kept == [s for s in sound if s.name in ("00001", "00003", "00006")]
    assert len(lines) == 4 and "3 of 6" in lines[-1]
    assert all(reason in line for reason, line in zip(reasons, lines))


def test_with_error_nothing_is_left_out_and_reading_names_the_file(cfg):
    spoil()
    samples, lines = training_samples(cfg(), "gta5", True)
    assert len(samples) == 6 and lines == []
    with pytest.raises(DataError, match="0000[245].png"):
        list(loaders.source_loader(cfg(), samples))


def test_batches_after_skipping_do_not_depend_on_the_workers(cfg):
    """Left out before anything is drawn: the crops are those of a set that never had the broken samples."""
    spoil()
    batches = {}
    for worker in (0, 2):
        with_skip = cfg(f"worker={worker}", "on_bad_sample=skip")
        batches[worker] = list(loaders.source_loader(with_skip, training_samples(with_skip, "gta5", True)[0]))
    for number in ("00002", "00004", "00005"):
        for folder in ("images", "labels"):
            Path(f"world/gta5/{folder}/{number}.png").unlink()
    batches["clean"] = list(loaders.source_loader(cfg(), training_samples(cfg(), "gta5", True)[0]))
    assert len(batches[0]) == 6
    for other in (2, "clean"):
        for a, b in zip(batches[0], batches[other], strict=True):
            assert a["name"] == b["name"] and a["image"].equal(b["image"]) and a["label"].equal(b["label"])


def test_labels_of_the_target_choose_nothing(cfg):
    skip = cfg("on_bad_sample=skip")
    sound, _ = training_samples(skip, "cityscapes", False)
    truncate(TRAIN_LABEL.format(city="lindenau"))
    kept, lines = training_samples(skip, "cityscapes", False)
    assert [s.image for s in kept] == [s.image for s in sound]
    assert [s.label is None for s in kept] == ["lindenau" in s.name for s in sound]
    assert "lindenau" in lines[0] and "accuracy of pseudo labels is not reported" in lines[1] and len(lines) == 2
    truncate(TRAIN.format(city="morwald"))
    kept, lines = training_samples(cfg("on_bad_sample=skip", "plabel_accuracy=False"), "cityscapes", False)
    assert [s.name for s in kept] == [s.name for s in sound if "morwald" not in s.name]
    assert len(lines) == 2 and "morwald" in lines[0] and "1 of 4" in lines[1]


def test_listed_images_that_are_missing_are_left_out_too(cfg):
    Path("list.txt").write_text("00001.png\n00099.png\n")
    kept, lines = training_samples(cfg("on_bad_sample=skip", "gta5.data_list=list.txt"), "gta5", True)
    assert [s.name for s in kept] == ["00001"] and "00099.png: image not found" in lines[0]
    with pytest.raises(DataError, match="00099.png: listed"):
        training_samples(cfg("gta5.data_list=list.txt"), "gta5", True)


def test_nothing_left_is_an_error(cfg):
    shutil.rmtree("world/gta5/labels")
    with pytest.raises(DataError, match="none of its 6 training samples.*00001.png: label not found"):
        training_samples(cfg("on_bad_sample=skip"), "gta5", True)


def test_a_finding_holds_what_was_read(cfg):
    (sample, *_) = segmentation.find_samples("gta5", cfg().source_data, "train")
    found, ids = inspect(sample), np.array(Image.open(sample.label))
    assert found.pixels == dict(zip(*(v.tolist() for v in np.unique(ids, return_counts=True))))
    assert found.size == (64, 32)
    Image.open(sample.image).save("copy.bmp")  # the same pixels in another file
    assert inspect(replace(sample, image=Path("copy.bmp"))).digest == found.digest
    assert readable([], True, 0) == ([], [])
