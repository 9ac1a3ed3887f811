"""What the README and docs/ say of the project is there: links, files, functions, tests, keys; their examples run."""
import ast
import fnmatch
import functools
import importlib.util
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import run as run_script
from dataset import check
from img import method
from trainer import comparison, methods
from trainer.methods.base import SelfTraining
from utils import key_reference
from utils.config import config_remarks, load_config, parse_config
from utils.user_code import load_object

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES = 130  # of the README
ROOMS = ("bench", "dataset", "model", "trainer", "utils")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    """The text of a page without its code blocks, whose words are no links or headings."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page):
    """The anchors of a page's headings as repository hosts form them: lower case, no punctuation, blanks to hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page, pattern):
    """What a page names in backticks and matches the whole pattern; the groups, or the whole."""
    found = [re.fullmatch(pattern, code) for code in CODE.findall(prose_of(page))]
    return [match.groups() or (match.group(),) for match in found if match]


def names_of_tests(path):
    return {node.name for node in ast.walk(ast.parse(text_of(path)))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@functools.cache
def all_tests():
    return {name for path in (ROOT / "tests").glob("test_*.py") for name in names_of_tests(path)}


by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= MOST_LINES


@by_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose_of(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors_of(file), target


def test_every_page_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(prose_of(ROOT / "README.md"))}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= linked


@by_page
def test_named_tests_exist(page):
    for file, name in named(page, r"(tests/test_\w+\.py)(?:::(test_\w+))?"):
        assert (ROOT / file).is_file(), file
        assert name is None or name in names_of_tests(ROOT / file), name
    assert [name for name, in named(page, r"test_\w+") if name not in all_tests()] == []


@by_page
def test_named_files_exist(page):
    rooms = "|".join((*ROOMS, "config", "docs", "tests", "img"))
    assert [name for name, in named(page, rf"(?:(?:{rooms})/[\w./-]+|\w+\.py|Makefile)")
            if name not in PLACEHOLDERS and not (ROOT / name).exists()] == []


PLACEHOLDERS = {"trainer/methods/NAME.py", "mine.py", "mynet.py"}


@by_page
def test_named_functions_exist(page):
    for name, in named(page, rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+"):
        if not name.endswith((".py", ".md", ".pth", ".yml", ".safetensors")):
            assert found(name), name


def found(dotted):
    """Whether a dotted path is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part, None)
        return thing is not None
    return False


@by_page
def test_named_modules_are_there_to_be_run(page):
    for name in re.findall(r"python -m ([\w.]+)", text_of(page)):
        assert importlib.util.find_spec(name), name


@by_page
def test_named_targets_are_in_the_makefile(page):
    targets = re.findall(r"^([\w-]+%?):", text_of(ROOT / "Makefile"), re.MULTILINE)
    for name in re.findall(r"make ([a-z][\w-]*)", " ".join(CODE.findall(text_of(page)))):
        assert any(fnmatch.fnmatch(name, target.replace("%", "*")) for target in targets), name


def test_the_key_reference_is_the_declarations():
    assert text_of(ROOT / "docs" / "keys.md") == key_reference.page(), "run `make docs`"


def test_the_figure_of_the_method_is_what_its_script_draws():
    assert text_of(ROOT / "img" / "method.svg") == method.figure(), "run `make docs`"
    assert ElementTree.fromstring(method.figure()).tag.endswith("svg")


def test_every_method_has_its_row_with_its_own_keys():
    page = text_of(ROOT / "docs" / "methods.md").split("## Results")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)
    found = {name: set(re.findall(r"`(\w+)`", cells.split(" | ")[3])) for name, cells in rows}
    assert found == {name: set(cls.keys) - set(SelfTraining.keys) for name, cls in methods.known().items()}


def blocks_of(page, language):
    """Name -> text of every code block of that language whose first line is a comment that begins with a file name."""
    blocks = re.findall(rf"^```{language}\n(# (\w+\.\w+)\b.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    return {name: text for text, name in blocks}


def words_of(page, script):
    """The words behind `python <script> --config mine.yml` of each such line of a page."""
    lines = re.findall(rf"^python {re.escape(script)} --config mine.yml ?(.*)$", text_of(page), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


CONTRIBUTING = ROOT / "docs" / "contributing.md"
TINY = ("model=mynet.py:build", "model_args={classes: 3, width: 4}", "init_weight=mynet.pth", "crop_tgt=32",
        "input_tgt=48", "batch_size=2", "worker=0", "screen=false", "tensorboard=false", "device=cpu")


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The working directory holds the files of docs/contributing.md, images to go with them, and weights."""
    files = blocks_of(CONTRIBUTING, "python") | blocks_of(CONTRIBUTING, "yaml")
    assert set(files) == {"mine.py", "mynet.py", "mine.yml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            for kind, content in (("images", rng.integers(0, 256, (48, 64, 3))),
                                  ("labels", rng.choice([7, 8, 26, 4], (48, 64)))):
                path = tmp_path / "streets" / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content.astype(np.uint8)).save(path)
    torch.manual_seed(0)
    torch.save(load_object("mynet.py:build", "model")(classes=3, width=4).state_dict(), "mynet.pth")


@pytest.mark.parametrize("words", words_of(CONTRIBUTING, "run.py"), ids=" ".join)
def test_examples_of_a_method_and_a_network_run(examples, words):
    cfg = load_config("mine.yml", [*TINY, *(word for word in words if not word.startswith("model_args"))])
    run_script.run(cfg)
    before, after = torch.load("mynet.pth"), torch.load(f"snapshot/mine/{cfg.stage}.pth")
    assert before.keys() <= after.keys()
    assert any((after[name] != value).any() for name, value in before.items())  # it has learnt something
    scores = comparison.score_checkpoints(cfg, [f"snapshot/mine/{cfg.stage}.pth"])
    assert len(scores) == 1


def test_the_example_of_a_data_set_is_in_order(examples):
    assert check.main(["--config", "mine.yml", *TINY]) == 0


@by_page
def test_rows_of_tables_have_as_many_cells_as_their_heading(page):
    for table in re.findall(r"(?:^\|.*\n)+", prose_of(page), re.MULTILINE):
        rows = [re.sub(r"`[^`]*`", "", row) for row in table.splitlines()]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[0].count("|")}, rows[0]


@pytest.mark.parametrize("name", ["README.md", "docs/own-data.md"])
def test_what_is_to_be_set_in_a_copy_of_own_config(name):
    block = re.search(r"own_config.yml.*?```yaml\n(.*?)```", text_of(ROOT / name), re.DOTALL)[1]
    copied = yaml.safe_load(text_of(ROOT / "config/own_config.yml"))
    cfg = parse_config(yaml.safe_dump({**copied, **yaml.safe_load(block)}), name)
    assert config_remarks(cfg) == [] and yaml.safe_load(block).keys() <= copied.keys()
    assert cfg.init_weight == "gta5_source_only.pth" and cfg.target_data.data_dir == "/data/mine"


@pytest.mark.parametrize("name", ["docs/own-data.md", "docs/class-sets.md"])
def test_example_configurations_are_read(name, examples):
    found = blocks_of(ROOT / name, "yaml")
    assert found
    for file, text in found.items():
        assert config_remarks(parse_config(text, file)) == [], file
