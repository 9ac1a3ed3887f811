"""The evidence for the verdict: pairs and plan, degraded targets, statistics, and runs whose candidates are scored."""
import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bench import label_free as bench
from bench import label_free_pairs as pairs
from bench import label_free_rules as rules
from bench.methods import Run, Runs
from dataset.toy import write_toy_world
from trainer import comparison, methods
from utils.config import load_config
from utils.errors import ConfigError, UserError

ROOT = Path(bench.__file__).parent.parent
TINY = ["layers=[1, 1, 1, 1]", "width=4", "num_steps=4", "epochs=1", "batch_size=2", "crop_src=32", "crop_tgt=32"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return pairs.toy_pairs(Runs(tmp_path, Path("config/toy"), 1, []))


def data(count, sequences=2):
    return [pairs.Pair(f"seq{i * sequences // count}--{i:03d}", f"seq{i * sequences // count}", Path("any.yml"), 0.001)
            for i in range(count)]


# ---- pairs and plan --------------------------------------------------------------------------------------------------

def kind(run):
    setting = run.method, run.factor, run.words
    return [settings for settings in (pairs.USUAL, pairs.HIGH, pairs.RUINOUS) if setting in settings]


def test_each_setting_is_of_one_kind_and_every_method_is_used():
    settings = [*pairs.USUAL, *pairs.HIGH, *pairs.RUINOUS]
    assert len(set(settings)) == len(settings)
    assert {name for name, *_ in pairs.USUAL} == set(methods.known()) - {"source_only"}


@pytest.mark.parametrize("count", [0, 1, 7, 48, 100])
def test_the_plan_is_bounded_without_repetition_and_uses_pairs_of_data_evenly(toy, count):
    own = data(count) if count else []
    runs = pairs.plan(toy, own)
    assert len(runs) == len(set(runs)) <= pairs.RUNS and runs == pairs.plan(toy, own)
    times = [sum(run.pair == pair for run in runs) for pair in own]
    rest = pairs.RUNS - pairs.RUNS_OF_A_PAIR * len(toy)
    assert not own or max(times) - min(times) <= (count != 1) and sum(times) == (31 if count == 1 else rest)
    assert {sum(run.pair == pair for run in runs) for pair in toy} == {pairs.RUNS_OF_A_PAIR}


def test_both_halves_have_every_network_target_kind_and_method(toy):
    own = data(100)
    runs = pairs.plan(toy, own)
    halves = rules.halves([run.pair.group for run in runs])
    for groups in halves.values():
        of_half = [run for run in runs if run.pair.group in groups]
        drawn = [run.pair.name.partition("--")[2].split("-") for run in of_half if run.pair.source]
        assert {network for network, _ in drawn} == set(pairs.NETWORKS)
        assert {"camera"} < {target for _, target in drawn} <= {"camera", "game", "dusk", "fog", "noise"}
        assert {run.method for run in of_half} == {name for name, *_ in pairs.USUAL}
        share = [sum(kind(run) == [of] for run in of_half) / len(of_half) for of in
                 (pairs.USUAL, pairs.HIGH, pairs.RUINOUS)]
        assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.05)


def test_halves_never_divide_a_group():
    for count in range(1, 9):
        groups = [f"g{i}" for i in range(count)] * 3
        random.Random(count).shuffle(groups)
        halves = rules.halves(groups)
        assert not {*halves["choosing"]} & {*halves["reporting"]}
        assert sorted(halves["choosing"] + halves["reporting"]) == sorted(set(groups))
        assert 0 <= len(halves["choosing"]) - len(halves["reporting"]) <= 1


