"""The configuration: every file in the repository loads, values are typed, errors name the key, nothing is writable."""
import dataclasses
import random
import re
from pathlib import Path

import pytest
import yaml

from utils.cli import TRAINING_KEYS
from utils.config import KEYS, NO_EFFECT, SECTION_KEYS, Config, config_help, config_remarks, load_config, to_yaml
from utils.config_keys import known_classes
from utils.errors import ConfigError

ROOT = Path(__file__).parent.parent

RELEASED_LDBE = """
note: 'train'
model: 'deeplab'
method: 'ld'
train: True
multigpu: False
fixbn: True
fix_seed: True
cb_prop: 0.2
num_center: 10
lamb: 0.5
src_count: 1191
src_pix_prop: 0.9
src_pix_select: True
pool_prop: 0.2
src_fix: False
tgt_fix: False
src_select: True
tgt_select: True
resume: False
start: 0
round_start: 0
learning_rate: 0.000075
num_steps: 5000
epochs: 1
weight_decay: 0.0005
momentum: 0.9
power: 0.9
round: 5
print_freq: 100
save_freq: 30000
tensorboard: False
neptune: False
screen: True
val: True
val_freq: 10
source: 'gta5'
target: 'cityscapes'
worker: 4
batch_size: 3
num_classes: 19
input_src: 720
input_tgt: 720
crop_src: 600
crop_tgt: 600
mirror: True
scale_min: 0.5
scale_max: 1.5
rec: False
init_weight: '/some/where/gta5_source_only.pth'
restore_from: None
snapshot: './snapshot/'
result: './miou_result/'
log: './log/'
plabel: './plabel'
gta5: {
  data_dir: '/data/gta5/',
  data_list: './dataset/list/gta5_list.txt',
  input_size: [1280, 720]
}
synthia: {
        data_dir: '/data/RAND_CITYSCAPES/',
        data_list: './dataset/list/synthia_list.txt',
        input_size: [1280, 760]
        }
cityscapes: {
  data_dir: '/data/cityscapes',
  data_list: './dataset/list/cityscapes_train.txt',
  input_size: [1024, 512]
}
"""
# The released source-only file has neither a method nor the keys of pseudo labels.
RELEASED_SOURCE_ONLY = "\n".join(
    line for line in RELEASED_LDBE.splitlines()
    if line.split(":")[0] not in {"method", "cb_prop", "num_center", "lamb", "num_classes", "resume", "start",
                                  "round_start", *(k for k in NO_EFFECT if k.startswith(("src", "tgt", "pool")))})

OWN_DATA = """
source: my_source
target: my_target
num_classes: 3
neg_rank_width: 0
my_source: &folder
  type: folder
  data_dir: a/source
  images: "images/{split}"
  labels: "labels/{split}"
  classes: [sky, road, rest]
  label_ids: {0: 0, 7: 1, 300: 2}
  palette: [[0, 0, 255], [128, 64, 128], [9, 9, 9]]
  input_size: [480, 360]
my_target:
  <<: *folder
  data_dir: a/target
  labels: None
"""


@pytest.fixture
def load(tmp_path):
    def load(text="", *overrides, **fixed):
        (tmp_path / "c.yml").write_text(text or "# nothing\n")
        return load_config(tmp_path / "c.yml", overrides, **fixed)
    return load


def refused(load, *arguments, **fixed):
    with pytest.raises(ConfigError) as error:
        load(*arguments, **fixed)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- files -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", sorted(ROOT.glob("config/**/*.yml")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_configuration_of_the_repository_loads(path):
    fixed = {"method": "source_only"} if path.name == "so_config.yml" else {}
    cfg = load_config(path, **fixed)
    assert cfg.ignored_keys == ()
    method = {"so": "source_only", "ld": "ld", "be": "be", "ldbe": "ld", "own": "ld"}[path.stem.removesuffix("_config")]
    assert cfg.method == method


