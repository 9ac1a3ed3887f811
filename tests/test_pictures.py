"""What TensorBoard shows of a run, and that it changes nothing in the run."""
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_pipeline import call, toy_world, weights, world  # noqa: F401

import run as run_script
import run_so as run_so_script
from dataset.class_sets import class_set
from model.build import build_model
from trainer import pictures
from trainer.loop import Trainer
from trainer.pictures import Pictures, confusion_picture, same_random_numbers
from utils.cli import EXIT_STOPPED
from utils.config import load_config
from utils.machine import machine, peak_memory
from utils.visualize import dimmed, matrix, with_legend

LD = ("method=ld", "init_weight=snapshot/tiny/source_only.pth", "tensorboard=True", "score_images=0",
      "pictures=4")


@pytest.fixture
def started(world, monkeypatch):  # noqa: F811
    assert call(monkeypatch, run_so_script, "tensorboard=False") == 0
    return world


def board(stage, note="tiny"):
    """Tag -> {step: picture}"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(f"log/{note}/{stage}", size_guidance={"images": 0})
    found.Reload()
    return {tag: {image.step: image for image in found.Images(tag)} for tag in found.Tags()["images"]}, found


def test_each_round_and_the_end_have_their_pictures(started, monkeypatch):
    drawn = []
    def kept(rows, cell):
        drawn.append(dict(rows))
        return Image.new("RGB", (90, 90))
    monkeypatch.setattr(pictures, "grid", kept)
    assert call(monkeypatch, run_script, *LD, "pictures=3") == 0
    shown, scalars = board("ld")
    events = [json.loads(line) for line in Path("log/tiny/ld.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "val"]
    assert list(shown["images"]) == [0, *steps] == [0, 2, 4] and list(shown["confusion"]) == steps
    assert all(list(rows) == ["image", "prediction", "pseudo label", "selected", "ground truth"] for rows in drawn)
    assert all(len(row) == 3 for rows in drawn for row in rows.values())
    cfg = load_config("tiny.yml")
    files = sorted(Path("plabel/tiny/ld").glob("round*/**/*.png"))
    for rows, index in zip(drawn, (0, 1, 1)):
        chosen = [file for file in files if f"round{index}" in str(file)]
        for file, image, pseudo, selected in zip((chosen[0], chosen[2], chosen[4]), rows["image"], rows["pseudo label"],
                                                 rows["selected"]):
            label = np.asarray(Image.open(file))
            bright = (np.asarray(selected) == np.asarray(image)).all(2)
            assert (np.asarray(pseudo)[label == 255] == 0).all() and bright[label != 255].all()
            assert (np.asarray(pseudo)[label == 0] == class_set(cfg).palette[0]).all()
    tags = scalars.Tags()["scalars"]
    assert {"pseudo_label/threshold/road", "pseudo_label/coverage/road"} <= {*tags}
    assert all(0 <= s.value <= 1 for s in scalars.Scalars("pseudo_label/threshold/road"))


@pytest.mark.parametrize("method, rows", [("entmin", ["image", "prediction", "ground truth"])])
def test_a_method_without_pseudo_labels_shows_image_prediction_and_truth(started, monkeypatch, method, rows):
    drawn = []
    monkeypatch.setattr(pictures, "grid",
                        lambda found, cell: drawn.append([c for c, _ in found]) or Image.new("RGB", (90, 90)))
    assert call(monkeypatch, run_script, *LD, f"method={method}") == 0
    assert drawn == [rows, rows]
    shutil.rmtree("world/cityscapes/gtFine")
    assert call(monkeypatch, run_script, *LD, f"method={method}") == 0
    assert drawn[2:] == [rows[:-1]] * 2


def test_pictures_change_nothing_although_the_network_draws_at_random(started, monkeypatch):
    plain = Pictures._predicted
    def drawing(self, network, sample):
        torch.rand(3), np.random.rand(3), random.random()
        return plain(self, network, sample)
    monkeypatch.setattr(Pictures, "_predicted", drawing)
    found = {}
    for note, words in (("zero", ["pictures=0"]), ("four", ["pictures=4"]), ("off", ["tensorboard=False"])):
        assert call(monkeypatch, run_script, *LD, *words, f"note={note}") == 0
        found[note] = weights(f"snapshot/{note}/ld.pth")
    assert all(found["zero"][k].equal(v) and found["off"][k].equal(v) for k, v in found["four"].items())
    assert "images" not in board("ld", "zero")[0] and len(board("ld", "four")[0]["images"]) == 3
    assert not Path("log/off/ld").exists()


def test_a_resumed_run_shows_what_a_whole_one_shows(started, monkeypatch):
    assert call(monkeypatch, run_script, *LD, "note=whole") == 0
    plain = Trainer.step
    def stop(self, item):
        self.interrupt.requested = "SIGTERM" if self.position.global_step == 0 else None
        return plain(self, item)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert call(patch, run_script, *LD, "note=cut") == EXIT_STOPPED
    assert call(monkeypatch, run_script, *LD, "note=cut", "--resume") == 0
    whole, cut = weights("snapshot/whole/ld.pth"), weights("snapshot/cut/ld.pth")
    assert all(cut[k].equal(v) for k, v in whole.items())
    (whole, _), (cut, _) = board("ld", "whole"), board("ld", "cut")
    for tag in ("images", "confusion"):
        assert {step: image.encoded_image_string for step, image in whole[tag].items()} == {
            step: image.encoded_image_string for step, image in cut[tag].items()}


def test_generators_are_put_back():
    for reader in (lambda: torch.rand(3).tolist(), lambda: np.random.rand(3).tolist(), random.random):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        expected = reader()
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        with pytest.raises(KeyError), same_random_numbers(torch.device("cpu")):
            torch.rand(7), np.random.rand(7), random.random()
            raise KeyError
        assert reader() == expected


def test_an_image_that_cannot_be_read_is_left_out(started, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "grid", lambda found, cell: drawn.append(dict(found)) or Image.new("RGB", (90, 90)))
    cfg = load_config("tiny.yml", ["init_weight=snapshot/tiny/source_only.pth", "pictures=3"])
    trainer = Trainer(cfg)
    network, _ = build_model(cfg, torch.device("cpu"))
    trainer.samples[2].image.write_bytes(b"no image")
    trainer.samples[0].label.write_bytes(b"no label")
    trainer.pictures.show(0, network, None)
    assert [len(row) for row in drawn[0].values()] == [2, 2] and "ground truth" not in drawn[0]
    for sample in trainer.samples:
        sample.image.write_bytes(b"no image")
    trainer.pictures.show(1, network, None)
    assert len(drawn) == 1
    trainer.log.close(), trainer.folder.release()


# ---- drawing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [2, 19, 60, 255])
def test_a_matrix_is_drawn_cell_by_cell(count):
    rng = np.random.default_rng(count)
    shares = rng.random((count, count + 1)) ** 4
    shares[1] = np.nan
    names = [[f"{kind}{i}\n" for i in range(n)] for kind, n in (("r", count), ("c", count + 1))]
    picture = matrix(shares, *names, ("rows", "columns"))
    assert max(picture.size) < 1500
    side = max(4, min(30, 1200 // (count + 1)))
    left, top = picture.width - 8 - side * (count + 1), picture.height - 8 - side * count
    for r, c in ((0, 0), (1, 1), (count - 1, count), (0, count)):
        near = np.asarray(picture)[top + r * side + 1, left + c * side + 1]  # within the border, beside the number
        expected = (225,) * 3 if r == 1 else [255 + shares[r, c] * (full - 255) for full in (8, 48, 107)]
        assert np.abs(near - np.array(expected)).max() <= 1, (r, c)


def test_a_confusion_matrix_is_normalised_by_row(monkeypatch):
    seen = []
    monkeypatch.setattr(pictures, "matrix", lambda *given: seen.append(given))
    classes = class_set(load_config("config/ldbe_config.yml"))
    confusion = np.random.default_rng(0).integers(0, 1000, (19, 19))
    confusion[4] = 0
    confusion_picture(confusion, classes)
    shares, rows, columns, _ = seen[0]
    for r in range(19):
        for c in range(19):
            expected = confusion[r, c] / sum(confusion[r]) if r != 4 else np.nan
            assert shares[r, c] == pytest.approx(expected, nan_ok=True)
    assert rows == columns == classes.names


def test_unselected_pixels_are_dark_and_grey():
    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8), rng.random((9, 7)) < 0.5
    found = np.asarray(dimmed(Image.fromarray(pixels), mask))
    assert (found[mask] == pixels[mask]).all()
    dark = found[~mask]
    assert (dark == dark[:, :1]).all() and (dark[:, 0] <= 0.3 * pixels[~mask].mean(1) + 1).all()


@pytest.mark.parametrize("count, width", [(1, 50), (19, 300), (19, 1200), (255, 200)])
def test_a_legend_names_every_class_beside_its_colour(monkeypatch, count, width):
    said, plain = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text",
                        lambda self, at, text, **more: (said.append((at, text)), plain(self, at, text, **more))[1])
    palette = [(i, 255 - i, 7) for i in range(count)]
    picture = Image.new("RGB", (width, 40), "white")
    found = with_legend(picture, [f"class {i}\t" for i in range(count)], palette)
    assert found.width == width and found.height > 40
    assert [text for _, text in said] == [rf"class {i}\t" for i in range(count)]
    for (at, _), colour in zip(said, palette):
        assert found.getpixel((at[0] - 15, at[1])) == colour


def test_the_peak_of_memory_is_the_systems():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc")
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory(torch.device("cpu")) == {"memory": pytest.approx(peak / 1024, rel=0.02)}
    assert machine(torch.device("cpu"))["cores"] >= 1
