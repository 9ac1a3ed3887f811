"""Test-time augmentation against a plain float64 version, and tiles against the whole image."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_segmenter import Small
from torch import nn

from dataset import views
from dataset.transforms import resize_image
from model import inference
from model.inference import STRIDE, Augmentation, Tiling, image_scores, predict_tiled, prediction
from model.interface import Interface
from model.segmenter import Segmenter
from trainer import evaluate
from utils.constants import INPUTS, InputConvention
from utils.errors import ConfigError

PLAIN = InputConvention("rgb", 255, (0.0, 0.0, 0.0))  # pixels as they are
CPU = torch.device("cpu")


def small(seed=0, **interface):
    torch.manual_seed(seed)
    return Segmenter(Small(), 5, Interface(INPUTS["rgb01"], **interface)).eval()


def pixels(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).integers(0, 256, (*shape, 3), dtype=np.uint8))


# ---- augmentation ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scales, flip", [((1.0,), True), ((0.75, 1.0, 1.25), False), ((0.5, 1.3), True)])
def test_augmentation_is_the_mean_of_probabilities_over_scales_and_mirrored_images(scales, flip, align_corners):
    model, image = small(align_corners=align_corners, size_multiple=4).double(), pixels(40, 52).numpy()
    item = views.at_sizes(image, (36, 28), scales)  # (width, height)
    model.prepare = lambda given: model.interface.prepared(given).double()
    with torch.no_grad():
        found, = image_scores(model, views.sizes_of(item), [(40, 52)], flip)
        total, count = 0, 0
        for scale in scales:
            resized = resize_image(image, (round(28 * scale), round(36 * scale)))
            for mirrored in (False, True)[:1 + flip]:
                x = model.prepare(torch.from_numpy(resized)[None])
                height, width = x.shape[-2:]
                padded = F.pad(x, (0, -width % 4, 0, -height % 4))
                scores = model.network(padded.flip(3) if mirrored else padded)["out"][0].numpy()
                scores = torch.from_numpy((scores[:, :, ::-1] if mirrored else scores).copy())
                probs = model.upsample(scores, (40, 52), (height, width)).softmax(0).numpy()
                total, count = total + probs, count + 1
    assert count == Augmentation(scales, flip).passes
    assert np.abs(found.numpy() - total / count).max() < 1e-7
    assert np.abs(found.numpy() - model(model.prepare(item["image"]), (40, 52))[0].softmax(0).detach().numpy()
                  ).max() > 1e-3  # what is averaged differs


@pytest.mark.parametrize("size", [(30, 44), (61, 37)])
def test_without_augmentation_the_scores_have_the_networks_own_bits(size):
    model, item = small(), {"image": pixels(1, 30, 44), "size": size}
    with torch.no_grad():
        plain = model(model.prepare(item["image"]), size=size)[0]
        found, = image_scores(model, [item["image"]], [size])
    assert found.equal(plain)
    (_, predicted), = evaluate.predictions(model, [item], CPU)
    assert predicted.equal(plain.max(0).indices) and predicted.dtype == torch.int64


def test_one_pass_is_made_of_each_size_and_no_more():
    model, calls = small(), []
    model.network.register_forward_hook(lambda module, given, out: calls.append(tuple(given[0].shape)))
    with torch.no_grad():
        list(image_scores(model, [pixels(2, 16, 24)], [(16, 24)] * 2))
        assert calls == [(2, 3, 16, 24)]
        list(image_scores(model, [pixels(2, 16, 24), pixels(2, 8, 12)], [(16, 24)] * 2, True))
    assert calls[1:] == [(2, 3, 16, 24)] * 2 + [(2, 3, 8, 12)] * 2


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.integers(0, 100), st.booleans())
def test_a_batch_gives_what_each_image_alone_gives(count, seed, flip):
    """To float32's rounding: convolutions of several images may be computed in another order."""
    model, images = small(seed), pixels(count, 20, 28, seed=seed)
    sizes = [(20 + i, 40 - i) for i in range(count)]
    with torch.no_grad():
        together = list(image_scores(model, [images], sizes, flip))
        for i, size in enumerate(sizes):
            alone, = image_scores(model, [images[i: i + 1]], [size], flip)
            assert (together[i] - alone).abs().max() < 1e-5