def test_the_real_configurations_hold_the_released_values():
    ldbe = load_config(ROOT / "config/ldbe_config.yml")
    expected = {
        "cb_prop": 0.1, "learning_rate": 1e-4, "num_steps": 5000, "epochs": 1, "weight_decay": 5e-4, "momentum": 0.9,
        "power": 0.9, "round": 2, "batch_size": 3, "input_tgt": 720, "crop_tgt": 600, "mirror": True,
        "scales": (0.5, 0.75, 1.0, 1.25, 1.5), "bn_stats": "batch", "fixbn": True, "backbone_lr_mult": 3.0,
        "head_lr_mult": 10.0, "portion_step": 0.05, "ema_alpha": 0.99, "conf_thresh": 0.97, "neg_rank_width": 3,
        "entropy_on": "all", "entropy": "released", "select_image": True, "layers": (3, 4, 23, 3), "width": 64,
        "num_classes": 19}
    of_be = {"ema_alpha": expected.pop("ema_alpha"), "conf_thresh": expected.pop("conf_thresh")}
    assert {k: ldbe.value(k) for k in expected} == expected and ldbe.other_keys.keys() == of_be.keys()
    assert ldbe.options["round_lr_decay"] == pytest.approx(2**0.5, rel=1e-9)
    be = load_config(ROOT / "config/ldbe_config.yml", method="be")
    assert {k: be.value(k) for k in of_be} == of_be
    source_only = load_config(ROOT / "config/so_config.yml", method="source_only")
    assert (source_only.learning_rate, source_only.num_steps, source_only.batch_size) == (5e-5, 5000, 1)
    assert source_only.backbone_lr_mult == 3.0


@pytest.mark.parametrize("text, fixed", [(RELEASED_LDBE, {}), (RELEASED_SOURCE_ONLY, {"method": "source_only"})])
def test_released_files_load_and_say_what_is_ignored(load, text, fixed):
    cfg = load(text, **fixed)
    assert cfg.restore_from is None and cfg.source_data.data_dir == "/data/gta5/"
    assert "round" in cfg.other_keys if fixed else cfg.options["round"] == 5
    assert cfg.section("synthia").input_size == (1280, 760) and cfg.num_classes == 19
    assert set(cfg.ignored_keys) == {line.split(":")[0] for line in text.splitlines()} & set(NO_EFFECT)
    assert {"neptune", "rec", "scale_min", "scale_max"} <= set(cfg.ignored_keys)


def test_own_data_with_anchors_and_merges(load):
    cfg = load(OWN_DATA)
    assert cfg.source_data.labels == "labels/{split}" and cfg.target_data.labels is None
    assert (cfg.source_data.data_dir, cfg.target_data.data_dir) == ("a/source", "a/target")
    assert dict(cfg.target_data.label_ids) == {0: 0, 7: 1, 300: 2}
    assert cfg.target_data.palette == ((0, 0, 255), (128, 64, 128), (9, 9, 9))


def test_a_file_without_keys_is_all_defaults(load):
    cfg = load("")
    assert {k: getattr(cfg, k) for k in KEYS} == {k: key.default for k, key in KEYS.items()}


def test_an_empty_file_is_refused_as_a_failed_command_leaves_it(tmp_path):
    (tmp_path / "c.yml").touch()
    with pytest.raises(ConfigError, match="c.yml: is empty: write it again"):
        load_config(tmp_path / "c.yml")


# ---- values ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("written, key, value", [
    ("learning_rate: 1e-4", "learning_rate", 1e-4), ("learning_rate: '2.5e-4'", "learning_rate", 2.5e-4),
    ("power: 1", "power", 1.0), ("batch_size: 4.0", "batch_size", 4), ("init_weight: None", "init_weight", None),
    ("init_weight: ~", "init_weight", None), ("init_weight:", "init_weight", None), ("note: 2021", "note", "2021"),
    ("note: 2024-05-01", "note", "2024-05-01"), ("note: 2024-13-45", "note", "2024-13-45"),
    ("fixbn: False", "fixbn", False), ("fixbn: 'no'", "fixbn", False), ("scales: [1, 2]", "scales", (1.0, 2.0))])
