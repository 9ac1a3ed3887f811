"""Images of 1 to 16 bands and of more than 8 bits: read as a slow mapping in exact fractions gives them, or refused by
one error that names the file, what was found, what was expected and the key."""
import struct
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from imagefiles import bmp, chunk, netpbm, png, tiff
from PIL import Image
from test_formats import IMAGES, PALETTE

from dataset import check, inspection, loaders, segmentation, transforms, views
from dataset.files import Bands, read_image, read_size, to_8_bits
from dataset.segmentation import Sample
from utils.config import load_config, parse_config, to_yaml
from utils.errors import ConfigError, DataError

COUNTS = range(1, 17)
DEEP = {np.uint16: 1, np.int8: 2, np.int16: 2, np.int32: 2, np.uint32: 1, np.int64: 2, np.uint64: 1,
        np.float16: 3, np.float32: 3, np.float64: 3}  # -> TIFF's SampleFormat
PLACES = {"plain": {}, "big-endian": {"order": ">"}, "planar": {"planar": 2}, "in tiles": {"tile": 16},
          "planar, in tiles": {"planar": 2, "tile": 16}, "planar, in strips": {"planar": 2, "strips": 3}}


def deep_noise(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    if issubclass(dtype, np.floating):
        return rng.normal(100, 300, shape).astype(dtype)
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return np.where(rng.random(shape) < 0.5, values, values // np.array(2**(info.bits // 2), dtype))


def bands_tiff(pixels, kind=1, **options):
    """TIFF of [H, W, K] of any type: grey with K - 1 further channels of no stated meaning."""
    bits, count = pixels.dtype.itemsize * 8, pixels.shape[2]
    stored = pixels.view(f"u{bits // 8}") if pixels.dtype.kind == "f" else pixels
    tags = [*options.pop("tags", ()), *([(338, 3, [0] * (count - 1))] if count > 1 else [])]
    return tiff(stored if count > 1 else stored[:, :, 0], bits, sample_format=kind, tags=tags, **options)


def slow(values, value_range):
    """The mapping in exact fractions, value by value; ties go to the even number, as Python rounds them."""
    limits = np.resize(value_range, (values.shape[2], 2)).tolist()
    result = np.empty(values.shape, int)
    for index, value in np.ndenumerate(values):
        low, high = map(Fraction, limits[index[2]])
        share = (min(max(Fraction(value.item()), low), high) - low) / (high - low)
        result[index] = round(share * 255)
    return result


def written(folder, content):
    (folder / "x").write_bytes(content)
    return folder / "x"


# ---- values ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("place", PLACES)
def test_values_of_every_type_and_number_of_bands(tmp_path, dtype, place):
    for count in COUNTS:
        pixels = deep_noise(dtype, (3, 5, count), count)
        low, high = sorted(np.quantile(pixels.astype(float), (0.2, 0.7)).round().tolist())
        path = written(tmp_path, bands_tiff(pixels, DEEP[dtype], **PLACES[place]))
        got = read_image(path, Bands(count, (low, high)))
        assert got.dtype == np.uint8 and got.flags.c_contiguous and (got == slow(pixels, (low, high))).all()
        assert {0, 255} <= set(np.unique(got)) and read_size(path, Bands(count, (low, high))) == (5, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("photometric", [1, 2])
def test_files_of_another_writer(tmp_path, dtype, photometric):
    """libtiff's, compressed in every way, with each of its predictors."""
    pixels = noise((37, 53, 5)) if dtype is np.uint8 else deep_noise(dtype, (37, 53, 5))
    predictor = 3 if np.issubdtype(dtype, np.floating) else 2
    for options in ({"compression": 8, "predictor": predictor}, {"compression": 5, "predictor": 2},
                    {"compression": 50000, "tile": (16, 16)}, {"compression": 34925}, {"compression": 32773},
                    {"compression": 1, "bigtiff": True}):
        content = imagecodecs.tiff_encode(pixels, photometric=photometric, extrasample=0, **options)
        got = read_image(written(tmp_path, content), Bands(5, (-50, 3000)))
        assert (got == (pixels if dtype is np.uint8 else to_8_bits(pixels, (-50, 3000)))).all(), options


@pytest.mark.parametrize("dtype", DEEP)
def test_every_band_may_have_a_range_of_its_own(tmp_path, dtype):
    pixels = deep_noise(dtype, (4, 6, 5))
    ranges = (-10, 90, 0, 100, 20, 21, 0.5, 77.25, -100, 255)
    got = read_image(written(tmp_path, bands_tiff(pixels, DEEP[dtype])), Bands(5, ranges))
    exact = slow(pixels, ranges)
    assert (got[:, :, :3] == exact[:, :, :3]).all() and abs(got - exact).max() <= 1 and (got == exact).mean() > 0.9
    for band in range(5):
        alone = to_8_bits(pixels[:, :, band:band + 1], ranges[2 * band: 2 * band + 2])
        assert (alone[:, :, 0] == got[:, :, band]).all()


@given(st.sampled_from(list(DEEP)), st.integers(-40000, 40000), st.integers(1, 90000), st.integers(0, 99))
def test_the_mapping_is_monotone_and_reaches_both_ends(dtype, low, width, seed):
    values = np.sort(deep_noise(dtype, (40, 1, 1), seed), 0)
    got = to_8_bits(values, (low, low + width))
    assert (got == slow(values, (low, low + width))).all() and (np.diff(got[:, 0, 0].astype(int)) >= 0).all()
    exact = values.astype(np.float64)
    assert not got[exact <= low].any() and (got[exact >= low + width] == 255).all()


def test_halves_go_to_the_even_level():
    values = np.array([-1, 0, 1, 2, 3, 5, 509, 510, 511], np.int16)[:, None, None]
    for dtype in (np.int16, np.int32, np.float32):
        assert to_8_bits(values.astype(dtype), (0, 510)).ravel().tolist() == [0, 0, 0, 1, 2, 2, 254, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad, dtype):
    pixels = deep_noise(dtype, (4, 6, 5))
    pixels[2, 3, 3] = bad
    path = written(tmp_path, bands_tiff(pixels, 3))
    with pytest.raises(DataError, match=r"x: cannot be read as an image \(band 4 holds NaN or infinity.*value_range"):
        read_image(path, Bands(5, (0, 1)))


# ---- 8 bits ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("place", PLACES)
def test_8_bits_are_read_as_stored_with_a_range_or_without(tmp_path, place):
    for count in COUNTS:
        pixels = np.random.default_rng(count).integers(0, 256, (7, 5, count), dtype=np.uint8)
        path = written(tmp_path, bands_tiff(pixels, **PLACES[place]))
        for value_range in (None, (7, 9), tuple(range(2 * count))):
            got = read_image(path, Bands(count, value_range))
            assert got.dtype == np.uint8 and got.shape == pixels.shape and (got == pixels).all()


def test_png_channels_are_bands(tmp_path):
    for colour, count in ((0, 1), (4, 2), (2, 3), (6, 4)):
        for bits in (8, 16):
            pixels = np.random.default_rng(count).integers(0, 2**bits, (7, 5, count))
            path = written(tmp_path, png(pixels, bits, colour))
            expected = pixels if bits == 8 else slow(pixels, (100, 40000))
            assert (read_image(path, Bands(count, (100, 40000))) == expected).all()


def is_deep(name):
    return "16 bits" in name and not name.startswith("BMP") or name.endswith(("m 256", "m 1023", "m 65535"))


@pytest.mark.parametrize("name", IMAGES)
def test_files_of_one_or_three_channels_in_every_format(tmp_path, name):
    """A range changes nothing where there are 8 bits; grey files have one band, others are refused as such."""
    path = written(tmp_path, IMAGES[name][0])
    plain = read_image(path)
    if not is_deep(name):
        assert (read_image(path, Bands(3, (7, 9))) == plain).all()
    grey = any(word in name for word in ("PNG grey", "JPEG, grey", "PGM", "PBM", "TIFF grey", "WhiteIsZero", "JPEG, L",
                                         "BMP grey ramp", "BMP white first", "BMP black and white"))
    if grey:
        assert (read_image(path, Bands(1)) == plain[:, :, :1]).all() and (plain == plain[:, :, :1]).all()
    else:
        with pytest.raises(DataError, match=r"x: has [34] bands \(.*\), expected 1: .*bands"):
            read_image(path, Bands(1))


def test_grey_of_many_bits_serves_as_grey_and_as_rgb(tmp_path):
    """Thermal images and networks that were trained on colours."""
    pixels = deep_noise(np.uint16, (6, 9, 1))
    for content in (bands_tiff(pixels), png(pixels[:, :, 0], 16, 0), netpbm(pixels[:, :, 0], 5, 65535),
                    netpbm(pixels[:, :, 0], 2, 65535), png(np.concatenate([pixels, pixels // 2], 2), 16, 4)):
        path = written(tmp_path, content)
        grey = slow(pixels, (300, 20000))
        assert (read_image(path, Bands(1, (300, 20000))) == grey).all()
        assert (read_image(path, Bands(3, (300, 20000))) == grey.repeat(3, 2)).all()
    got = read_image(written(tmp_path, bands_tiff(pixels)), Bands(3, (0, 9, 300, 20000, 0, 65535)))
    assert (got == slow(pixels.repeat(3, 2), (0, 9, 300, 20000, 0, 65535))).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_and_alpha_are_three_bands_or_four(tmp_path, bits):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (6, 9, 4))
    for content in (png(pixels, bits, 6), tiff(pixels, bits, 2, tags=[(338, 3, [2])]),
                    tiff(pixels, bits, 2, planar=2, tags=[(338, 3, [0])])):
        path = written(tmp_path, content)
        expected = slow(pixels, (200, 30000)) if bits == 16 else pixels
        assert (read_image(path) == pixels[:, :, :3] >> (bits - 8)).all()
        assert (read_image(path, Bands(3, (200, 30000))) == expected[:, :, :3]).all()
        assert (read_image(path, Bands(4, (200, 30000))) == expected).all()


def test_three_bands_of_grey_are_three_bands(tmp_path):
    """As programs for satellite images write three bands that are no colours: the first alone would be read wrong."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    assert (read_image(written(tmp_path, bands_tiff(pixels))) == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_the_orientation_says(tmp_path, orientation):
    pixels = deep_noise(np.uint16, (4, 7, 5))
    path = written(tmp_path, bands_tiff(pixels, tags=[(274, 3, [orientation])]))
    turned = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    turned |= {code: turned[like].swapaxes(0, 1) for code, like in ((5, 1), (6, 4), (7, 3), (8, 2))}
    bands = Bands(5, (0, 65535))
    got = read_image(path, bands)
    assert (got == slow(turned[orientation], (0, 65535))).all() and read_size(path, bands) == got.shape[1::-1]


# ---- refusals --------------------------------------------------------------------------------------------------------

def files_of(count):
    """name -> file of that many channels."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, count), dtype=np.uint8)
    files = {"TIFF": bands_tiff(pixels), "planar": bands_tiff(pixels, planar=2),
             "16 bits": bands_tiff(pixels * np.uint16(9)), "float": bands_tiff(pixels.astype(np.float32), 3)}
    if count >= 3:
        files["TIFF RGB"] = tiff(pixels, 8, 2, tags=[(338, 3, [0] * (count - 3))] if count > 3 else [])
    if count == 1:
        files |= {"PGM": netpbm(pixels[:, :, 0], 5, 255), "PNG": png(pixels[:, :, 0], 8, 0)}
    if count == 3:
        files |= {"PPM": netpbm(pixels, 6, 255), "BMP": bmp(pixels, 24), "palette": bmp(pixels[:, :, 0], 8, PALETTE),
                  "PNG palette": png(pixels[:, :, 0], 8, 3)}
    return files | ({"PNG": png(pixels, 8, {2: 4, 3: 2, 4: 6}[count])} if 2 <= count <= 4 else {})


@pytest.mark.parametrize("found", COUNTS)
def test_another_number_of_bands_is_refused_by_name(tmp_path, found):
    for kind, content in files_of(found).items():
        path, refused = written(tmp_path, content), 0
        fit = {found} | ({1, 3} if found == 1 else {1, 3} if found == 2 else set())
        fit |= {3} if found == 4 and kind in ("TIFF RGB", "PNG") else set()
        for expected in {*COUNTS} - fit:
            for read in (read_image, read_size):
                with pytest.raises(DataError) as error:
                    read(path, Bands(expected, (0, 99), "fields"))
                said = str(error.value)
                assert said.startswith(f"{path}: has {found} bands (") and f"expected {expected}: " in said
                assert "fields.bands" in said and "\n" not in said and said.endswith(".")
                refused += 1
        assert refused >= 24, kind
        for expected in fit:
            assert read_image(path, Bands(expected, (0, 99))).shape == (6, 9, expected)


@pytest.mark.parametrize("dtype", DEEP)
def test_more_than_8_bits_need_a_range(tmp_path, dtype):
    for count in COUNTS:
        path = written(tmp_path, bands_tiff(deep_noise(dtype, (3, 5, count)), DEEP[dtype]))
        for read in (read_image, read_size):
            with pytest.raises(DataError, match=r"x: cannot be read as an image \(\d+-bit .*fields\.value_range"):
                read(path, Bands(count, None, "fields"))


def test_what_no_range_helps_is_refused_whether_there_is_one(tmp_path):
    """Inks, colour spaces, transparent colours of 16 bits: nothing says what they would be as bands."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 4))
    for content, count in ((tiff(pixels, 16, 5), 4), (tiff(pixels[:, :, :3], 16, 8), 3), (tiff(pixels, 8, 5), 4),
                           (tiff(pixels[:, :, 0], 16, 0), 1), (tiff(pixels, 16, 2, tags=[(338, 3, [1])]), 4),
                           (tiff(pixels, 32, sample_format=5, tags=[(338, 3, [0] * 3)]), 4),
                           (png(pixels[:, :, :3], 16, 2, before=chunk(b"tRNS", bytes(6))), 3),
                           (tiff(pixels % 16, 4, tags=[(338, 3, [0] * 3)]), 4),
                           (tiff(np.tile(pixels, 5)[:, :, :17], 8, tags=[(338, 3, [0] * 16)]), 16)):
        path = written(tmp_path, content)
        with pytest.raises(DataError, match=r"x: cannot be read as an image \(\d+-bit .*: save it as a"):
            read_image(path, Bands(count, (0, 99)))


def test_what_would_fill_the_memory_is_refused_by_its_header(tmp_path):
    content = bytearray(bands_tiff(np.zeros((1, 1, 16), np.uint64)))
    for number in (256, 257):
        at = content.index(struct.pack("<HHII", number, 4, 1, 1))
        content[at:at + 12] = struct.pack("<HHII", number, 4, 1, 9000)
    for read in (read_image, read_size):
        with pytest.raises(DataError, match="9000x9000 pixels of 16 channels of 64 bits: cut it into pieces"):
            read(written(tmp_path, content), Bands(16, (0, 9)))


def test_files_cut_short_are_refused(tmp_path):
    for count in (1, 2, 5, 16):
        for options in PLACES.values():
            content = bands_tiff(deep_noise(np.uint16, (9, 13, count)), **options)
            for end in (9, len(content) // 3, len(content) // 2, len(content) - 6):
                with pytest.raises(DataError):
                    read_image(written(tmp_path, content[:end]), Bands(count, (0, 99)))


# ---- configuration ---------------------------------------------------------------------------------------------------

SECTION = "type: folder, data_dir: d, input_size: [40, 24], images: i, labels: l, classes: [a, b]"


TOP = "target: fields\nsource: fields\nnum_classes: 2\nfields: "


def section(words):
    return parse_config(f"{TOP}{{{SECTION}{words}}}", "c.yml")


@pytest.mark.parametrize("words, said", [
    (", bands: 0", "fields.bands: expected .*at least 1"), (", bands: 17", "fields.bands: .*at most 16"),
    (", bands: 2.5", "fields.bands"), (", value_range: [5, 5]", "fields.value_range: .*low below high, found 5.0, 5.0"),
    (", value_range: [9, 5]", "fields.value_range: .*low below high, found 9.0, 5.0"),
    (", value_range: [1]", "fields.value_range: .*found 1 numbers"), (", value_range: 7", "fields.value_range"),
    (", bands: 2, value_range: [0, 1, 2]", "fields.value_range: .*2 bands .4 numbers., found 3"),
    (", bands: 2, value_range: [0, 1, 2, 2]", "fields.value_range: .*found 2.0, 2.0"),
    (", bands: 4, value_range: [0, 1, 2, 3]", "fields.value_range: .*8 numbers.*found 4"),
    (", value_range: [0, .inf]", "fields.value_range"), (", value_range: [.nan, 1]", "fields.value_range")])
def test_wrong_bands_and_ranges_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        section(words)


def test_bands_and_range_come_from_yaml_and_the_command_line(tmp_path):
    cfg = section(", bands: 2, value_range: [0, 3000, -5, 5]")
    assert cfg.target_data.bands == 2 and cfg.target_data.value_range == (0, 3000, -5, 5)
    assert parse_config(to_yaml(cfg), "again").target_data == cfg.target_data
    (tmp_path / "c.yml").write_text(f"{TOP}{{{SECTION}}}")
    cfg = load_config(tmp_path / "c.yml", ["fields.bands=1", "fields.value_range=7000,9000"])
    assert cfg.target_data.bands == 1 and cfg.target_data.value_range == (7000, 9000)
    assert load_config(tmp_path / "c.yml", ["fields.value_range=null"]).target_data.value_range is None


def test_street_data_sets_are_rgb():
    for word in ("bands: 4", "value_range: [0, 9]"):
        with pytest.raises(ConfigError, match="gta5.bands, gta5.value_range: .*type gta5"):
            parse_config(f"gta5: {{{word}}}", "c.yml")


def test_source_and_target_have_the_same_bands_where_both_are_read():
    other = f"fields: {{{SECTION}, bands: 4}}\nnear: {{{SECTION}, bands: 5}}\nnum_classes: 2\nsource: near"
    with pytest.raises(ConfigError, match="fields.bands: 4, but near.bands is 5"):
        parse_config(f"{other}\ntarget: fields\nmethod: source_only", "c.yml")
    assert parse_config(f"{other}\ntarget: near\nmethod: source_only", "c.yml").source_data.bands == 5


# ---- transforms ------------------------------------------------------------------------------------------------------

def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [(60, 44), (13, 90), (7, 9)])
def test_every_band_is_resized_as_in_float64(count, size):
    """Width first, then height, rounded in between."""
    pixels = noise((41, 29, count))
    got = transforms.resize_image(pixels, size)
    assert got.dtype == np.uint8 and got.shape == (*size, count)
    expected = torch.from_numpy(pixels).double().permute(2, 0, 1)[None]
    for shape in ((41, size[1]), size):
        expected = F.interpolate(expected, shape, mode="bicubic", antialias=True).round().clip(0, 255)
    difference = abs(got - expected[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 2 and difference.mean() < 0.1


@pytest.mark.parametrize("count", COUNTS)
def test_every_band_is_cut_at_the_same_place(count):
    image = noise((50, 70, 1)).repeat(count, 2)
    for seed in range(8):
        window = transforms.draw_window(np.random.default_rng(seed), (50, 70), 40, 30, (0.5, 1.0, 1.5), True)
        cut = transforms.cut_image(image, window, 30)
        assert cut.shape == (30, 30, count) and cut.flags.c_contiguous
        assert abs(cut.astype(int) - transforms.cut_image(image[:, :, :1], window, 30)).max() <= 1
        mirrored = transforms.cut_image(image, transforms.Window(*[*vars(window).values()][:4], not window.flip), 30)
        assert (mirrored == cut[:, ::-1]).all()


def test_figures_show_the_first_three_bands_or_grey():
    for count in COUNTS:
        pixels = noise((4, 6, count))
        shown = transforms.for_display(pixels)
        assert (shown == (pixels[:, :, [0, 1, 2]] if count > 2 else pixels[:, :, [0, 0, 0]])).all()
        assert Image.fromarray(shown).mode == "RGB"


# ---- whole data sets -------------------------------------------------------------------------------------------------

RANGES = (0, 65535, 100, 4000, 0, 20000, -5, 700, 3, 65000)


@pytest.fixture
def fields(tmp_path, monkeypatch):
    """A configuration of six images of 5 bands of 16 bits and its raw values, in the working directory."""
    monkeypatch.chdir(tmp_path)
    raw = {}
    for folder in ("i", "l"):
        Path("d", folder).mkdir(parents=True)
    for index in range(6):
        raw[f"f{index}"] = deep_noise(np.uint16, (36, 50, 5), index)
        Path(f"d/i/f{index}.tif").write_bytes(bands_tiff(raw[f"f{index}"], planar=1 + index % 2))
        Path(f"d/l/f{index}.png").write_bytes(png(np.random.default_rng(index).integers(0, 2, (36, 50)), 8, 0))
    Path("c.yml").write_text("screen: False\nworker: 0\nbatch_size: 2\n"
                             f"{TOP}{{{SECTION}, bands: 5, value_range: {list(RANGES)}}}")
    return load_config("c.yml"), raw


def test_training_crops_of_five_bands(fields):
    cfg, raw = fields
    samples = segmentation.find_samples("fields", cfg.target_data, "train")
    crops = views.TrainingCrops(samples, segmentation.label_table(cfg.target_data, 2), 30, 24, (0.75, 1.25), True, 7)
    for index, sample in enumerate(samples):
        item = crops[1, 0, index]
        window = transforms.draw_window(np.random.default_rng([7, 1, 0, index]), (36, 50), 30, 24, (0.75, 1.25), True)
        expected = transforms.cut_image(slow(raw[sample.name], RANGES).astype(np.uint8), window, 24)
        assert item["image"].dtype == torch.uint8 and item["image"].shape == (24, 24, 5)
        assert (item["image"].numpy() == expected).all() and item["label"].shape == (24, 24)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_of_five_bands_through_the_loader(fields, workers):
    cfg, raw = load_config("c.yml", [f"worker={workers}"]), fields[1]
    samples = segmentation.find_samples("fields", cfg.target_data, "val")
    names = []
    for item in loaders.whole_image_loader(cfg, "fields", samples, True):
        expected = transforms.resize_image(slow(raw[item["name"]], RANGES).astype(np.uint8), (24, 40))
        assert item["image"].dtype == torch.uint8 and item["image"].shape == (1, 24, 40, 5)
        assert (item["image"][0].numpy() == expected).all() and tuple(item["size"]) == (36, 50)
        names.append(item["name"])
    assert names == sorted(raw)
    assert [label.shape for label in loaders.whole_label_loader(cfg, "fields", samples)] == [(36, 50)] * 6
    batch = next(iter(loaders.source_loader(cfg, samples)))
    assert batch["image"].shape == (2, cfg.crop_src, cfg.crop_src, 5) and batch["image"].dtype == torch.uint8


def test_check_and_bad_samples_of_other_bands(fields, capsys):
    cfg, _ = fields
    assert check.main(["--config", "c.yml", "--split", "target_train"]) == 0
    Path("d/i/f3.tif").write_bytes(bands_tiff(noise((36, 50, 4))))
    assert check.main(["--config", "c.yml", "--split", "target_train"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "error: " in line]
    assert "d/i/f3.tif: has 4 bands (" in line and "expected 5: " in line and "fields.bands" in line
    cfg = load_config("c.yml", ["on_bad_sample=skip"])
    kept, remarks = inspection.training_samples(cfg, "fields", labels_needed=True)
    assert [s.name for s in kept] == ["f0", "f1", "f2", "f4", "f5"] and "has 4 bands" in remarks[0]


def test_a_sample_of_an_rgb_data_set_is_read_as_before(tmp_path):
    (tmp_path / "x.png").write_bytes(png(noise((4, 6, 3)), 8, 2))
    found = inspection.inspect(Sample("x", tmp_path / "x.png", None))
    assert found.image_error is None and found.size == (6, 4)