def test_confidence_is_the_largest_probability():
    logits = 8 * torch.randn(7, 33, 41, generator=torch.Generator().manual_seed(0))
    exact = logits.double().softmax(0)
    for scores, are_logits in ((logits, True), (exact.float(), False)):
        found = prediction(scores, are_logits, True)
        assert found.ids.equal(exact.max(0).indices.to(torch.uint8)) and found.finite
        assert (found.confidence - exact.amax(0)).abs().max() < 1e-6
    assert prediction(logits, True).confidence is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_seen(value):
    logits = torch.zeros(3, 4, 5)
    logits[1, 2, 3] = value
    assert not prediction(logits, True).finite


# ---- tiles -----------------------------------------------------------------------------------------------------------

CUTS = st.integers(1, 8).flatmap(lambda m: st.integers(1, 6).flatmap(
    lambda o: st.integers(2 * o, 2 * o + 6).map(lambda t: Tiling(t * m, o * m, m))))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), CUTS)
def test_tiles_cover_an_axis_and_their_weights_add_up_to_one(extent, cut):
    spans, weights = cut.spans(extent), cut.weights(extent)
    assert spans[0][0] == 0 and spans[-1][1] == extent and len(spans) == len(weights)
    for (begin, end), (after, _) in itertools.pairwise(spans):
        assert after % cut.multiple == 0 and end - begin == cut.tile and begin < after <= end - cut.overlap
    assert cut.tile - cut.multiple < spans[-1][1] - spans[-1][0] <= cut.tile or len(spans) == 1
    total, rim = np.zeros(extent), cut.overlap // 4
    for (begin, end), (first, values) in zip(spans, weights):
        assert begin <= first and first + len(values) <= end and (values > 0).all()
        assert begin == 0 or first >= begin + rim  # what the tile's end has changed has no weight
        assert end == extent or first + len(values) <= end - rim
        total[first: first + len(values)] += values.double().numpy()
    assert np.abs(total - 1).max() < 1e-6


class Exact(nn.Module):
    """Convolutions of small whole numbers at a stride: all sums are exact, so tiles can give the same bits."""

    def __init__(self, stride, radius, classes=4, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem = nn.Conv2d(3, 3, stride, stride, bias=False)
        self.wide = nn.Conv2d(3, classes, 2 * radius + 1, padding=radius)
        for layer, low, high in ((self.stem, 0, 2), (self.wide, -3, 4)):
            for parameter in layer.parameters():
                parameter.data = torch.randint(low, high, parameter.shape, generator=generator).float()

    def forward(self, x):
        return self.wide(self.stem(x))


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 130), width=st.integers(1, 130), stride=st.sampled_from([1, 2, 4]),
       radius=st.integers(0, 2), overlap=st.integers(1, 3), tile=st.integers(0, 4), batch=st.integers(1, 3),
       flip=st.booleans(), seed=st.integers(0, 5))
def test_tiles_give_the_whole_images_prediction_where_the_overlap_covers_what_the_network_sees(
        height, width, stride, radius, overlap, tile, batch, flip, seed):
    """What a pixel's score depends on reaches (radius + 1) positions of the network (1: upsampling) to either side,
    and a quarter of the overlap is left out beside each rim."""
    overlap *= 4 * stride * (radius + 1)
    cut = Tiling(2 * overlap + tile * stride, overlap, stride)
    model = Segmenter(Exact(stride, radius, seed=seed), 4, Interface(PLAIN, size_multiple=stride)).eval()
    image = pixels(height, width, seed=seed)
    with torch.no_grad():
        whole, = image_scores(model, [image[None]], [(height, width)], flip)
        found = predict_tiled(model, image, cut, Augmentation(flip=flip), batch, confidence=True)
    assert found.ids.shape == (height, width)
    if flip:  # sums of probabilities are rounded
        sure = whole.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-5
        assert found.ids.long()[sure].equal(whole.max(0).indices[sure])
        assert (found.confidence - whole.amax(0)).abs().max() < 1e-5
    else:
        assert found.ids.long().equal(whole.max(0).indices)
        assert (found.confidence - whole.softmax(0).amax(0)).abs().max() < 1e-3  # logits of thousands