def test_the_pairs_of_a_folder(tmp_path, toy):
    with pytest.raises(ConfigError, match=r"--data: .* has no \*.yml"):
        pairs.data_pairs(tmp_path)
    for name, rate in (("b--x", 0.002), ("a--y-dusk", 0.0001), ("a--z", 0.0001)):
        (tmp_path / f"{name}.yml").write_text((ROOT / "config/toy/ld_config.yml").read_text().replace(
            "learning_rate: 0.0003", f"learning_rate: {rate}"))
    assert [(p.name, p.group, p.rate) for p in pairs.data_pairs(tmp_path)] == [
        ("a--y-dusk", "a", 0.0001), ("a--z", "a", 0.0001), ("b--x", "b", 0.002)]
    (tmp_path / "dusk.yml").write_text("method: ld")
    with pytest.raises(ConfigError, match=r"dusk.yml: expected a name such as SEQUENCE--"):
        pairs.data_pairs(tmp_path)


# ---- targets ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def image():
    rng = np.random.default_rng(5)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (8, 16, 3), np.uint8)).resize((64, 32)))


def test_degraded_images_look_as_they_should(image):
    looks = {look: pairs.degrade(image, look, np.random.default_rng(1)).astype(float) for look in
             ("dusk", "fog", "noise")}
    for look, changed in looks.items():
        again = pairs.degrade(image, look, np.random.default_rng(1))
        assert again.dtype == np.uint8 and again.shape == image.shape and (again == changed).all()
        assert (again != pairs.degrade(image, look, np.random.default_rng(2))).any()
    clean = image.astype(float)
    assert looks["dusk"].mean() < 0.5 * clean.mean()
    assert looks["dusk"][..., 2].mean() / looks["dusk"][..., 0].mean() > 1.3 * clean[..., 2].mean() / clean[
        ..., 0].mean()
    assert looks["fog"][:16].std() < 0.5 * clean[:16].std() and looks["fog"][:16].std() < looks["fog"][16:].std()
    assert abs(looks["noise"].mean() - clean.mean()) < 10 and 20 < (looks["noise"] - clean).std() < 40
    with pytest.raises(KeyError):
        pairs.degrade(image, "rain", np.random.default_rng(0))


def test_targets_have_the_worlds_layout_and_new_frames_of_the_game(tmp_path):
    write_toy_world(tmp_path / "world", 3, size=(64, 32), source=3, synthia=0, train=3, val=2)
    def content(folder, part):
        return {p.relative_to(folder).as_posix(): np.asarray(Image.open(p)) for p in
                sorted(folder.glob(f"{part}/*/*/*"))}
    world = tmp_path / "world/cityscapes"
    for target in ("noise", "game"):
        folder = tmp_path / target / "cityscapes"
        pairs.write_target(folder, tmp_path / "world", 3, target, 3, 2)
        images, labels = content(folder, "leftImg8bit"), content(folder, "gtFine")
        assert images.keys() == content(world, "leftImg8bit").keys() and len(images) == len(labels) == 5
        same = [(labels[name] == label).all() for name, label in content(world, "gtFine").items()]
        assert all(same) if target == "noise" else not any(same)
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
        pairs.write_target(folder, tmp_path / "world", 3, target, 3, 2)
        assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    source = [np.asarray(Image.open(p)) for p in (tmp_path / "world/gta5/images").iterdir()]
    assert not any((a == b).all() for a in images.values() for b in source)


# ---- statistics ------------------------------------------------------------------------------------------------------

def slow_spearman(a, b):
    """Pearson correlation of the mean positions in sorted order."""
    def positions(values):
        order = sorted(values)
        return [statistics.fmean(i for i, other in enumerate(order) if other == v) for v in values]
    return statistics.correlation(positions(a), positions(b))


def test_rank_correlation_against_a_slow_version():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 12))
        a, b = rng.integers(0, 5, n).tolist(), rng.normal(size=n).round(1).tolist()
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert rules.spearman(a, b) == pytest.approx(slow_spearman(a, b), abs=1e-12)
            assert rules.spearman([np.exp(v) for v in a], b) == pytest.approx(rules.spearman(a, b))
    assert rules.spearman([1, 1, 1], [1, 2, 3]) is None
    assert rules.spearman([-np.inf, 1, 2], [3, 4, 5]) == 1


