"""The report of a run as an HTML page: facts, numbers, runs that are not whole, hostile names, a browser's view."""
import base64
import dataclasses
import html.parser
import io
import json
import math
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_pipeline import TINY, all_stages, call, toy_world  # noqa: F401

import run as run_script
from dataset import loaders, segmentation
from dataset.class_sets import class_set
from model.build import build_model
from trainer import comparison, evaluate, report, report_data, report_page, report_pictures, verdict
from trainer.loop import Trainer
from utils import svg_plot
from utils.cli import EXIT_STOPPED
from utils.config import load_config, parse_config, to_yaml
from utils.config_keys import KEYS

STAGES = {"source_only": "source-only", "ld": "LD", "be": "LDBE"}
VOID = {"meta", "link", "img", "br", "hr", "input", "col", "wbr"}
FOREIGN = ("svg", "polyline", "polygon", "circle", "line", "text", "g", "title")  # may close themselves


class Page(html.parser.HTMLParser):
    """A page as a tree, checked while it is read: tags are closed in order, and nothing is loaded from outside."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.images, self.tags, self.tables, self.words, self.style = [], set(), [], [], [], [], ""
        assert text.startswith("<!DOCTYPE html>\n<html lang=\"en\">")
        self.feed(text)
        self.close()
        assert self.open == [] and not {"script", "iframe", "object", "embed", "link", "base", "form"} & {*self.tags}
        assert not re.search(r"url\(|@import|//", self.style)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes) and not any(name.startswith("on") for name in given), (tag, attributes)
        self.tags.append(tag)
        assert given.get("href", "#").startswith("#") and "srcset" not in given
        assert given.get("src", "data:").startswith("data:") and "url(" not in given.get("style", "")
        if tag == "br" and {"td", "th"} & {*self.open}:
            self.tables[-1][1][-1][-1] += " "
        if "id" in given:
            assert given["id"] not in self.ids
            self.ids.add(given["id"])
        if tag == "img":
            assert given["alt"].strip()
            self.images.append(given)
        if tag == "table":
            self.tables.append((given.get("id") or given.get("class"), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in FOREIGN and "svg" in self.open
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open[-3:])

    def handle_data(self, data):
        if "style" in self.open:
            self.style += data
        else:
            self.words.append(data)
        if {"td", "th"} & {*self.open}:
            self.tables[-1][1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def table(self, kind):
        """The rows of the tables of a kind, the cells' texts."""
        return [[[" ".join(cell.split()) for cell in row] for row in rows] for name, rows in self.tables
                if name == kind]


@pytest.fixture(scope="module")
def done(tmp_path_factory, toy_world):  # noqa: F811
    """A folder with the tiny world and all three stages done."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(toy_world, root / "world")
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "tensorboard": False, "pictures": 2}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        all_stages(patch)
    return root


@pytest.fixture
def inside(done, monkeypatch):
    monkeypatch.chdir(done)
    return done


@pytest.fixture
def own(done, tmp_path, monkeypatch):
    """The same in a copy, to be changed."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report.html"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(*words, note="tiny"):
    """The page that the command writes."""
    assert report.main([note, *words]) == 0
    return Page(Path("miou_result", note, "report.html").read_text(encoding="utf-8"))


def found(note="tiny", **more):
    return report_data.stages(load_config("tiny.yml", note=note, **more))


# ---- facts -----------------------------------------------------------------------------------------------------------