def test_values_of_files(load, written, key, value):
    found = getattr(load(written), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("word, key, value", [
    ("learning_rate=1e-4", "learning_rate", 1e-4), ("fixbn=True", "fixbn", True), ("fixbn=false", "fixbn", False),
    ("note=001", "note", "001"), ("note=yes", "note", "yes"), ("layers=[2,2,2,2]", "layers", (2, 2, 2, 2)),
    ("layers=2,2,2,2", "layers", (2, 2, 2, 2)), ("scales=1", "scales", (1.0,)),
    ("init_weight=None", "init_weight", None), ("init_weight=a=b.pth", "init_weight", "a=b.pth"),
    ("source=synthia", "source", "synthia")])
def test_values_of_the_command_line(load, word, key, value):
    found = load("", word).value(key)
    assert found == value and type(found) is type(value)


def test_overrides_in_order_nested_and_fixed(load):
    cfg = load(OWN_DATA, "batch_size=5", "batch_size=6", "my_target.data_dir=/d", "my_target.label_ids={5: 2}",
               "cityscapes.input_size=64,32", method="be")
    assert (cfg.batch_size, cfg.method) == (6, "be")
    assert cfg.target_data.data_dir == "/d" and dict(cfg.target_data.label_ids) == {5: 2}
    assert cfg.source_data.data_dir == "a/source" and cfg.section("cityscapes").input_size == (64, 32)


def test_a_fresh_seed_is_drawn_and_recorded(load):
    seeds = {load("fix_seed: False").seed for _ in range(4)}
    assert len(seeds) == 4
    cfg = load("fix_seed: False")
    assert yaml.safe_load(to_yaml(cfg))["seed"] == cfg.seed and cfg.fix_seed


def test_read_only(load):
    cfg = load(OWN_DATA)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.learning_rate = 0.3
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.target_data.data_dir = "x"
    for mapping in (cfg.sections, cfg.target_data.label_ids):
        with pytest.raises(TypeError):
            mapping["x"] = 1
    assert isinstance(cfg.options["layers"], tuple) and isinstance(cfg.target_data.palette[0], tuple)


# ---- mistakes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, said", [
    ("batchsize: 3", "batch_size"), ("lr: 1", "unknown key 'lr'"), ("cityscape: {data_dir: x}", "cityscapes"),
    ("mine: {data_dir: x}", "type"), ("cityscapes: {datadir: x}", "data_dir"), ("cityscapes: 3", "expected a section"),
    ("cityscapes:", "expected a section"), ("round: 2\nround_start: 2", "round_start: 2 leaves nothing"),
    ("batch_size: 2024-13-45", "batch_size"), ("device: cuda:200", "device"),
    ("batch_size: two", "batch_size: expected whole number at least 1"), ("batch_size: 2.5", "batch_size"),
    ("batch_size: True", "batch_size"), ("batch_size: 0", "at least 1"), ("fixbn: 1", "fixbn: expected True/False"),
    ("learning_rate: fast", "learning_rate"), ("learning_rate: .nan", "learning_rate"), ("learning_rate: 0", "above 0"),
    ("momentum: 1", "below 1"), ("cb_prop: 1.5", "at most 1"), ("layers: [2, 2]", "expected 4 values"),
    ("layers: 3", "list of whole number"), ("scales: []", "scales"), ("method: bee", "did you mean 'be'"),
    ("bn_stats: both", "batch or running"), ("note: a/b", "plain folder name"), ("note: ..", "plain folder name"),
    ("note: ''", "note"), ("method: None", "method"), ("device: gpu", "device"), ("multigpu: True", "multigpu"),
    ("resume: maybe", "resume"), ("keep: 0", "keep"), ("restore_from: x.pth", "init_weight"), ("source: gta", "gta5"),
    ("num_classes: 18", "19, 16 and 13"), ("method: be\nbatch_size: 1", "batch_size: 1 is too small"),
    ("cityscapes: {input_size: [1024]}", "2 values"), ("cityscapes: {data_dir: None}", "cityscapes.data_dir"),
    ("batch_size: 2\nbatch_size: 3", "given twice"), ("- a\n- b", "expected `key: value` lines"),
    ("batch_size: 2\nseed: 1\nbatch_size: 3", "c.yml, line 3: not valid YAML: key 'batch_size' is given twice"),
    ("note: a\n\tseed: 2", "line 2: not valid YAML: while scanning for the next token: found character"),
    ("cityscapes:\n  data_dir: x\n  data_dir: y", "line 3: not valid YAML: key 'data_dir' is given twice"),
    ("device: gpu", "device: expected auto (a GPU if there is one), cpu, cuda or cuda:N, found 'gpu'"),
    ("a: [1, 2", "not valid YAML"), ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
    (OWN_DATA.replace("num_classes: 3", "num_classes: 4"), "my_source.classes: 3 names for num_classes 4"),
    (OWN_DATA.replace("7: 1", "7: 3"), "label_ids"), (OWN_DATA.replace(", [9, 9, 9]", ""), "palette"),
    (OWN_DATA.replace("9, 9, 9", "9, 9, 256"), "at most 255"),
    (OWN_DATA.replace("neg_rank_width: 0", "neg_rank_width: 256"), "neg_rank_width"),
    (OWN_DATA.replace("  classes: [sky, road, rest]\n", ""), "my_source.classes: missing"),
    (OWN_DATA + "  classes: [a, b, c]\n", "differ from my_source.classes"),
    *((f"{name}: {{{key}: {value}}}", f"{name}.{key}: a section of type {name} has its own") for name, key, value in (
        ("gta5", "label_ids", "{1: 0}"), ("cityscapes", "labels", "'gtFine/{split}/{name}_gtFine_labelTrainIds.png'"),
        ("cityscapes", "images", "'{split}'"), ("gta5", "classes", "[a]"), ("cityscapes", "palette", "[[1, 2, 3]]"))),
])
def test_mistakes_in_files_name_the_key(load, text, said):
    assert said in refused(load, text)