def test_intervals_draw_groups_and_not_their_members():
    def mean(values):
        return statistics.fmean(values)
    two = [("a", 0.0)] * 100 + [("b", 1.0)] * 100
    assert rules.interval(two, mean) == (0, 1)  # drawing members would give about 0.44 to 0.56
    assert rules.interval([("a", 0.0), ("a", 1.0)], mean) == (0.5, 0.5)
    rng = np.random.default_rng(1)
    many = [(f"g{i}", float(v)) for i, v in enumerate(rng.normal(size=200))]
    low, high = rules.interval(many, mean)
    middle, width = mean([v for _, v in many]), 1.645 * np.std([v for _, v in many]) / 200 ** 0.5
    assert (low, high) == pytest.approx((middle - width, middle + width), abs=0.03)
    assert rules.interval(two, lambda values: None) is None and rules.interval([], mean) is None


def record(mious, scores=None, ious=None, last=None, group="g", predictions=None):
    """A run with the candidates untouched, step 1, step 2, ..."""
    names = ["untouched", *(f"step {i}" for i in range(1, len(mious)))]
    candidates = tuple(
        rules.Candidate(name, i, {"agreement": None, **{s: v[i] for s, v in (scores or {}).items()}}, [1.0], miou,
                        (ious or [{}] * len(mious))[i], predictions[i] if predictions else Path("none.npy"),
                        {"name": name, "step": i, "kept": True, "histogram": [0.5, 0.5], "file": f"{i:03d}",
                         "trained": i > 0, "scores": {**dict.fromkeys(rules.label_free.OWN_SCORES, i / 10),
                                                      "agreement": 0.5}})
        for i, (name, miou) in enumerate(zip(names, mious)))
    return rules.RunRecord("pair", group, "ld", candidates, names[-1])


@pytest.mark.parametrize("miou, iou, expected", [
    (25.1, {"a": 20.0, "b": 5.0, "c": 4.9, "d": None}, False),  # a loss of 4.9
    (24.9, {"a": 20.0, "b": 5.0, "c": 4.9, "d": None}, True),
    (30.0, {"a": 0.9, "b": 5.0, "c": 4.9, "d": None}, False), (30.0, {"a": 0.9, "b": 5.0, "c": 0.0, "d": 0.0}, False),
    (30.0, {"a": 0.9, "b": None, "c": 4.9, "d": None}, True), (40.0, {"a": 0.0, "b": 0.9, "c": 99.0, "d": None}, True)])
def test_a_collapse_is_a_loss_of_over_five_points_or_of_two_classes(miou, iou, expected):
    run = record([30.0, miou], ious=[{"a": 20.0, "b": 5.0, "c": 4.9, "d": None}, iou])
    assert rules.collapsed(run["step 1"], run["untouched"]) is expected


def test_what_decisions_are_worth():
    def of(mious, *decision):
        return rules.outcome(record(mious), decision)
    good, missed = of([20, 30, 28], "step 1", "keep", False), of([20, 30, 28], "untouched", "reject", True)
    harm, warned = of([20, 18, 12], "step 1", "keep", False), of([20, 18, 12], "step 1", "doubtful", False)
    named, equal = of([20, 22, 12], "step 1", "keep", True), of([20, 19.5, 19.6], "step 1", "keep", False)
    assert (good.regret, good.gain, good.last_gain, good.collapsed) == (0, 10, 8, False)
    assert (missed.regret, missed.gain) == (10, 0) and harm.collapsed and not equal.collapsed
    found = {name: measure([good, missed, harm, warned, named, equal]) for name, measure in rules.MEASURES.items()}
    third, half = pytest.approx(100 / 3), pytest.approx(50)
    assert found == {
        "median regret": pytest.approx(1.25), "mean regret": pytest.approx((0 + 10 + 2 + 2 + 0 + 0.5) / 6),
        "mean gain": pytest.approx((10 + 0 - 2 - 2 + 2 - 0.5) / 6), "worst gain": -2,
        "worse": third,  # harm, warned
        "worse, unsaid": pytest.approx(100 / 6),  # harm
        "collapse named": pytest.approx(200 / 3),  # warned, named of harm, warned, named
        "false alarm": third,  # missed of good, missed, named
        "false collapse": half}  # missed of good, missed
    assert rules.MEASURES["collapse named"]([good]) is None