def test_the_facts_are_those_of_the_files(inside):
    stages = found()
    assert {s.name: s.title for s in stages} == STAGES and [s.name for s in stages] == list(STAGES)
    for stage in stages:
        events = [json.loads(line) for line in Path(f"log/tiny/{stage.name}.jsonl").read_text().splitlines()]
        assert stage.events == events and stage.finished and stage.missing == []
        assert stage.scores == json.loads(Path(f"miou_result/tiny/{stage.name}.json").read_text())
        assert stage.seconds == events[-1]["seconds"] > 0 and stage.interruptions == 0
        cost, = (e for e in events if e["event"] == "cost")
        assert events[-1] == cost and stage.memory("memory") == cost["memory"] > 100
        assert stage.memory("gpu_memory") is None
        machine, = (e for e in events if e["event"] == "machine")
        assert events[0] == machine and machine["versions"]["torch"] == torch.__version__.split("+")[0]
        decided = Path(f"snapshot/tiny/{stage.name}_verdict.json")
        assert stage.verdict == (json.loads(decided.read_text()) if decided.exists() else None)
    assert [s.verdict is None for s in stages] == [True, False, False]


def test_stages_come_after_those_whose_checkpoints_they_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, names = np.random.default_rng(0), [f"m{i}" for i in range(6)]
    for _ in range(20):
        order = [str(name) for name in rng.permutation(names)]
        shutil.rmtree("snapshot", ignore_errors=True)
        Path("snapshot/x").mkdir(parents=True)
        for before, name in zip([None, *order], order):
            ending = rng.choice(["", "_chosen"])
            weights = f"snapshot/x/{before}{ending}.pth" if before else rng.choice(["None", "elsewhere/m1.pth"])
            Path(f"snapshot/x/{name}.yml").write_text(f"note: x\nmethod: {name}.py:{name}\ninit_weight: {weights}\n")
        stages = report_data.stages(parse_config("note: x", "test"))
        assert [stage.name for stage in stages] == order
    Path("snapshot/x/m0.yml").write_text("note: x\ninit_weight: snapshot/x/m0.pth")  # of itself, and a circle
    Path("snapshot/x/m1.yml").write_text("note: x\ninit_weight: snapshot/x/m2.pth")
    Path("snapshot/x/m2.yml").write_text("note: x\ninit_weight: snapshot/x/m1.pth")
    assert len(report_data.stages(parse_config("note: x", "test"))) == 6


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["seed", "batch_size", "num_steps", "keep", "save_freq", "val_freq", "pictures",
                                        "power", "weight_decay", "momentum", "learning_rate"]), st.integers(1, 7)))
def test_the_settings_are_the_keys_that_differ_from_their_defaults(changed):
    changed = {name: value / 8 if KEYS[name].kind is float else value for name, value in changed.items()}
    cfg = parse_config(yaml.safe_dump({**changed, "mine": {"type": "folder", "data_dir": "a", "images": "b",
                                                           "classes": ["c", "d"], "input_size": [8, 16]}}), "test")
    stage = report_data.Stage("ld", "LD", yaml.safe_load(to_yaml(cfg)), "", [], None, {}, True, None, None)
    assert {name: value for name, value, _ in stage.settings} == {
        name: value for name, value in changed.items() if value != KEYS[name].default}
    assert all(default == KEYS[name].default for name, _, default in stage.settings)


def test_the_time_of_a_resumed_run_is_that_of_its_processes():
    def stage(*seconds):
        events = [{"event": "train", "step": i, "seconds": s} for i, s in enumerate(seconds)]
        return report_data.Stage("ld", "LD", {}, "", events, None, {}, True, None, None)
    assert stage().seconds is None
    assert stage(0.0, 1.0, 5.5).seconds == 5.5
    assert stage(0.0, 1.0, 5.5, 0.0, 2.0, 2.0, 0.25).seconds == 5.5 + 2.0 + 0.25


# ---- the page --------------------------------------------------------------------------------------------------------