def test_tiles_differ_where_the_overlap_is_too_small():
    """Without this the test above could not fail."""
    model = Segmenter(Exact(4, 2), 4, Interface(PLAIN, size_multiple=4)).eval()
    image = pixels(120, 120)
    with torch.no_grad():
        whole, = image_scores(model, [image[None]], [(120, 120)])
        found = predict_tiled(model, image, Tiling(32, 4, 4), Augmentation())
    assert 0 < (found.ids.long() != whole.max(0).indices).float().mean() < 0.5


def test_an_image_within_one_tile_has_the_whole_images_bits():
    model, image = small(), pixels(50, 64)
    with torch.no_grad():
        whole, = image_scores(model, [image[None]], [(50, 64)])
        found = predict_tiled(model, image, Tiling(64, 32), Augmentation(), confidence=True)
    expected = prediction(whole, True, True)
    assert found.ids.equal(expected.ids) and found.confidence.equal(expected.confidence)


def test_scales_of_tiles_are_averaged():
    """On one tile, so that nothing is blended; each pass is of the tile, resized."""
    model, image = small().double(), pixels(48, 64)
    model.prepare = lambda given: model.interface.prepared(given).double()
    with torch.no_grad():
        found = predict_tiled(model, image, Tiling(64, 32), Augmentation((1.0, 1.5)), confidence=True)
        x = model.prepare(image[None])
        larger = F.interpolate(x, (72, 96), mode="bicubic", antialias=True)
        expected = sum(model(given, (48, 64))[0].softmax(0) for given in (x, larger)) / 2
    assert (found.confidence - expected.amax(0)).abs().max() < 1e-6


def test_only_a_strip_of_scores_is_kept_at_a_time(monkeypatch):
    """The largest tensor of all scores that are made."""
    model, largest = Segmenter(Exact(4, 0), 4, Interface(PLAIN, size_multiple=4)).eval(), []
    plain = inference.prediction
    monkeypatch.setattr(inference, "prediction", lambda scores, *rest: largest.append(scores.shape) or plain(
        scores, *rest))
    with torch.no_grad():
        predict_tiled(model, pixels(400, 64), Tiling(32, 8, 4), Augmentation())
    assert sum(shape[1] for shape in largest) == 400 and max(shape[1] for shape in largest) <= 32


@pytest.mark.parametrize("tile, overlap, multiple, expected", [
    (512, None, 1, (512, 128)), (64, None, 1, (64, 32)), (32, None, 1, (32, 0)), (96, None, 1, (96, 32)),
    (448, None, 14, (448, 224)), (512, 0, 1, (512, 0)), (512, 256, 8, (512, 256))])
def test_tiles_fit_the_network(tile, overlap, multiple, expected):
    found = inference.tiling(small(size_multiple=multiple), tile, overlap)
    assert (found.tile, found.overlap) == expected and found.multiple == math.lcm(STRIDE, multiple)


@pytest.mark.parametrize("tile, overlap, multiple, said", [
    (500, None, 1, "--tile: expected a multiple of 32, .* found 500: give 480 or 512"),
    (8, None, 1, "found 8: give 32"), (512, None, 14, "a multiple of 224, .*: give 448 or 672"),
    (512, 100, 1, "--overlap: expected a multiple of 32 from 0 to half of --tile, 256, found 100"),
    (512, 288, 1, "found 288")])
def test_tiles_that_fit_no_network_are_refused(tile, overlap, multiple, said):
    with pytest.raises(ConfigError, match=said):
        inference.tiling(small(size_multiple=multiple), tile, overlap)
