"""Labels with other classes than the network: protocols in the configuration, scores, tables, figures, accuracy."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import eval as eval_script
import run as run_script
import run_so as run_so_script
from dataset import check, segmentation
from dataset.class_sets import class_set
from dataset.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS, IGNORE_INDEX, Classes, ClassSet, Protocol, own_class_set
from dataset.toy import write_toy_world
from model.deeplabv2 import DeepLabV2
from trainer.comparison import UNCLAIMED_COLOUR, palettes
from trainer.evaluate import means, protocol_scores, score_table, unseen_classes
from utils.cli import run_stage
from utils.config import differences, parse_config, to_yaml
from utils.errors import ConfigError
from utils.metrics import class_iou, confusion_matrix, grouped_iou, right_predictions
from utils.visualize import IGNORE_COLOUR, colourise, grid

ROOT = Path(__file__).parent.parent
CAMVID = {"sky": ["sky"], "building": ["building", "wall"], "pole": ["pole"], "road": ["road"],
          "pavement": ["sidewalk"], "tree": ["vegetation", "terrain"], "sign": ["sign", "light"], "fence": ["fence"],
          "car": ["car", "truck", "bus", "train"], "pedestrian": ["person"], "bicyclist": ["rider", "bicycle"]}
SECTION = {"type": "folder", "data_dir": "world/cityscapes", "input_size": [64, 32],
           "images": "leftImg8bit/{split}/{name}_leftImg8bit.png",
           "labels": "gtFine/{split}/{name}_gtFine_labelIds.png",
           "classes": list(CAMVID), "protocols": {"CamVid 11": CAMVID},
           "label_ids": {label_id: list(CAMVID).index(k) for label_id, c in CITYSCAPES_IDS.items()
                         for k, members in CAMVID.items() if CITYSCAPES_CLASSES[c] in members}}


def config(section=None, source=None, **keys):
    """A configuration whose target is `section` (changes to SECTION; None leaves a key out), its text first."""
    target = {k: v for k, v in {**SECTION, **(section or {})}.items() if v is not None}
    tree = {"note": "t", "source": "other" if source else "mine", "target": "mine", "num_classes": 19, "mine": target,
            **({"other": source} if source else {}), **keys}
    text = yaml.safe_dump(tree, sort_keys=False)
    return text, parse_config(text, "c.yml")


def refused(*args, **keys):
    with pytest.raises(ConfigError) as error:
        class_set(config(*args, **keys)[1])
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- numbers ---------------------------------------------------------------------------------------------------------

def random_groups(rng, classes, groups):
    """Disjoint, non-empty groups of some of the classes, and classes that are in none of them."""
    order = rng.permutation(classes)[: rng.integers(groups, classes + 1)]
    place = np.concatenate([np.arange(groups), rng.integers(groups, size=len(order) - groups)])
    return tuple(tuple(order[place == k].tolist()) for k in range(groups))


def counted(label, predicted, labelled, groups):
    """IoU of each class, and right and all pixels of each predicted class, by looking at every pixel."""
    kind = {c: k for k, group in enumerate(labelled) for c in group}
    called = {c: k for k, group in enumerate(groups) for c in group}
    both, either = [0] * len(groups), [0] * len(groups)
    right, every = {}, {}
    for t, p in zip(label, predicted):
        if t in kind:
            same = called.get(p) == kind[t]
            right[p], every[p] = right.get(p, 0) + same, every.get(p, 0) + 1
            both[kind[t]] += same
            for k in {kind[t], called.get(p)} - {None}:
                either[k] += 1
    return [100 * b / e if e else None for b, e in zip(both, either)], right, every


@pytest.mark.parametrize("seed", range(30))
def test_scores_of_random_protocols_equal_counting_pixels(seed):
    rng = np.random.default_rng(seed)
    labels, classes = rng.integers(2, 24, 2)
    groups = int(rng.integers(1, min(labels, classes) + 1))
    labelled, predicted = random_groups(rng, labels, groups), random_groups(rng, classes, groups)
    label, guess = rng.integers(labels, size=600), rng.integers(classes, size=600)
    label[rng.random(600) < 0.2] = IGNORE_INDEX
    label[np.isin(label, labelled[0])] = IGNORE_INDEX  # a class that no label shows
    if seed % 2:  # nor any prediction
        guess[np.isin(guess, predicted[0])] = next((c for c in range(classes) if c not in predicted[0]), 0)
    confusion = confusion_matrix(torch.from_numpy(label), torch.from_numpy(guess), int(classes), int(labels))
    assert confusion.shape == (labels, classes) and confusion.sum() == (label != IGNORE_INDEX).sum()
    iou, right, every = counted(label.tolist(), guess.tolist(), labelled, predicted)
    per_class, mean = grouped_iou(confusion, labelled, predicted)
    assert per_class == [None if e is None else pytest.approx(e, rel=1e-12) for e in iou]
    there = [e for e in iou if e is not None]
    assert mean == (pytest.approx(sum(there) / len(there), rel=1e-12) if there else None)
    found = right_predictions(confusion, labelled, predicted)
    assert [t.tolist() for t in found] == [[d.get(c, 0) for c in range(classes)] for d in (right, every)]
    names = tuple(f"k{k}" for k in range(groups))
    own = Classes(tuple(f"l{c}" for c in range(labels)), ((0, 0, 0),) * labels)
    classes_ = ClassSet(tuple(f"n{c}" for c in range(classes)), ((0, 0, 0),) * classes, own,
                        {"p": Protocol(names, labelled, predicted)})
    scores = protocol_scores(confusion, classes_)["p"]
    assert list(scores["iou"].values()) == per_class and list(scores["iou"]) == list(names)
    assert scores["unseen"] == [n for n, g in zip(names, labelled) if not np.isin(label, g).any()] and scores["unseen"]


@pytest.mark.parametrize("seed", range(5))
def test_shared_classes_are_scored_as_ever(seed):
    """`class_iou` by its definition: other rows are ignored, other columns are false negatives."""
    rng = np.random.default_rng(seed)
    confusion = torch.from_numpy(rng.integers(0, 2**40, (19, 19)))
    members = tuple(rng.permutation(19)[: rng.integers(1, 20)].tolist())
    kept = torch.zeros(19, 19, dtype=torch.float64)
    kept[list(members)] = confusion[list(members)].double()
    union = kept.sum(0) + kept.sum(1) - kept.diagonal()
    expected = [100 * (kept[c, c] / union[c]).item() for c in members]
    assert class_iou(confusion, members) == (expected, sum(expected) / len(expected))


def test_a_matrix_of_another_shape_is_refused():
    classes = class_set(config()[1])
    assert protocol_scores(torch.ones(11, 19, dtype=torch.int64), classes)
    for shape in ((19, 19), (19, 11), (12, 19)):
        with pytest.raises(ValueError, match="11 labelled and 19 predicted"):
            protocol_scores(torch.ones(shape, dtype=torch.int64), classes)


# ---- what the configuration says -------------------------------------------------------------------------------------

def test_a_protocol_in_numbers():
    classes = class_set(config()[1])
    assert classes.names == CITYSCAPES_CLASSES and classes.labels.names == tuple(CAMVID)
    assert list(classes.protocols) == ["CamVid 11"] and classes.main.names == tuple(CAMVID)
    assert classes.main.labelled == tuple((k,) for k in range(11))
    assert [[CITYSCAPES_CLASSES[c] for c in group] for group in classes.main.predicted] == list(CAMVID.values())


def test_the_order_of_a_protocol_is_free_and_labels_may_be_left_out():
    classes = class_set(config({"protocols": {"few": {"car": ["bus", "car"], "sky": ["sky"]}}})[1])
    assert classes.main == Protocol(("car", "sky"), ((8,), (0,)), ((15, 13), (10,)))


@pytest.mark.parametrize("section, source, count, expected", [
    ({}, None, 19, CITYSCAPES_CLASSES), ({"network_classes": list("abcdefg")}, None, 7, tuple("abcdefg")),
    ({"classes": ["x", "y"]}, {**SECTION, "classes": ["a", "b", "c"], "label_ids": None}, 3, ("a", "b", "c")),
    ({"classes": ["x", "y", "z"]}, {**SECTION, "classes": ["a", "b", "c"], "label_ids": None}, 3, ("a", "b", "c")),
    ({"classes": ["x", "y"], "network_classes": list("pqr")},
     {**SECTION, "classes": ["a", "b", "c"], "label_ids": None}, 3, ("p", "q", "r")),
    ({"classes": ["x", "y", "z"]}, None, 3, ("x", "y", "z"))])
def test_whose_classes_the_network_has(section, source, count, expected):
    first = section.get("classes", SECTION["classes"])[0]
    section = {**section, "label_ids": None, "protocols": {"p": {first: [expected[0]]}}}
    assert class_set(config(section, source, num_classes=count)[1]).names == expected


def test_labels_with_the_networks_classes_keep_their_protocols_and_get_more():
    text = "target: cityscapes\ncityscapes: {protocols: {both: {stuff: [road, sky], car: [car, bus]}}}\n"
    plain, classes = class_set(parse_config("", "-")), class_set(parse_config(text, "-"))
    assert classes.labels == plain.labels and classes.names == plain.names and classes.palette == plain.palette
    assert list(classes.protocols) == ["19 classes", "16 classes", "13 classes", "both"]
    assert {**classes.protocols, "both": 0} == {**plain.protocols, "both": 0} and classes.main == plain.main
    assert classes.protocols["both"] == Protocol(("stuff", "car"), ((0, 10), (13, 15)), ((0, 10), (13, 15)))


def test_street_labels_scored_for_a_network_with_other_classes():
    protocols = {"mine": {"road": ["ground"], "sky": ["up"]}}
    cfg = parse_config(yaml.safe_dump({
        "source": "cityscapes", "num_classes": 2,
        "cityscapes": {"protocols": protocols, "network_classes": ["up", "ground"]}}), "-")
    classes = class_set(cfg)
    assert classes.labels.names == CITYSCAPES_CLASSES and classes.names == ("up", "ground")
    assert classes.main == Protocol(("road", "sky"), ((0,), (10,)), ((1,), (0,)))
    table = segmentation.label_table(cfg.target_data, 2)
    assert {i: int(table[i]) for i in CITYSCAPES_IDS} == CITYSCAPES_IDS


def test_configurations_read_back_and_other_protocols_are_another_run():
    for section in ({}, {"network_classes": list(CITYSCAPES_CLASSES)}):
        _, cfg = config(section)
        assert parse_config(to_yaml(cfg), "-") == cfg and class_set(parse_config(to_yaml(cfg), "-")) == class_set(cfg)
    _, other = config({"protocols": {"CamVid 11": {**CAMVID, "fence": ["wall"], "building": ["building"]}}})
    assert [line.split(":")[0] for line in differences(cfg, other)] == ["mine.protocols", "mine.network_classes"]
    word = "mine.protocols={two: {sky: [sky], car: [car, bus]}}"
    assert class_set(parse_config(config()[0], "-", [word])).main.names == ("sky", "car")


THREE = {"classes": ["a", "b", "c"], "label_ids": None, "protocols": None}


@pytest.mark.parametrize("section, keys, said", [
    ({"protocols": {"p": {"sky": ["skye"]}}}, {}, "mine.protocols: p: sky: the network has no class 'skye' (did you "
     "mean 'sky'?); the 19 street classes are road, sidewalk,"),
    ({"protocols": {"p": {"skyy": ["sky"]}}}, {}, "mine.protocols: p: the labels have no class 'skyy' (did you mean "
     "'sky'?); they have sky, building,"),
    ({"protocols": {"p": {"sky": ["sky"], "tree": ["sky"]}}}, {}, "p: 'sky' is listed under 'sky' and under 'tree'"),
    ({"protocols": {"p": {"car": ["bus", "bus"]}}}, {}, "p: 'bus' is listed under 'car' and under 'car'"),
    ({"protocols": {"p": {"sky": []}}}, {}, "mine.protocols: expected mapping of text to mapping of text to list of "
     "text such as {two: {road: [road], other: [sky, car]}}"),
    ({"protocols": {"p": {"sky": "sky"}}}, {}, "mine.protocols: expected mapping of text"),
    ({"protocols": {"p": {}}}, {}, "mine.protocols: expected mapping of text"),
    ({"protocols": {}}, {}, "mine.protocols: expected mapping of text"),
    ({"protocols": [1]}, {}, "mine.protocols: expected mapping of text"),
    ({"protocols": {"step": CAMVID}}, {}, "mine.protocols: 'step' is the name of something else"),
    ({"protocols": None}, {}, "mine.classes: 11 names for num_classes 19: mine.protocols must say"),
    ({"network_classes": ["a"]}, {}, "mine.network_classes: 1 names for num_classes 19"),
    ({"network_classes": [*CITYSCAPES_CLASSES[1:], "sky"]}, {}, "mine.network_classes have two classes 'sky'"),
    ({"classes": ["sky", "sky"], "label_ids": None}, {}, "the labels of mine have two classes 'sky'"),
    ({"protocols": None, "classes": list(CITYSCAPES_CLASSES), "network_classes": list(CITYSCAPES_CLASSES)}, {},
     "mine.network_classes: has no effect without mine.protocols"),
    ({}, {"num_classes": 20}, "mine.network_classes: missing: protocols name the network's classes, and nothing says "
     "what its 20 are"),
    ({"label_ids": {1: 11}}, {}, "mine.label_ids: 1: 11: expected an id in 0..65535 and a train id in 0..10, or 255"),
    ({"palette": [[1, 2, 3]] * 19}, {}, "mine.palette: expected 11 colours"),
    ({"classes": [str(c) for c in range(256)], "label_ids": None}, {}, "mine.classes: 256 names, at most 255"),
    ({"classes": list(CITYSCAPES_CLASSES), "label_ids": None, "protocols": {"19 classes": {"a": ["sky"]}}}, {},
     "'19 classes' is the name of something else"),
    ({}, {"source": {**SECTION, **THREE}}, "other.classes: 3 names for num_classes 19: the source's labels"),
    (THREE, {"num_classes": 3, "source": {**SECTION, **THREE, "classes": ["a", "b", "d"]}},
     "mine.classes: differ from other.classes; both data sets must have the same classes, or mine.protocols say"),
])
def test_mistakes_name_the_key(section, keys, said):
    assert said in refused(section, **keys)


def test_what_a_mistake_names_of_the_network_is_said_with_its_origin():
    few = {"label_ids": None, "protocols": {"p": {"sky": ["x"]}}}
    said = refused({**few, "network_classes": ["a", "b"]}, num_classes=2)
    assert "mine.network_classes are a, b" in said
    said = refused(few, {**SECTION, **THREE}, num_classes=3)
    assert "the classes of the source, other, are a, b, c" in said
    assert "the classes of mine are sky, building" in refused({**few, "network_classes": None}, num_classes=11)


def test_the_example_of_the_documentation():
    text = (ROOT / "docs/class-sets.md").read_text(encoding="utf-8")
    camvid, street = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    classes = class_set(parse_config(camvid, "camvid.yml"))
    assert len(classes) == 19 and len(classes.labels) == 11 and len(classes.main.names) == 11
    left_out = set(range(19)) - {c for group in classes.main.predicted for c in group}
    assert [CITYSCAPES_CLASSES[c] for c in left_out] == ["motorcycle"]
    assert list(class_set(parse_config(street, "-")).protocols)[-1] == "categories"
    assert re.sub(r"\s+", " ", ", ".join(CITYSCAPES_CLASSES)) in re.sub(r"\s+", " ", text)


# ---- tables and figures ----------------------------------------------------------------------------------------------

def test_the_table_has_a_column_a_protocol_and_a_row_a_class():
    text = "cityscapes: {protocols: {a long name: {road: [road, sidewalk], rest: [sky]}}}"
    for cfg, rows in ((config()[1], list(CAMVID)), (parse_config(text, "-"), [*CITYSCAPES_CLASSES, "rest"])):
        classes = class_set(cfg)
        scores = protocol_scores(torch.ones(len(classes.labels), 19, dtype=torch.int64), classes)
        lines = score_table({"LD": scores, "LDBE": scores}, classes).splitlines()
        assert [line.split()[0] for line in lines[3: 3 + len(rows)]] == rows and len({len(line) for line in lines}) == 1
        assert lines[1].count(list(classes.protocols)[-1]) == 2 and " " + list(classes.protocols)[-1] in lines[1]
        road = next(line for line in lines if line.startswith("road ")).split()[1:]
        assert road == 2 * [f"{s['iou']['road']:.1f}" for s in scores.values() if "road" in s["iou"]]


def test_a_mean_over_fewer_classes_names_its_protocol_and_unseen_labels_are_named_once():
    classes = class_set(config({"protocols": {"CamVid 11": CAMVID, "two": {"sky": ["sky"], "car": ["car"]}}})[1])
    confusion = torch.zeros(11, 19, dtype=torch.int64)
    confusion[0, 10] = confusion[1, 2] = 5
    scores = protocol_scores(confusion, classes)
    assert means(scores) == "100.00 (CamVid 11: 2 of 11 classes), 100.00 (two: 1 of 2 classes)"
    assert scores["two"]["unseen"] == ["car"] and unseen_classes(scores, classes) == list(CAMVID)[2:]
    both = class_set(parse_config("cityscapes: {protocols: {p: {rest: [sky, car], road: [road]}}}", "-"))
    scores = protocol_scores(torch.diag(torch.tensor([1] + [0] * 18)), both)
    assert unseen_classes(scores, both) == list(CITYSCAPES_CLASSES[1:]) and scores["p"]["unseen"] == ["rest"]


def test_the_colours_of_a_figure():
    classes = class_set(config()[1])
    (of_labels, of_network), = palettes(classes, ("CamVid 11",)).values()
    assert tuple(of_labels) == classes.labels.palette and len(set(of_labels)) == 11
    for c, name in enumerate(CITYSCAPES_CLASSES):
        kind = next((k for k, members in CAMVID.items() if name in members), None)
        assert of_network[c] == (of_labels[list(CAMVID).index(kind)] if kind else UNCLAIMED_COLOUR)
    few = class_set(config({"protocols": {"few": {"car": ["car"]}}})[1])
    (of_labels, of_network), = palettes(few, ("few",)).values()
    assert of_labels == [IGNORE_COLOUR] * 8 + [few.labels.palette[8]] + [IGNORE_COLOUR] * 2
    assert [c for c, colour in enumerate(of_network) if colour != UNCLAIMED_COLOUR] == [13]
    street = class_set(parse_config("cityscapes: {protocols: {p: {rest: [sky, car]}}}", "-"))
    full, merged = palettes(street, ("p",)).values()
    assert tuple(full[0]) == tuple(full[1]) == street.palette
    assert merged[0][13] == merged[1][13] == merged[0][10] == street.palette[10] and merged[0][0] == IGNORE_COLOUR
    own = own_class_set(("a", "b"), ((1, 2, 3), (4, 5, 6)), {"2 classes": (0, 1)})
    assert palettes(own, ()) == {"2 classes": ([(1, 2, 3), (4, 5, 6)], [(1, 2, 3), (4, 5, 6)])}


def test_a_long_caption_fits_beside_its_pictures():
    picture = colourise(np.zeros((20, 30), np.uint8), [(9, 9, 9)])
    plain, long = (grid([(caption, [picture])], (30, 20)) for caption in ("ground truth", "LD\n" + "a long name " * 9))
    assert plain.width == 96 + 34 and long.width > plain.width
    left = np.array(long)[:, : long.width - 34]
    assert (left[:, :2] == 255).all() and (left[:, -2:] == 255).all() and (left < 128).any()


# ---- runs ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_toy_world(root / "world", seed=3, size=(64, 32), source=2, synthia=2, train=4, val=3)
    torch.manual_seed(0)
    model = DeepLabV2(19, (1, 1, 1, 1), 4)
    images = [np.array(Image.open(path)) for path in sorted((root / "world/cityscapes/leftImg8bit").rglob("*.png"))]
    x = torch.from_numpy(np.stack(images)[..., ::-1] - np.float32((104, 117, 123))).permute(0, 3, 1, 2)
    with torch.no_grad():  # so that many classes are predicted
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        model.train()(x)
        logits = model.eval()(x)
        model.layer5.conv2d_list[0].bias -= logits.mean((0, 2, 3))
    torch.save(model.state_dict(), root / "net.pth")
    return root


KEYS = {"layers": [1, 1, 1, 1], "width": 4, "worker": 0, "screen": False, "device": "cpu", "num_steps": 3, "round": 1,
        "batch_size": 2, "crop_src": 32, "crop_tgt": 32, "input_src": 32, "input_tgt": 32, "scales": [1.0],
        "tensorboard": False, "init_weight": "net.pth", "method": "ld"}


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("world", "net.pth"):
        Path(name).symlink_to(root / name)
    Path("c.yml").write_text(config(**KEYS)[0])
    street = {"data_dir": "world/cityscapes", "input_size": [64, 32], "protocols": {"CamVid 11": CAMVID}}
    Path("street.yml").write_text(yaml.safe_dump({
        **KEYS, "note": "s", "source": "cityscapes", "target": "cityscapes", "cityscapes": street}, sort_keys=False))
    return monkeypatch


def script(monkeypatch, module, name, *words):
    monkeypatch.setattr(sys, "argv", ["script", "--config", name, *words])
    fixed = {"method": "source_only"} if module is run_so_script else {}
    return module.run() if module is eval_script else run_stage("", name, module.run, **fixed)


def test_labels_that_are_merged_in_the_files_score_as_those_that_a_protocol_merges(here, capsys):
    for name in ("c", "street"):
        assert script(here, eval_script, f"{name}.yml", "net.pth", "--json", f"{name}.json", "--figure",
                      f"{name}.png", "--images", "2") == 0
    out = capsys.readouterr().out
    mine, street = (json.loads(Path(f"{name}.json").read_text())["net"] for name in ("c", "street"))
    assert list(mine) == ["CamVid 11"] and list(street) == ["19 classes", "16 classes", "13 classes", "CamVid 11"]
    assert mine["CamVid 11"] == street["CamVid 11"] and 0 < mine["CamVid 11"]["miou"] < 100
    assert sum(iou > 0 for iou in mine["CamVid 11"]["iou"].values()) > 3
    assert out.count(f"{mine['CamVid 11']['miou']:.1f}") >= 2
    cfg = parse_config(Path("c.yml").read_text(), "c.yml")
    colours = {*class_set(cfg).labels.palette, IGNORE_COLOUR}
    picture = np.array(Image.open("c.png"))
    rows = 3 * (256 + 4) + 4  # pictures of 64 x 32, enlarged
    assert picture.shape[0] > rows and picture.shape[1] == 192 + 2 * (512 + 4)
    assert {tuple(c) for c in picture[rows:].reshape(-1, 3).tolist()} >= colours - {IGNORE_COLOUR}  # the legend
    for row, allowed in ((1, {*colours, UNCLAIMED_COLOUR}), (2, colours)):
        drawn = picture[4 + 260 * row: 4 + 260 * row + 256, 192: 704].reshape(-1, 3)
        assert {tuple(c) for c in drawn.tolist()} <= allowed and len(np.unique(drawn, axis=0)) > 3
    for name, rows in (("c", 3), ("street", 5)):  # street: both protocols
        # Below the last row are a gap and the legend.
        drawn, end = np.array(Image.open(f"{name}.png"))[:, 192:704], rows * (256 + 4)
        assert (drawn[end:end + 4] == 255).all() and (drawn[end - 256:end] != 255).any(2).all()


def test_a_round_on_labels_with_other_classes(here, capsys):
    assert script(here, run_script, "c.yml") == 0
    printed = capsys.readouterr().out
    assert re.search(r"mIoU \d+\.\d\d \(CamVid 11", printed) and re.search(r"accuracy \d+\.\d%", printed)
    events = [json.loads(line) for line in Path("log/t/ld.jsonl").read_text().splitlines()]
    event = next(e for e in events if e["event"] == "pseudo_label")
    assert event["coverage"].keys() == event["accuracy"].keys() == {"all", *CITYSCAPES_CLASSES}
    cfg = parse_config(Path("c.yml").read_text(), "c.yml")
    table, right, every = segmentation.label_table(cfg.target_data, 19), {}, {}
    for sample in segmentation.find_samples("mine", cfg.target_data, "train"):
        labelled = segmentation.read_pair(sample, table)[1].ravel().tolist()
        chosen = np.array(Image.open(f"plabel/t/ld/round0/{sample.name}.png")).ravel().tolist()
        for t, p in zip(labelled, chosen):
            if t != IGNORE_INDEX and p != IGNORE_INDEX:
                every[p] = every.get(p, 0) + 1
                right[p] = right.get(p, 0) + (CITYSCAPES_CLASSES[p] in CAMVID[list(CAMVID)[t]])
    assert len(every) > 3
    for c, name in enumerate(CITYSCAPES_CLASSES):
        expected = pytest.approx(right[c] / every[c]) if c in every else None
        assert event["accuracy"][name] == expected, name
    assert event["accuracy"]["all"] == pytest.approx(sum(right.values()) / sum(every.values()))
    scores = json.loads(Path("miou_result/t/ld.json").read_text())
    assert script(here, eval_script, "c.yml", "snapshot/t/ld.pth", "--json", "e.json") == 0
    assert json.loads(Path("e.json").read_text())["LD"] == scores and list(scores) == ["CamVid 11"]
    assert yaml.safe_load(Path("snapshot/t/ld.yml").read_text())["mine"]["protocols"] == {"CamVid 11": CAMVID}


def test_protocols_change_nothing_but_scores(here):
    """The same run with and without: same weights, and the same scores of the full set."""
    words = ["cityscapes.protocols=None", "note=plain"]
    assert script(here, run_script, "street.yml") == 0 and script(here, run_script, "street.yml", *words) == 0
    found = [torch.load(f"snapshot/{note}/ld.pth", weights_only=True) for note in ("s", "plain")]
    assert all(found[0][k].equal(found[1][k]) for k in found[0])
    with_, without = (json.loads(Path(f"miou_result/{note}/ld.json").read_text()) for note in ("s", "plain"))
    assert {k: v for k, v in with_.items() if k != "CamVid 11"} == without
    rounds = [next(json.loads(line) for line in Path(f"log/{note}/ld.jsonl").read_text().splitlines()
                   if "pseudo_label" in line) for note in ("s", "plain")]
    assert rounds[0]["accuracy"] == rounds[1]["accuracy"] and rounds[0]["accuracy"]["all"] is not None


def test_labels_of_other_classes_are_not_trained_on(here, capsys):
    assert script(here, run_so_script, "c.yml", "init_weight=None") == 2
    assert "source: the labels of mine have the classes sky, building" in capsys.readouterr().err
    assert not Path("snapshot").exists()
    assert check.main(["--config", "c.yml", "method=source_only", "--split", "source_train"]) == 1
    assert "error: source: the labels of mine have the classes sky" in capsys.readouterr().out
    assert script(here, run_so_script, "street.yml", "init_weight=None") == 0


def test_wrong_protocols_are_refused_by_every_script_before_anything_is_written(here, capsys):
    word = "mine.protocols={p: {sky: [skye]}}"
    for module, words in ((run_script, ()), (run_so_script, ()), (eval_script, ("net.pth",))):
        before = sorted(Path(".").iterdir())
        assert script(here, module, "c.yml", word, *words) == 2
        assert "the network has no class 'skye' (did you mean 'sky'?)" in capsys.readouterr().err
        assert sorted(Path(".").iterdir()) == before
    assert check.main(["--config", "c.yml", word]) == 2
    assert "'skye'" in capsys.readouterr().err


def test_the_check_counts_the_labels_classes(here, capsys):
    assert check.main(["--config", "c.yml", "--split", "target_train", "target_val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("pixels, %"))
    rows = [line.split() for line in lines[start + 1: start + 13]]
    assert [row[0] for row in rows] == [*CAMVID, "ignored"]
    cfg = parse_config(Path("c.yml").read_text(), "c.yml")
    table = segmentation.label_table(cfg.target_data, 19)
    label = np.concatenate([segmentation.read_pair(s, table)[1].ravel()
                            for s in segmentation.find_samples("mine", cfg.target_data, "val")])
    for k, row in enumerate(rows[:-1]):
        assert float(row[2]) == pytest.approx(100 * (label == k).sum() / (label != IGNORE_INDEX).sum(), abs=6e-4)
    Path("both.yml").write_text(config(source={"type": "gta5", "data_dir": "world/gta5", "input_size": [64, 32]},
                                       **KEYS)[0])
    assert check.main(["--config", "both.yml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("truck ")).split()[2:] == ["-", "-"]
    assert next(line for line in lines if line.startswith("pedestrian ")).split()[1] == "-"


def test_an_unused_source_that_does_not_fit_is_said_with_the_way_out():
    text = "num_classes: 2\ncityscapes: {network_classes: [a, b], protocols: {mine: {road: [a], sky: [b]}}}\n"
    with pytest.raises(ConfigError, match="does not fit gta5.* set source to the target's name"):
        parse_config(text, "c.yml")
    assert class_set(parse_config(text, "c.yml", ["source=cityscapes"])).names == ("a", "b")