def test_the_page_shows_the_numbers_of_the_files(inside, capsys):
    page = written()
    assert capsys.readouterr().out == "report: miou_result/tiny/report.html\n"
    scores = {s: json.loads(Path(f"miou_result/tiny/{s}.json").read_text()) for s in STAGES}
    protocols = list(scores["ld"])
    (head, *rows), = page.table("stages")
    assert head[:4] == ["stage", *(f"mIoU, % {p}" for p in protocols)]
    assert [row[0] for row in rows] == [*STAGES.values()]
    for row, (stage, of_stage) in zip(rows, scores.items()):
        assert row[1:4] == [f"{of_stage[p]['miou']:.1f}" for p in protocols]
        path = Path(f"snapshot/tiny/{stage}_verdict.json")
        decided = json.loads(path.read_text()) if path.exists() else None
        assert row[4:6] == ([decided["verdict"], decided["chosen"]] if decided else [report_page.DASH] * 2)
        if decided:
            assert decided["verdict"] in report_page.explained(next(s for s in found() if s.name == stage))
            assert re.search(rf"[Uu]se snapshot/tiny/{stage}_chosen.pth\.|; snapshot/tiny/{stage}_chosen.pth is a copy",
                             page.text)
    iou = page.table("iou")
    assert len(iou) == len(protocols)
    for table, protocol in zip(iou, protocols):
        assert [row[0] for row in table[1:]] == [*scores["ld"][protocol]["iou"], "mIoU"]
        for name, *cells in table[1:-1]:
            before, middle, after = (scores[s][protocol]["iou"][name] for s in STAGES)
            expected = [before, middle, None if None in (before, middle) else middle - before,
                        after, None if None in (middle, after) else after - middle]
            for cell, value in zip(cells, expected, strict=True):
                assert cell == report_page.DASH if value is None else (
                    abs(float(cell.replace(report_page.MINUS, "-")) - value) < 0.0501)
    ld, be = (json.loads(Path(f"snapshot/tiny/{s}_verdict.json").read_text()) for s in ("ld", "be"))
    for decided, shares, candidates in zip((ld, be), page.table("shares"), page.table("candidates")):
        of = {c["name"]: c for c in decided["candidates"]}
        columns = [of[name]["histogram"] for name in ("untouched", decided["last"], decided["chosen"])]
        assert [row[1:4] for row in shares[1:]] == [[f"{100 * x:.2f}" for x in row] for row in zip(*columns)]
        assert [row[0] for row in candidates[1:]] == list(of)
        for row in candidates[1:]:
            assert row[2:-1] == [report_page.number(of[row[0]]["scores"][name], 3) for name in candidates[0][2:-1]]
            assert ("chosen" in row[1]) == (row[0] == decided["chosen"])


def test_the_pictures_are_the_networks_predictions(inside):
    page, cfg = written(), load_config("tiny.yml")
    drawn = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i["src"].partition(",")[2])))) for i in page.images]
    alts = [image["alt"] for image in page.images]
    assert all((int(i["width"]), int(i["height"])) == d.shape[1::-1] for i, d in zip(page.images, drawn))
    classes = class_set(cfg)
    samples = comparison.spread(segmentation.find_samples("cityscapes", cfg.target_data, "val"), 2)
    for stage, title in STAGES.items():
        network, _ = build_model(cfg, torch.device("cpu"), f"snapshot/tiny/{stage}.pth")
        loader = loaders.whole_image_loader(cfg, "cityscapes", samples, False)
        for sample, (_, prediction) in zip(samples, evaluate.predictions(network, loader, torch.device("cpu"))):
            expected = np.array(classes.palette, np.uint8)[prediction.numpy()]
            assert (drawn[alts.index(f"{title}: {sample.name}")] == expected).all()
    rounds = [alt for alt in alts if "\nround" in alt]
    assert len(rounds) == 2 * 2 * 2  # stages, rounds, images
    for alt in rounds:
        title, index, name = re.fullmatch(r"(\w+)\nround (\d): (.*)", alt).groups()
        stage = next(name for name, known in STAGES.items() if known == title)
        label = np.asarray(Image.open(f"plabel/tiny/{stage}/round{index}/{name}.png"))
        expected = np.array([*classes.palette, *[(0, 0, 0)] * (256 - len(classes.palette))], np.uint8)[label]
        assert (drawn[alts.index(alt)] == expected).all()