def random_predictions(folder, count):
    rng, files = np.random.default_rng(3), [folder / f"{i}.npy" for i in range(count)]
    for file in files:
        np.save(file, (rng.dirichlet([0.4] * 3, (2, 4, 6)) * 255).astype(np.uint8).transpose(0, 3, 1, 2))
    return files


@pytest.fixture
def predicted(tmp_path):
    return record([20.0, 21, 22, 23, 24], {"information": [0.1, 0.5, 0.4, 0.2, None]},
                  predictions=random_predictions(tmp_path, 5))


def test_the_highest_score_is_chosen_entropy_turned_and_what_is_not_finite_never(tmp_path):
    run = record([20, 30, 25], {"entropy": [0.3, 0.1, 0.2], "information": [0.1, None, float("nan")]},
                 predictions=random_predictions(tmp_path, 3))
    found = rules.summary([run])
    def choice(name):
        return found[name]["outcomes"][0]["chosen"]
    assert choice("entropy") == "step 1" and found["entropy"]["rank correlation"]["value"] == 1
    assert choice("information") == "untouched"
    assert choice("agreement") == "untouched" and found["agreement"]["rank correlation"] == {
        "value": None, "interval": None}
    assert choice("last") == "step 2" and choice("adapted statistics") == "untouched"


def test_agreement_with_the_better_half_against_a_slow_version(predicted):
    probs = [np.load(c.predictions).astype(float) for c in predicted.candidates]
    ensemble = (probs[1] + probs[2] + probs[3]).argmax(1)
    for value, p in zip(rules.agreement_with_better_half(predicted), probs):
        label = p.argmax(1)
        iou = [((label == c) & (ensemble == c)).sum() / ((label == c) | (ensemble == c)).sum() for c in range(3)]
        assert value == pytest.approx(np.mean(iou))


def test_the_projects_rule_measures_agreement_itself(predicted, monkeypatch):
    given, decide = [], rules.verdict.decide
    monkeypatch.setattr(rules.verdict, "decide", lambda records, *rest: given.extend(records) or decide(records, *rest))
    chosen, verdict, flagged = rules.product(predicted)
    assert predicted[chosen] and verdict in ("keep", "doubtful", "reject") and flagged in (False, True)
    assert len(given) == 5 and all("agreement" not in r["scores"] and "information" in r["scores"] for r in given)


# ---- runs ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder for --data with one pair of a tiny toy world."""
    monkeypatch.chdir(ROOT)
    sources = Runs(tmp_path, Path("config/toy"), 1, TINY)
    write_toy_world(sources.world(0), 0, size=(64, 32), source=4, synthia=0, train=6, val=3)
    source = Run(0, "source_only", "", None)
    sources.execute([source])
    content = yaml.safe_load(Path("config/toy/ld_config.yml").read_text())
    content.update({word.partition("=")[0]: yaml.safe_load(word.partition("=")[2]) for word in TINY},
                   init_weight=str(sources.folder(source) / "source_only.pth"), score_images=3)
    content["cityscapes"].update(data_dir=str(sources.world(0) / "cityscapes"), input_size=[64, 32])
    (tmp_path / "own").mkdir()
    (tmp_path / "own/street--tiny.yml").write_text(yaml.safe_dump(content))
    return tmp_path / "own"


