"""Each method's loss and gradient equal slow float64 versions, batch-norm statistics those of hooks; augmentation."""
import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from dataset.labels import IGNORE_INDEX
from model.build import build_model
from trainer import augmentation, selection
from trainer.methods import known
from trainer.methods.base import Batch, Setting
from trainer.run_state import Position
from utils.config import load_config
from utils.errors import ConfigError, TrainingError

B, C, H, W = 2, 4, 6, 7


class Table(nn.Module):
    """A network whose logits are its parameter, float64 [B, C, H, W], whatever its input; it keeps its inputs."""

    def __init__(self, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(3 * torch.randn(B, C, H, W, generator=g, dtype=torch.float64))

    def forward(self, x):
        self.seen, self.seen_in_training = x, self.training
        return self.logits * 1

    def prepare(self, pixels):
        return pixels.permute(0, 3, 1, 2).double()

    def use_statistics(self, which):
        self.train(which == "batch")

    def parameter_groups(self, backbone, head):
        return [{"params": [self.logits]}, {"params": []}]


@pytest.fixture
def make(tmp_path):
    """The method of a name around a network, configured by key=value words."""
    def make(name, network, *words):
        (tmp_path / "c.yml").write_text(f"method: {name}")
        cfg = load_config(tmp_path / "c.yml", words)
        known()[name].check_network(cfg, network)
        return known()[name](Setting(cfg, network, torch.device("cpu"), [], tuple("abcd"), Position(0), None, None))
    return make


def batch(seed):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(256, size=(B, H, W, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, IGNORE_INDEX], size=(B, H, W)))
    return Batch(pixels.permute(0, 3, 1, 2).double(), labels, ["a", "b"], pixels)


def pixelwise(z):
    """(image, row, column, probabilities) of logits [B, C, H, W], one pixel at a time."""
    for i in range(B):
        for y in range(H):
            for x in range(W):
                e = [math.exp(v) for v in z[i, :, y, x]]
                yield i, y, x, [v / sum(e) for v in e]


def cross_entropy(z, labels, extra=lambda p: 0.0):
    terms = [-math.log(p[labels[i, y, x]]) + extra(p) for i, y, x, p in pixelwise(z) if labels[i, y, x] != IGNORE_INDEX]
    return sum(terms) / max(1, len(terms))


def entropy(p):
    return -sum(v * math.log(v) for v in p)


def squares(z, q):
    predicted = z.argmax(1)
    return sum(-sum(v * v for v in p) / 2 / B
               / ((predicted[i] == predicted[i, y, x]).sum() ** q * (H * W) ** (1 - q)) for i, y, x, p in pixelwise(z))


def information(z, weight):
    every = [p for *_, p in pixelwise(z)]
    mean = np.mean(every, axis=0)
    return sum(map(entropy, every)) / len(every) - weight * entropy(mean)


SLOW = {  # (method, words) -> loss of logits and labels
    ("entmin", "entropy_weight=0.3"):
        lambda z, _: 0.3 * sum(entropy(p) / math.log(C) for *_, p in pixelwise(z)) / (B * H * W),
    ("pseudo",): cross_entropy,
    ("pseudo_select",): cross_entropy,
    ("cbst",): cross_entropy,
    ("crst_mrkld", "kld_weight=0.25"):
        lambda z, labels: cross_entropy(z, labels, lambda p: -0.25 / C * sum(map(math.log, p))),
    ("maxsquare",): lambda z, _: squares(z, 0),
    ("maxsquare", "class_balance=0.2"): lambda z, _: squares(z, 0.2),
    ("infomax", "diversity_weight=0.7", "freeze_head=False"): lambda z, _: information(z, 0.7),
}