def test_the_network_that_the_first_stage_started_from_is_shown_too(inside):
    cfg = load_config("tiny.yml")
    adapted = [stage for stage in report_data.stages(cfg) if stage.name != "source_only"]
    table = report_pictures.tables(cfg, adapted)[0][0]
    assert [caption for caption, _ in table.rows][:3] == ["image", "source-only", "LD"]


def test_the_pictures_are_as_many_as_the_key_says_and_their_absence_has_a_reason(own):
    decided = found()[2].verdict  # image, three stages, perhaps the chosen one, truth; image, four rounds, truth
    assert len(written("pictures=1").images) == 5 + (decided["chosen"] != decided["last"]) + 6
    assert (page := written("pictures=0")).images == [] and "left out, as pictures is 0" in page.text
    shutil.rmtree("world")
    assert (page := written()).images == [] and "cannot be drawn: cityscapes.data_dir: no folder" in page.text
    assert len(page.table("stages")[0]) == 4


def test_every_plot_is_well_formed_and_has_its_legend(inside):
    text = (written(), Path("miou_result/tiny/report.html").read_text())[1]
    plots = re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL)
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(plots) == len(figures) == 3 + 2 * (4 + 3)
    for plot, figure in zip(plots, figures):
        tree = ElementTree.fromstring(plot)
        series = {element.get("class") for element in tree.iter("g")}
        assert tree.get("aria-label") and figure.count("<li>") >= len(series) >= 1


def test_without_labels_of_the_target_the_page_is_whole_and_has_no_miou(own, monkeypatch):
    shutil.rmtree("world/cityscapes/gtFine")
    assert call(monkeypatch, run_script, "method=ld", "init_weight=snapshot/tiny/source_only.pth", "note=bare") == 0
    page = written("--config", "tiny.yml", note="bare")
    assert page.table("iou") == [] and "There is no mIoU" in page.text and "classes" not in page.ids
    (_, row), = page.table("stages")
    assert row[0] == "LD" and row[1] in ("keep", "doubtful", "reject")
    assert {image["alt"].partition(":")[0] for image in page.images} == {
        "image", "source-only", "LD", "LD chosen", "LD\nround 0", "LD\nround 1"} - (
        set() if found("bare")[0].verdict["chosen"] != found("bare")[0].verdict["last"] else {"LD chosen"})


def test_an_interrupted_run_says_so_and_a_resumed_one_counts_its_processes(own, monkeypatch):
    plain, words = Trainer.step, ("method=ld", "init_weight=snapshot/tiny/source_only.pth", "note=cut", "epochs=2")
    def stop(self, item):
        self.interrupt.requested = "SIGTERM" if self.position.global_step == 5 else None
        return plain(self, item)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert call(patch, run_script, *words) == EXIT_STOPPED
    page = written("--config", "tiny.yml", note="cut")
    assert "ld: the stage has not run to its end" in page.text and "LD (unfinished)" in page.text
    assert "So far, as the stage has not run to its end" in page.text  # after the first round
    assert page.table("stages")[0][1][0] == "LD unfinished"
    with open("log/cut/ld.jsonl", "a") as log:
        log.write('{"event": "train", "st')  # as a process that was killed leaves it
    text = written("--config", "tiny.yml", note="cut").text
    assert "ld.jsonl: 1 of " in text and "cannot be read and are left out" in text
    assert call(monkeypatch, run_script, *words, "--resume") == 0
    page = written("--config", "tiny.yml", note="cut")
    assert "unfinished" not in page.text and "What is missing" not in page.text
    assert "resumed 1\N{MULTIPLICATION SIGN}" in page.table("stages")[0][1][-3]
    assert "LD, LD from step 6" in page.text  # the same machine