@pytest.mark.slow
def test_a_run_leaves_true_scores_and_predictions_of_all_candidates_and_is_done_once(own, tmp_path, capsys,
                                                                                             monkeypatch):
    words = ["--work", str(tmp_path / "work"), "--data", str(own), "--plan", "data", "--runs", "1", "--processes", "1"]
    assert bench.main([*words, "--offline"]) == 2 and "no finished run" in capsys.readouterr().err
    assert bench.main([*words, "--markdown", str(tmp_path / "table.md")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("choosing: 1 runs of 1 pairs, ") and (tmp_path / "table.md").read_text() == printed
    [run] = rules.load(tmp_path / "work")
    assert (run.pair, run.group, run.note) == ("street--tiny", "street", "ld")
    names = [c.name for c in run.candidates]
    assert {"untouched", "adapted statistics", "step 3", "step 3 refreshed"} <= {*names} and run.last == "step 3"
    for candidate, predictions in zip(run.candidates, run.predictions()):
        assert predictions.shape[:2] == (3, 19) and predictions.dtype == np.uint8
        assert candidate.scores.keys() == set(rules.label_free.SCORES) and 0 <= candidate.scores["agreement"] <= 1
    assert not list((tmp_path / "work").rglob("*.pth")) and not list((tmp_path / "work").rglob("*.state"))
    cfg = load_config(own / "street--tiny.yml")
    scored = comparison.score_checkpoints(cfg, [cfg.init_weight])
    assert run["untouched"].miou == scored["source-only"]["19 classes"]["miou"] > 0
    assert run["untouched"].iou == scored["source-only"]["19 classes"]["iou"]
    assert json.loads((tmp_path / "work/label_free.json").read_text())["choosing"]["groups"] == ["street"]
    monkeypatch.setattr(bench.Adaptations, "begin", lambda self, run: pytest.fail("started again"))
    assert bench.main(words) == 0 and capsys.readouterr().out == printed
    assert bench.main([*words, "--list"]) == 0 and capsys.readouterr().out == "street--tiny: ld\n"


def test_words_are_for_the_adaptations_and_leave_the_source_networks_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = []
    monkeypatch.setattr(pairs, "prepare", lambda sources, of: given.extend(sources.command(of[0].source[0])))
    monkeypatch.setattr(bench.Adaptations, "execute", lambda self, runs: given.extend(self.command(runs[0])))
    assert bench.main(["--work", str(tmp_path), "--runs", "1", "width=8"]) == 2  # there is no finished run to report
    source, adaptation = given[:given.index("-m")], given[given.index("-m"):]
    assert "width=8" in adaptation and "num_steps=2000" in source and "width=8" not in source


def test_numbers_that_overflow_are_a_result_and_other_failures_an_error(tmp_path):
    runs = bench.Adaptations(tmp_path, 1, [])
    run = pairs.Adaptation(pairs.Pair("a--b", "a", Path("x.yml"), 0.001), "ld", 30, "bn_stats=running")
    assert {"learning_rate=0.03", "bn_stats=running", "method=ld"} < {*runs.command(run)}
    runs.folder(run).mkdir(parents=True)
    output = runs.folder(run) / "output.txt"
    output.write_text("error: step 3: the loss is not finite (losses ...)\n")
    assert runs.end(run, 2, 1.0)["miou"] is None and runs.result(run)["failed"].startswith("error: step 3")
    assert rules.load(tmp_path) == []
    output.write_text("error: x.yml: not found\n")
    with pytest.raises(UserError, match=r"a--b, ld x30 bn_stats=running: ended with exit code 2"):
        runs.end(run, 2, 1.0)


@pytest.mark.parametrize("words, said", [(["--plan", "data"], "--plan: nothing to run"), (["--plan", "all"], "--plan"),
                                         (["--data", "nowhere"], "nowhere has no *.yml")])
def test_wrong_words_are_one_line(tmp_path, capsys, words, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        code = bench.main([*words, "--work", str(tmp_path / "work")])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "work").exists()