def gradient(loss, z):
    """Central differences of a loss of z."""
    found, step = np.zeros_like(z), 1e-6
    for index in np.ndindex(*z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        found[index] = (loss(up) - loss(down)) / (2 * step)
    return found


def test_every_loss_is_compared():
    assert {name for name, *_ in SLOW} | {"bn_adapt", "mean_teacher", "source_only", "ld", "be"} == set(known())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", SLOW, ids=" ".join)
def test_loss_and_gradient(make, case, seed):
    network, given = Table(seed), batch(seed)
    loss = sum(make(case[0], network, *case[1:]).losses(given, np.random.default_rng(0)).values())
    loss.backward()
    z, labels = network.logits.detach().numpy(), given.labels.numpy()
    assert loss.dtype == torch.float64 and network.seen.equal(given.images) and network.seen_in_training
    assert loss.item() == pytest.approx(SLOW[case](z, labels), rel=1e-12)
    assert np.allclose(network.logits.grad, gradient(lambda v: SLOW[case](v, labels), z), rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bn_stats", ["batch", "running"])
def test_mean_teacher_loss_and_gradient(make, seed, bn_stats):
    """The teacher sees the crops as they are, the student in other colours; q is each image's own."""
    network, given = Table(seed), batch(seed)
    method = make("mean_teacher", network, "conf_thresh=0.8", f"bn_stats={bn_stats}", "jitter_probability=1")
    teacher = method.teacher.model
    with torch.no_grad():
        teacher.logits.copy_(Table(seed + 101).logits)
    loss, = method.losses(given, np.random.default_rng(0)).values()
    loss.backward()
    found = {(i, y, x): p for i, y, x, p in pixelwise(teacher.logits.numpy())}
    share = [np.mean([max(p) >= 0.8 for (i, *_), p in found.items() if i == image]) for image in range(B)]
    def slow(z):
        return sum(-share[i] * math.log(p[int(np.argmax(found[i, y, x]))]) for i, y, x, p in pixelwise(z)) / (B * H * W)
    z = network.logits.detach().numpy()
    assert min(share) > 0 and share[0] != share[1]
    assert loss.item() == pytest.approx(slow(z), rel=1e-12)
    assert np.allclose(network.logits.grad, gradient(slow, z), rtol=0, atol=1e-8) and teacher.logits.grad is None
    assert teacher.seen.equal(given.images) and teacher.seen_in_training == (bn_stats == "batch")
    assert not network.seen.equal(given.images) and network.seen_in_training
    expected = augmentation.strong(given.pixels, np.random.default_rng(0), 0.2, 1, 0.5)
    assert network.seen.equal(network.prepare(expected))


def test_mean_teachers_teacher_follows(make):
    network = Table(0)
    method = make("mean_teacher", network, "ema_alpha=0.75")
    expected = network.logits.detach().clone()
    for update in range(6):
        with torch.no_grad():
            network.logits += 1
        method.after_step(batch(0))
        decay = min(1 - 1 / (update + 1), 0.75)
        expected = decay * expected + (1 - decay) * network.logits.detach()
        assert method.teacher.model.logits.allclose(expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["pseudo", "pseudo_select", "cbst", "crst_mrkld"])
def test_selection(make, name):
    method, g = make(name, Table(0)), torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(C, 40, 30, generator=g)
    predicted, uncertainty = selection.predict(logits)
    bins = selection.uncertainty_bin(uncertainty)
    portion = method.portion(1)
    assert portion == {"pseudo": 1, "pseudo_select": 0.1 + 0.05, "cbst": 0.25, "crst_mrkld": 0.25}[name]
    thresholds = selection.class_thresholds(selection.uncertainty_histogram(predicted, bins, C), portion)
    thresholds[2] = selection.NOTHING
    label, pseudo = method.select(logits, thresholds, portion)
    chosen = pseudo != IGNORE_INDEX
    assert label.dtype == torch.int64 and pseudo.dtype == torch.uint8 and label[chosen].equal(pseudo[chosen].long())
    expected = {"pseudo": predicted, "pseudo_select": selection.select(predicted, uncertainty, thresholds, portion)}
    assert pseudo.equal(expected.get(name, selection.cbst_select(logits, thresholds)).to(torch.uint8))
    assert label[~chosen].equal(predicted[~chosen]) and bool(chosen.all()) == (name == "pseudo")


@pytest.mark.parametrize("frozen", [True, False])
def test_infomax_freezes_the_head_alone(make, frozen):
    class Split(Table):
        def __init__(self):
            super().__init__(0)
            self.head = nn.Linear(2, 2)

        def parameter_groups(self, backbone, head):
            return [{"params": [self.logits]}, {"params": list(self.head.parameters())}]
    network = Split()
    make("infomax", network, f"freeze_head={frozen}")
    assert network.logits.requires_grad and [p.requires_grad for p in network.head.parameters()] == [not frozen] * 2


def test_infomax_refuses_a_network_that_is_all_head(make):
    class Head(Table):
        def parameter_groups(self, backbone, head):
            return super().parameter_groups(backbone, head)[::-1]
    with pytest.raises(ConfigError, match="freeze_head"):
        make("infomax", Head(0))
    make("infomax", Head(0), "freeze_head=False")


# ---- batch-norm statistics -------------------------------------------------------------------------------------------

class Normed(nn.Module):
    """A float64 network with batch norms of two kinds, one of them without statistics, and with dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5),
                                  nn.Conv2d(5, 4, 1), nn.Sequential(nn.SyncBatchNorm(4), nn.Tanh()),
                                  nn.BatchNorm2d(4, track_running_stats=False)).double()
        self.norms = [m for m in self.modules() if getattr(m, "running_mean", None) is not None]
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def score_map(self, x):
        return self.body(x)

    def use_statistics(self, which):
        self.eval()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(which == "batch")


def images(count, scale=1.0):
    rng = np.random.default_rng(7)
    return [torch.from_numpy(scale * rng.normal(n, 1 + n / 3, (1, 3, 8 + n, 9))) for n in range(count)]


def adapt(method, given):
    for x in given:
        assert method.losses(Batch(x, None, ["x"], x), np.random.default_rng(0)) == {}
    method.end_round(0)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("momentum", [None, 0.3, 1.0])
@pytest.mark.parametrize("alpha", [0, 0.25, 1])
@pytest.mark.parametrize("variance", ["image", "population"])
def test_statistics_of_whole_images(make, count, momentum, alpha, variance):
    """Against what hooks see of the input of each batch norm, added up in the order of the definition."""
    network = Normed()
    reference, before = copy.deepcopy(network), copy.deepcopy(network.state_dict())
    seen = {norm: [] for norm in reference.norms}
    for norm in reference.norms:
        norm.register_forward_hook(lambda norm, x, _: seen[norm].append(x[0].transpose(0, 1).flatten(1).numpy()))
    reference.use_statistics("batch")
    with torch.no_grad():
        for x in images(count):
            reference.score_map(x)
    method = make("bn_adapt", network, f"bn_momentum={momentum}", f"alpha={alpha}", f"bn_variance={variance}")
    adapt(method, images(count))
    sources = [(n.running_mean, n.running_var) for n in Normed().norms]
    for norm, values, source in zip(network.norms, seen.values(), sources):
        m_s, v_s = (s.numpy() for s in source)
        means = np.array([m_s] + [v.mean(1) for v in values])
        variances = np.array([v_s] + [v.var(1, ddof=1) for v in values])
        if momentum is None:
            weights = np.array([0] + [1 / count] * count)
        else:
            weights = momentum * (1 - momentum) ** np.arange(count, -1.0, -1) if momentum < 1 else np.eye(count + 1)[-1]
            weights[0] = (1 - momentum) ** count
        assert weights.sum() == pytest.approx(1)
        mean, var = weights @ means, weights @ variances
        if variance == "population":
            var = var + weights @ (means - mean) ** 2
        assert np.allclose(norm.running_mean, alpha * m_s + (1 - alpha) * mean, rtol=1e-12, atol=1e-12)
        assert np.allclose(norm.running_var, alpha * v_s + (1 - alpha) * var, rtol=1e-12, atol=1e-12)
    after = network.state_dict()
    assert all(before[k].equal(after[k]) for k in after if not k.endswith(("mean", "var", "tracked")))


def test_population_variance_of_images_of_one_size_is_that_of_all_their_values(make):
    """Large means with small differences: no precision is lost."""
    network = Normed()
    network.body[0] = nn.Identity()
    network.body[1] = nn.BatchNorm2d(3).double()
    network.body[4] = nn.Conv2d(3, 4, 1).double()
    rng = np.random.default_rng(1)
    given = [torch.from_numpy(1e4 + rng.normal(0, 1, (1, 3, 1, 1)) + rng.normal(0, 1, (1, 3, 20, 20)))
             for _ in range(50)]
    adapt(make("bn_adapt", network, "bn_variance=population"), given)
    values = torch.cat(given).transpose(0, 1).flatten(1).numpy()
    norm = network.body[1]
    assert np.allclose(norm.running_mean, values.mean(1), rtol=1e-12)
    assert np.allclose(norm.running_var, values.var(1), rtol=0.005)  # unbiased within an image
    assert norm.running_var.min() > 1.3


def test_the_network_can_be_scored_after_each_image(make):
    """At any time its statistics are those of the images so far, mixed with the source's."""
    network, other = Normed(), Normed()
    method = make("bn_adapt", network, "alpha=0.5")
    adapt(method, images(3))
    adapt(make("bn_adapt", other, "alpha=0.5"), images(5)[:3])
    assert all(a.equal(b) for a, b in zip(network.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("words", [(), ("bn_momentum=0.3", "alpha=0.25"), ("bn_variance=population", "alpha=0.1")])
def test_statistics_go_on_from_a_state_with_the_same_bits(make, words):
    whole, first, second = Normed(), Normed(), Normed()
    adapt(make("bn_adapt", whole, *words), images(7))
    method = make("bn_adapt", first, *words)
    adapt(method, images(7)[:4])
    file = io.BytesIO()
    torch.save({"network": first.state_dict(), "part": method.parts()["statistics"].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for norm in second.norms:
        norm.running_mean.zero_()
    method = make("bn_adapt", second, *words)
    second.load_state_dict(state["network"])
    method.parts()["statistics"].load_state_dict(state["part"])
    adapt(method, images(7)[4:])
    assert all(a.equal(b) for a, b in zip(whole.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_statistics_of_a_torchvision_network(make, tmp_path, name):
    """One has a pooled branch, whose batch norm sees one value per channel: it keeps the source's statistics."""
    pytest.importorskip("torchvision")
    (tmp_path / "t.yml").write_text("num_classes: 19\nfixbn: False")
    torch.manual_seed(0)
    network = build_model(load_config(tmp_path / "t.yml", [f"model=torchvision/{name}"]), torch.device("cpu"))[0]
    seen, pooled = {}, set()
    norms = {k: m for k, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {k: (m.running_mean.clone(), m.running_var.clone()) for k, m in norms.items()}
    for k, norm in norms.items():
        def watch(norm, x, k=k):
            flat = x[0].double().transpose(0, 1).flatten(1)
            seen.setdefault(k, []).append((flat.mean(1), flat.var(1) if flat.shape[1] > 1 else None))
        norm.register_forward_pre_hook(watch)
    method = make("bn_adapt", network, "alpha=0.25")
    pixels = torch.randint(256, (3, 1, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapt(method, [network.prepare(p) for p in pixels])
    for k, norm in norms.items():
        mean, var = before[k]
        if seen[k][0][1] is None:
            pooled.add(k)
            assert norm.running_mean.equal(mean) and norm.running_var.equal(var)
        else:
            target = [sum(s[i] for s in seen[k]) / len(seen[k]) for i in (0, 1)]
            assert norm.running_mean.allclose((0.25 * mean + 0.75 * target[0]).float(), rtol=1e-4, atol=1e-5)
            assert norm.running_var.allclose((0.25 * var + 0.75 * target[1]).float(), rtol=1e-4, atol=1e-6)
    assert len(pooled) == (name.startswith("deeplab")) and len(norms) > 40


def test_a_network_without_batch_norm_is_refused(make):
    with pytest.raises(ConfigError, match="method: bn_adapt .* has none"):
        make("bn_adapt", Table(0))


def test_statistics_that_are_not_finite_end_the_run(make):
    given = images(3)
    given[1][0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingError, match="not finite"):
        adapt(make("bn_adapt", Normed()), given)


# ---- strong augmentation ---------------------------------------------------------------------------------------------

def image(bands, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (9, 12, bands)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_changed_colours(bands, seed):
    """Against the definition, pixel by pixel."""
    rng = np.random.default_rng(seed)
    brightness, contrast, saturation, hue = *rng.uniform(0.5, 1.5, 3), rng.uniform(-0.5, 0.5)
    given = image(bands, seed)
    x = np.clip(given.numpy() * brightness, 0, 255)
    x = np.clip(x.mean() + contrast * (x - x.mean()), 0, 255)
    if bands == 3:
        to_yiq = augmentation._YIQ
        for pixel in x.reshape(-1, 3):
            luma, *chroma = to_yiq @ pixel
            turned = saturation * complex(*chroma) * np.exp(2j * np.pi * hue)
            pixel[:] = np.clip(np.linalg.solve(to_yiq, [luma, turned.real, turned.imag]), 0, 255)
    found = augmentation.change_colours(given, brightness, contrast, saturation, hue)
    assert np.allclose(found, x, rtol=0, atol=1e-9)


def test_colours_that_stay():
    given, grey = image(3), image(1).expand(-1, -1, 3)
    assert augmentation.change_colours(given, 1, 1, 1, 0).allclose(given, rtol=0, atol=1e-9)
    assert augmentation.change_colours(given, 1, 1, 1, 1).allclose(given, rtol=0, atol=1e-9)
    assert augmentation.change_colours(grey, 1, 1, 1.4, 0.3).allclose(grey, rtol=0, atol=1e-9)
    unsaturated = augmentation.change_colours(given, 1, 1, 0, 0.2)
    assert unsaturated.allclose((given @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).unsqueeze(2)
                                .expand(-1, -1, 3))
    assert augmentation.change_colours(given, 0.5, 1, 1, 0).allclose(given / 2)


@pytest.mark.parametrize("sigma", [0.15, 0.6, 1.15])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_blur(bands, sigma):
    given = image(bands)
    found = augmentation.blur(given, sigma)
    weight = np.exp(-np.arange(-5, 6) ** 2 / (2 * sigma**2))
    weight = np.outer(weight, weight) / weight.sum() ** 2
    padded = np.pad(given.numpy(), [(5, 5), (5, 5), (0, 0)], mode="reflect")
    expected = [[(weight[..., None] * padded[y: y + 11, x: x + 11]).sum((0, 1)) for x in range(12)] for y in range(9)]
    assert found.shape == given.shape and np.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bands", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strong_augmentation_is_drawn_for_each_image(bands, dtype):
    pixels = torch.stack([image(bands, 1)] * 40).to(dtype)
    found = augmentation.strong(pixels, np.random.default_rng(3), 0.2, 0.8, 0.5)
    assert found.dtype == torch.float32 and found.shape == pixels.shape and found.min() >= 0 and found.max() <= 255
    assert found.equal(augmentation.strong(pixels, np.random.default_rng(3), 0.2, 0.8, 0.5))
    same = [bool(x.equal(pixels[0].float())) for x in found]
    assert len(found.flatten(1).unique(dim=0)) == 41 - sum(same) and sum(same) in range(1, 15)
    never = augmentation.strong(pixels, np.random.default_rng(3), 0.2, 0, 0)
    assert never.equal(pixels.float())
    # The number of draws does not depend on their outcome.
    after = []
    for probability in (0, 1):
        rng = np.random.default_rng(3)
        augmentation.strong(pixels, rng, 0.2, probability, probability)
        after.append(rng.random())
    assert after[0] == after[1]