LOSSES = ("snapshot/tiny/ld.yml", "log/tiny/ld.jsonl", "miou_result/tiny/ld.json", "snapshot/tiny/ld.pth",
          "snapshot/tiny/ld_verdict.json", "snapshot/tiny/ld_chosen.pth", "plabel/tiny/ld/round0", "snapshot/tiny",
          "log/tiny", "plabel", "miou_result/tiny")


@pytest.mark.parametrize("lost", LOSSES)
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_whatever_is_missing_or_damaged_there_is_a_page(own, lost, how):
    path = Path(lost)
    if how == "gone":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif path.is_dir():
        for file in path.rglob("*.*"):
            if file.is_file():
                file.write_bytes(b"\xff{\0")
    else:
        path.write_bytes(b"\xff{\0")
    drawn_from = path.suffix == ".pth" or path.name in ("round0", "plabel")
    page = written("--config", "tiny.yml", f"pictures={int(drawn_from)}")
    assert len(page.table("stages")[0]) == 4
    said = {"ld.yml": "The configuration cannot be shown", "ld.jsonl": "ld.jsonl", "ld.pth": "ld.pth",
            "tiny": "missing", "ld.json": "ld.json"}.get(path.name if path.parent.name == "tiny" else "", "")
    assert said in page.text or how == "gone" and path.name == "ld.json"