@pytest.mark.parametrize("word, said", [
    ("batch_size", "expected key=value"), ("mine.yml", "is given as --config mine.yml"),
    ("batchsize=3", "did you mean 'batch_size'"),
    ("cityscapes.datadir=x", "did you mean 'data_dir'"), ("cityscape.data_dir=x", "cityscapes"),
    ("batch_size=", "batch_size"), ("layers=1,2,x,4", "layers"), ("gta5=x", "unknown key"),
    ("layers=[1,2", "layers: expected"), ("scales=1,'2", "scales: expected"), ("batch_size=2024-13-45", "batch_size"),
    *((f"cityscapes.label_ids={text}", "label_ids: expected mapping of whole number to whole number such as {7: 0, "
       "8: 1} (a blank behind each colon)") for text in ("{7:0}", "{0:0,255:1}", "7: 0, 8", "{}", "[0, 255]"))])
def test_mistakes_on_the_command_line_name_the_word(load, word, said):
    assert said in refused(load, "", word)


def test_a_missing_file():
    with pytest.raises(ConfigError, match="nowhere.yml: no such file"):
        load_config("nowhere.yml")


# ---- round trip and help ---------------------------------------------------------------------------------------------

def test_the_resolved_configuration_reads_back(load):
    for text in ("", OWN_DATA, RELEASED_LDBE):
        cfg = load(text)
        assert load(to_yaml(cfg)) == cfg


def test_random_configurations_read_back(load):
    rng = random.Random(0)
    for _ in range(60):
        words = [f"learning_rate={10 ** rng.uniform(-9, 3)!r}", f"cb_prop={rng.uniform(1e-6, 1)!r}",
                 f"layers={[rng.randrange(1, 99) for _ in range(4)]}", f"seed={rng.randrange(2**31)}",
                 f"note={''.join(rng.choices('abc 0123456789_-.:#~é', k=8))}x", f"mirror={rng.random() < 0.5}",
                 f"init_weight={rng.choice(['None', 'imagenet', 'a: b#c.pth', '1e5', 'no', '[x'])}",
                 f"scales={[rng.uniform(0.1, 3) for _ in range(rng.randrange(1, 6))]}"]
        cfg = load("", *words)
        assert load(to_yaml(cfg)) == cfg
        assert repr(cfg.learning_rate) == words[0].split("=")[1]


def test_help_lists_every_key_with_its_default():
    text = config_help(TRAINING_KEYS)
    assert max(map(len, text.splitlines())) <= 120
    words = " ".join(text.split())
    for keys in (KEYS, SECTION_KEYS):
        for name, key in keys.items():
            assert text.count(f"\n  {name}: ") == 1 and key.meaning in words
    assert "learning_rate: number, default 0.0001" in text
    computed = {"sections", "options", "ignored_keys", "other_keys", "given_keys"}
    assert {f.name for f in dataclasses.fields(Config)} == {*KEYS, *computed}
    for choosing in ("method", "model"):
        for owner, cls in known_classes(choosing).items():
            for name, key in cls.keys.items():
                assert f"\n  {name}: " in text and key.meaning in words, owner
    first = re.findall(r"^  (\w+): ", text, re.MULTILINE)
    assert tuple(first[:len(TRAINING_KEYS)]) == TRAINING_KEYS


def test_keys_without_effect_and_a_missing_method_are_said(load):
    def said(text, **fixed):
        return "\n".join(config_remarks(load(text, **fixed)))
    both = "round: 3\nepochs: 2\nmethod: source_only\n"
    assert re.fullmatch(r"no effect on method source_only with model deeplab: round \(of [^()]*\), "
                        r"epochs \(of [^()]*\)", said(both))
    assert "round_start (of " in said("round_start: 0\n", method="source_only")
    assert said("method: ld\nround: 3\nepochs: 2\n") == said("method: be\n") == ""
    assert said("method: ld\nema_alpha: 0.9\nentropy: shannon\n").startswith("no effect on method ld with model "
                                                                             "deeplab: ema_alpha (of be")
    assert said("round: 3\n").startswith("method is not given, ld is run: set method to one of ")
    assert "no effect on LDBE, ignored: lamb" in said("lamb: 1\n")
    assert "round (of " in config_remarks(load("", "round=2", method="source_only"))[0]