HOSTILE = ["<script>alert(1)</script>", "a&amp;b", "\"quoted\" 'name'", "{{ 7 * 7 }}{% raw %}", "\u8def \u2603",
           "x</td>", "url(http://x.example/)"]


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The files of a finished run whose names are all hostile; there is no data."""
    monkeypatch.chdir(tmp_path)
    note = "<b>&\"'n"
    cfg = parse_config(yaml.safe_dump({
        "note": note, "target": "mine", "source": "mine", "num_classes": len(HOSTILE), "init_weight": "<i>&.pth",
        "mine": {"type": "folder", "data_dir": "<u>", "images": "a", "classes": HOSTILE, "input_size": [32, 16]}}), "t")
    iou = {name: 10.0 * i for i, name in enumerate(HOSTILE)}
    scores = {"<em>all</em>": {"miou": 30.0, "iou": iou, "unseen": []}}
    shares = [1 / len(HOSTILE)] * len(HOSTILE)
    candidates = [{"name": name, "step": i, "trained": i > 0, "drifted": False, "lost": 0, "collapsed": False,
                   "histogram": shares, "scores": {"trust": 0.5, "<s>": None}} for i, name in
                  enumerate(("untouched", "step 1 <b>"))]
    decided = {"verdict": "keep", "chosen": "step 1 <b>", "why": "<i>a -> b</i>", "last": "step 1 <b>",
               "collapsed": False, "candidates": candidates}
    events = [{"event": "machine", "step": 0, "seconds": 0.0, "versions": {"<torch>": "1&2"}, "system": "<os>",
               "processor": "\x1b[1m&", "cores": 2, "device": "<d>"},
              {"event": "pseudo_label", "step": 0, "seconds": 0.5, "round": 0, "coverage": {"all": 0.5, **iou},
               "threshold": dict.fromkeys(HOSTILE, 0.5)},
              {"event": "train", "step": 1, "seconds": 1.0, "loss": {"<total>": 1.0, "b&": 2.0}, "lr": {"<x>": 1e-5}},
              {"event": "val", "step": 1, "seconds": 1.0, **scores}]
    files = {"snapshot/{}/ld.yml": to_yaml(cfg), "snapshot/{}/ld_verdict.json": json.dumps(decided),
             "snapshot/{}/ld.state/finished": "", "miou_result/{}/ld.json": json.dumps(scores),
             "log/{}/ld.jsonl": "\n".join(map(json.dumps, events))}
    for path, text in ((path.format(note), text) for path, text in files.items()):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    return note


def test_hostile_names_are_shown_as_they_are(hostile):
    page = written(note=hostile)
    (_, *rows), = page.table("iou")
    assert [row[0] for row in rows] == [*HOSTILE, "mIoU"]
    for words in (hostile, "<em>all</em>", "<i>a", "<torch> 1&2", r"\x1b[1m&", "b&", "<total>", "step 1 <b>",
                  "<i>&.pth"):
        assert words in page.text, words
    assert not {"b", "u", "em", "s", "d", "os", "torch", "total"} & {*page.tags}
    assert "its checkpoint" in page.text and "mine.data_dir: no folder '<u>'" in page.text


def test_names_that_no_encoding_can_write_do_not_end_the_page(hostile):
    path = Path(f"log/{hostile}/ld.jsonl")
    path.write_text(path.read_text().replace("<os>", "\\udcff"))
    assert r"\udcff" in written(note=hostile).text


# ---- the command -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words, said", [
    (["nothing"], "note: no run 'nothing'"), (["nothing"], "there are 'tiny'"), (["a/b"], "note: 'a/b'"),
    (["tiny", "--output", "world"], "--output: 'world'"), (["tiny", "--output", "page.txt"], "page.txt"),
    (["tiny", "pictures=many"], "pictures"), (["tiny", "pictur=1"], "did you mean 'pictures'"),
    (["tiny", "--config", "none.yml"], "none.yml")])
def test_what_a_user_gets_wrong_is_one_line(inside, capsys, words, said):
    before = sorted(Path().rglob("*"))
    assert report.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert sorted(Path().rglob("*")) == before


def test_the_page_goes_where_it_is_told_and_the_note_names_its_own_configuration(own, capsys):
    os.rename("snapshot", "other")
    assert report.main(["tiny", "snapshot=other", "--output", "new/page.html", "pictures=0"]) == 0
    page = Page(Path("new/page.html").read_text(encoding="utf-8"))
    assert not Path("miou_result/tiny/report.html").exists() and len(page.table("settings")) == 3
    assert "deeplab" in page.text  # of all keys
    report.main(["tiny", "--config", "tiny.yml"])  # whose snapshot is ./snapshot: the log alone is left
    assert "The configuration cannot be shown: snapshot/tiny/be.yml" in Page(
        Path("miou_result/tiny/report.html").read_text(encoding="utf-8")).text


# ---- plots -----------------------------------------------------------------------------------------------------------

@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_round_and_span_the_range(low, length, count):
    high = low + length
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return
    found_ = svg_plot.ticks(low, high, count)
    steps = np.diff(found_)
    slack = 1e-6 * steps.max()
    assert found_[0] <= low + slack and found_[-1] >= high - slack and 2 <= len(found_) <= count + 2
    assert found_[1] > low - slack and found_[-2] < high + slack  # none is superfluous
    assert np.allclose(steps, steps[0], rtol=1e-4)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0001))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=30), min_size=1, max_size=9))
def test_points_are_placed_in_proportion(values):
    series = {f"s{i}": list(enumerate(v)) for i, v in enumerate(values)}
    tree = ElementTree.fromstring(svg_plot.lines(series, "title", "x", "y"))
    placed = [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in tree.iter("polyline")]
    assert [len(p) for p in placed] == [len(v) for v in values]
    given_, drawn = np.concatenate([np.array(p) for p in series.values()]), np.concatenate(placed)
    width, height = map(float, tree.get("viewBox").split()[2:])
    assert (drawn >= 0).all() and (drawn <= (width, height)).all()
    for axis, sign in ((0, 1), (1, -1)):
        spread_ = np.ptp(given_[:, axis])
        if spread_ > 1e-3:
            a, b = np.polyfit(given_[:, axis], drawn[:, axis], 1)
            assert sign * a > 0 and np.abs(a * given_[:, axis] + b - drawn[:, axis]).max() < 0.2


def test_dots_stand_at_their_values_and_none_has_no_dot():
    tree = ElementTree.fromstring(svg_plot.dots({"a": [0.0, 1.0], "b<": [0.25, None]}, ["r", "s"], "t", "x"))
    titles = [g.findtext("title") for g in tree.iter("g")]
    assert titles == ["a, r: 0.000", "a, s: 1.000", "b<, r: 0.250"]
    (x0, y0), (x2, y2) = [(float(c.get("cx")), float(c.get("cy"))) for c in tree.iter("circle")]
    right = [float(p.split(",")[0]) for p in next(tree.iter("polygon")).get("points").split()]
    assert x2 - x0 == pytest.approx(((min(right) + max(right)) / 2 - x0) / 4, abs=0.2) and y2 > y0


@pytest.mark.parametrize("seconds, text", [(None, report_page.DASH), (0, "0 s"), (59.4, "59 s"),
                                           (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"),
                                           (90061, "25 h 01 min")])
def test_durations(seconds, text):
    assert report_page.duration(seconds) == text


@pytest.mark.parametrize("value, text", [(None, report_page.DASH), (0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"),
                                         (0.06, "+0.1"), (-3.21, f"{report_page.MINUS}3.2")])
def test_changes_have_a_sign(value, text):
    assert report_page.signed(value) == text


@pytest.mark.parametrize("level", verdict.LEVELS)
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_verdict_is_a_sentence_that_says_which_file_to_use(level, collapsed):
    decided = {"verdict": level, "chosen": "x", "last": "y", "why": "a -> b", "collapsed": collapsed, "candidates": []}
    stage = report_data.Stage("ld", "LD", {}, "", [], decided, {}, True, Path("s/ld.pth"), Path("s/ld_chosen.pth"))
    said, sentence = report_page.explained(stage)
    advice = {"keep": "Use s/ld_chosen.pth.", "doubtful": "If its pictures convince you, use s/ld_chosen.pth.",
              "reject": "Keep that network; s/ld_chosen.pth is a copy of it."}
    assert said == level and advice[level] in sentence and ("do not use s/ld.pth" in sentence) == collapsed
    _, sentence = report_page.explained(dataclasses.replace(stage, verdict=None))
    assert sentence == "No verdict: its file is gone."


# ---- in a browser ----------------------------------------------------------------------------------------------------

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]
CONTRASTS = """() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parts(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (parts(c).length < 4 || parts(c)[3] === 1) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('body *')].filter(e => !e.closest('style') && e.checkVisibility() &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
      const style = getComputedStyle(e), a = light(e.namespaceURI.endsWith('svg') ? style.fill : style.color),
            b = light(behind(e));
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)];
    }).sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.fixture(scope="module")
def browser():
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if program is None:
        pytest.skip("no Chromium on PATH, nor named by CHROMIUM")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_the_page(browser, inside, width, scheme):
    parsed = written()
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url[:80])
            if not request.url.startswith(("file:", "data:image/png")) else None)
    page.goto(Path("miou_result/tiny/report.html").resolve().as_uri())
    for opened in (False, True):
        page.evaluate("open => document.querySelectorAll('details').forEach(d => d.open = open)", opened)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ratio, text = page.evaluate(CONTRASTS)
        assert ratio >= 4.5, text
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator("img").count() == len(parsed.images) > 10
    assert page.title() == "tiny: report of the run" and page.locator("main h2").count() >= 7
    rows = page.locator("#stages tbody tr")
    assert rows.count() == 3
    scores = json.loads(Path("miou_result/tiny/be.json").read_text())
    assert rows.nth(2).locator("td").nth(0).inner_text() == f"{scores['19 classes']['miou']:.1f}"
    assert page.locator("table.iou").first.locator("tbody tr").count() == 20
    for plot in page.locator("svg.plot").all():
        box = plot.bounding_box()
        assert 250 <= box["width"] <= width and box["height"] > 150
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == (scheme == "dark")
    assert complaints == []
    context.close()
