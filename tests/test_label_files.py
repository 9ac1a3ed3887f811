"""The files of pseudo labels: shares, tar files, index and manifest, for any number of processes; constant memory."""
import io
import json
import pickle
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_pipeline import TINY, call, weights

import run as run_script
from dataset import files
from dataset.segmentation import Sample
from dataset.shards import INDEX, Member, ShardWriter
from dataset.toy import write_toy_world
from model.build import build_model
from model.weights import save_weights
from trainer import label_files, report_data, report_pictures
from trainer.label_files import MANIFEST, Dealt, LabelFolder, Share, intact, labelled, labelled_now
from trainer.loop import Trainer
from utils import distributed
from utils.cli import EXIT_STOPPED
from utils.config import load_config
from utils.errors import DataError

LD = ("method=ld", "init_weight=start.pth")
SHARDS = (0, 1, 2, 3, 7, 50)
NAMES = ["frankfurt/a_000", "frankfurt/b.leftImg", "Zürich/straße", "日本/道路", "x" * 150, "d/" * 60 + "e", "last"]


@pytest.fixture
def process(monkeypatch):
    """Be one of several processes: process(rank, size). What process 0 computes for all is computed by any."""
    def become(rank, size):
        monkeypatch.setattr(distributed, "joined", lambda: True)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "size", lambda: size)
        monkeypatch.setattr(distributed, "from_main", lambda call: call() if rank == 0 else None)
        monkeypatch.setattr(distributed, "any_of", bool)
    return become


def samples_of(names):
    return [Sample(name, Path(f"{name}.jpg"), None) for name in names]


def label_of(name):
    """A random label whose size and content the name tells."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 256, rng.integers(1, 40, 2), np.uint8)


def written(folder, samples, shard, process, size, facts=None):
    """Write the labels as `size` processes would, one after the other. Returns the manifest's hash."""
    for rank in range(size):
        process(rank, size)
        labels = LabelFolder(folder, samples, shard)
        if rank == 0:
            labels.clear()
        with labels.writing() as write:
            for index, sample in enumerate(labels.share):
                write(index, sample.name, lambda name=sample.name: torch.from_numpy(label_of(name)))
    process(0, size)
    return LabelFolder(folder, samples, shard).finish(**(facts or {"weights": "abc", "portion": 0.1}))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- shares ----------------------------------------------------------------------------------------------------------

def test_shares_of_whole_blocks_hold_each_sample_once(process):
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, block, size = (int(rng.integers(low, high)) for low, high in ((0, 40), (1, 12), (1, 6)))
        items, shares = list(range(count)), []
        for rank in range(size):
            process(rank, size)
            share = Share([f"item {i}" for i in items], Dealt(count, block))
            expected = [i for i in items if i // block % size == rank]
            assert list(share.numbers) == expected and list(share) == [f"item {i}" for i in expected]
            assert list(share[1:-1]) == list(share)[1:-1] and list(share[::2][1:]) == list(share)[::2][1:]
            if expected:
                assert share.numbers[-1] == expected[-1] and share.numbers[np.int64(0)] == expected[0]
            with pytest.raises(IndexError):
                share[len(share)]
            shares += share.numbers
        assert sorted(shares) == items


# ---- files -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shard", SHARDS)
def test_any_number_of_processes_leaves_the_same_bytes(tmp_path, process, shard):
    rng = np.random.default_rng(shard)
    for trial, count in enumerate((0, 1, 2, *rng.integers(3, 20, 2).tolist())):
        samples = samples_of([f"{i % 3}/image{i}" for i in range(count)])
        found = {}
        for size in (1, 2, 3):
            folder = tmp_path / f"{trial}.{size}"
            hashed = written(folder, samples, shard, process, size)
            found[size] = contents(folder)
            assert hashed == hash_of(found[size][MANIFEST])
        assert all(files == found[1] for files in found.values())
        assert len(found[1]) == (-(-count // shard) + 2 if shard else count + 1)


def hash_of(content):
    return subprocess.run(["sha256sum"], input=content, capture_output=True).stdout.decode().split()[0]


@pytest.mark.parametrize("shard", SHARDS)
def test_labels_are_read_back_in_any_order(tmp_path, process, shard):
    samples = samples_of(NAMES)
    written(tmp_path, samples, shard, process, 2)
    for found in (labelled(tmp_path, samples, shard > 0), labelled_now(tmp_path, samples),
                  pickle.loads(pickle.dumps(labelled_now(tmp_path, samples)))):
        for i in np.random.default_rng(0).permutation(len(samples)):
            assert (found[i].name, found[i].image, found[i].bands) == (samples[i].name, samples[i].image,
                                                                       samples[i].bands)
            assert (files.read_label_ids(found[i].label) == label_of(samples[i].name)).all()
            assert files.read_label_size(found[i].label) == label_of(samples[i].name).shape[::-1]
            assert found[i].label.is_file() and str(found[i].label).endswith(f"{samples[i].name}.png")
        everything = list(found)
        for part in (slice(1, None, 2), slice(None, None, -1), slice(-2, None), slice(5, 2)):
            assert list(found[part]) == everything[part] and len(found[part]) == len(everything[part])
        assert found[1:][1:][0] == everything[2] and found[-1] == everything[-1]
        with pytest.raises(IndexError):
            found[len(samples)]


@pytest.mark.parametrize("shard", [2, 50])
def test_tar_files_are_what_other_programs_read(tmp_path, process, shard):
    """As the webdataset convention has them: files in order, which are named by key and extension, without folders."""
    samples, read = samples_of(NAMES), {}
    written(tmp_path, samples, shard, process, 3)
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path, "r|") as tar:
            for info in tar:
                assert info.isreg() and (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)
                read[info.name] = tar.extractfile(info).read()
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True)
        assert listed.returncode == 0 and listed.stderr == ""
    assert list(read) == [f"{name}.png" for name in NAMES]
    written(tmp_path / "single", samples, 0, process, 1)
    for name, content in read.items():
        assert content == (tmp_path / "single" / name).read_bytes()
        assert (np.array(Image.open(io.BytesIO(content))) == label_of(name.removesuffix(".png"))).all()
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == [f"{i:06d}.tar" for i in range(-(-len(NAMES) // shard))]


def test_the_manifest_is_what_sha256sum_checks(tmp_path, process):
    for shard in (0, 3):
        folder = tmp_path / str(shard)
        written(folder, samples_of(NAMES), shard, process, 2, {"weights": "abc", "portion": 0.25})
        head, *entries = map(json.loads, (folder / MANIFEST).read_text().splitlines())
        assert head == {"weights": "abc", "portion": 0.25, "shard": shard}
        assert [e["name"] for e in entries] == ([f"{i:06d}.tar" for i in range(3)] + [INDEX] if shard else
                                                [f"{name}.png" for name in NAMES])
        lines = "".join(f"{e['sha256']}  {e['name']}\n" for e in entries)
        assert subprocess.run(["sha256sum", "--check", "--strict"], input=lines.encode(), cwd=folder,
                              capture_output=True).returncode == 0


def test_one_way_of_keeping_labels_replaces_the_other(tmp_path, process):
    samples = samples_of(NAMES)
    for shard in (3, 0, 2, 50):
        tmp_path.mkdir(exist_ok=True)
        for left in (f".{MANIFEST}.17.tmp", ".digests.9.tmp", "000007.tar"):  # by a process that was killed
            (tmp_path / left).write_bytes(b"x")
        written(tmp_path, samples, shard, process, 2)
        assert all((files.read_label_ids(s.label) == label_of(s.name)).all() for s in labelled_now(tmp_path, samples))
        assert len(list(tmp_path.glob("*.tar"))) == (-(-len(NAMES) // shard) if shard else 0)
        assert (tmp_path / INDEX).exists() == (shard > 0) and not list(tmp_path.rglob(".*"))


# ---- damage ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shard", [0, 3])
def test_a_folder_is_intact_until_anything_in_it_changes(tmp_path, process, shard):
    samples = samples_of(NAMES)
    manifest = written(tmp_path, samples, shard, process, 2)
    process(0, 1)
    assert intact(tmp_path, samples, manifest)
    assert not intact(tmp_path, samples, "0" * 64) and not intact(tmp_path, samples, None)
    assert not intact(tmp_path / "other", samples, manifest)
    if not shard:  # of tar files the index tells when a label is asked for
        assert not intact(tmp_path, samples[::-1], manifest)
    assert not intact(tmp_path, samples[:-1 if not shard else -2], manifest)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        for harm in (content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(harm)
            assert not intact(tmp_path, samples, manifest)
        path.unlink()
        assert not intact(tmp_path, samples, manifest)
        path.write_bytes(content)
    assert intact(tmp_path, samples, manifest)


def test_each_process_hashes_its_share_of_the_files(tmp_path, process, monkeypatch):
    samples, read, plain = samples_of(NAMES), [], label_files._sha256
    manifest = written(tmp_path, samples, 0, process, 1)
    monkeypatch.setattr(label_files, "_sha256", lambda path: read.append(path.name) or plain(path))
    for rank in range(3):
        process(rank, 3)
        assert intact(tmp_path, samples, manifest)
    assert sorted(read) == sorted([f"{Path(name).name}.png" for name in NAMES] + 3 * [MANIFEST])


def test_labels_of_another_list_are_not_taken_for_ones_own(tmp_path, process):
    samples = samples_of(NAMES)
    written(tmp_path, samples, 3, process, 1)
    for others in (samples[::-1], samples[1:], samples_of([f"new{i}" for i in range(9)])):
        with pytest.raises(DataError, match="written for another list"):
            labelled_now(tmp_path, others)[0]
    with pytest.raises(DataError, match=r"index\.npy: has no pseudo label of 'eighth' as number 7"):
        labelled_now(tmp_path, [*samples, *samples_of(["eighth"])])[7]
    for harm in (b"", b"\x93NUMPY", b"{}"):
        (tmp_path / INDEX).write_bytes(harm)
        with pytest.raises(DataError, match="damaged"):
            labelled_now(tmp_path, samples)[0]


def test_a_tar_file_that_is_gone_or_cut_is_named(tmp_path, process):
    samples = samples_of(NAMES)
    written(tmp_path, samples, 50, process, 1)
    shard, last = tmp_path / "000000.tar", labelled_now(tmp_path, samples)[6].label
    shard.write_bytes(shard.read_bytes()[: last.offset + last.size - 1])
    with pytest.raises(DataError, match=r"000000\.tar/last\.png: cannot be read as a label \(.*ends before it\)"):
        files.read_label_ids(last)
    shard.unlink()
    with pytest.raises(DataError, match=r"000000\.tar/last\.png: label not found"):
        files.read_label_ids(last)
    assert not last.is_file()


def test_a_member_is_where_the_writer_says(tmp_path):
    rng, writer, members = np.random.default_rng(0), ShardWriter(tmp_path / "s.tar"), []
    for size in (0, 1, 511, 512, 513, 5000):
        content = rng.bytes(size)
        members.append((Member(writer.path, "x", writer.add(f"{size}.bin", content), size), content))
    assert writer.finish().hex() == hash_of(writer.path.read_bytes())
    for member, content in members:
        with member.open() as file:
            assert file.read() == content


# ---- whole runs ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with runs of two rounds: `png`, whose labels are PNG files, and `tar`, with tar files of 2 images."""
    root = tmp_path_factory.mktemp("runs")
    write_toy_world(root / "world", seed=5, size=(128, 64), source=2, synthia=0, train=5, val=2)
    (root / "tiny.yml").write_text(yaml.safe_dump({**TINY, "keep": 9, "pictures": 2}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        torch.manual_seed(0)
        save_weights(build_model(load_config("tiny.yml"), torch.device("cpu"), load=False)[0], "start.pth")
        for note, words in (("png", ()), ("tar", ("plabel_shard=2", "worker=2"))):
            assert call(patch, run_script, f"note={note}", *LD, *words) == 0
    return root


def results(note):
    """Weights and the log's facts on pseudo labels."""
    events = map(json.loads, Path(f"log/{note}/ld.jsonl").read_text().splitlines())
    return ({k: v.numpy().tobytes() for k, v in weights(f"snapshot/{note}/ld.pth").items()},
            [{k: v for k, v in e.items() if k != "seconds"} for e in events if e["event"] in ("pseudo_label", "train")])


@pytest.mark.slow
def test_a_run_with_tar_files_has_the_results_of_one_without(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert results("tar") == results("png") and len(results("tar")[1]) > 2
    for index in (0, 1):
        png, tar = (contents(Path(f"plabel/{note}/ld/round{index}")) for note in ("png", "tar"))
        assert sorted(tar) == ["000000.tar", "000001.tar", "000002.tar", INDEX, MANIFEST] and len(png) == 6
        inside = {}
        for name in sorted(tar)[:3]:
            with tarfile.open(fileobj=io.BytesIO(tar[name])) as file:
                inside |= {info.name: file.extractfile(info).read() for info in file}
        assert inside == {name: content for name, content in png.items() if name != MANIFEST}


@pytest.mark.slow
def test_reports_and_pictures_show_labels_of_tar_files(trained, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    monkeypatch.chdir(trained)
    shown = {}
    for note in ("png", "tar"):
        cfg = load_config("tiny.yml", ("pictures=3",), note=note)
        tables, why_not = report_pictures.tables(cfg, report_data.stages(cfg))
        assert not why_not
        shown[note] = next(table.rows for table in tables if table.title.startswith("Pseudo labels"))
        board = EventAccumulator(f"log/{note}/ld", size_guidance={"images": 0})
        board.Reload()
        shown[note, "board"] = [image.encoded_image_string for image in board.Images("images")]
    assert shown["tar"] == shown["png"] and len(shown["png"]) == 1 + 2 + 1
    assert shown["tar", "board"] == shown["png", "board"] and len(shown["png", "board"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("harm", [None, "tar", "index", "png now"])
def test_a_stopped_run_goes_on_with_its_tar_files(trained, monkeypatch, capsys, harm):
    """Those that are damaged are written again; the key may change, from the next round on."""
    monkeypatch.chdir(trained)
    note, words = f"stopped {harm}", ("plabel_shard=2", *LD)
    step = Trainer.step

    def stop(self, item):
        self.interrupt.requested = "SIGTERM" if self.position.global_step == 0 else None
        return step(self, item)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert call(patch, run_script, f"note={note}", *words) == EXIT_STOPPED
    folder = Path(f"plabel/{note}/ld/round0")
    if harm in ("tar", "index"):
        path = folder / {"tar": "000001.tar", "index": INDEX}[harm]
        path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert call(monkeypatch, run_script, f"note={note}", *words[1:], "--resume",
                "plabel_shard=0" if harm == "png now" else "plabel_shard=2") == 0
    assert ("the round is done again" in capsys.readouterr().out) == (harm in ("tar", "index"))
    assert results(note) == results("png")
    assert (folder / INDEX).exists() and len(list(Path(f"plabel/{note}/ld/round1").rglob("*.png"))) == (
        5 if harm == "png now" else 0)


# ---- memory ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shard", [0, 16])
def test_memory_does_not_grow_with_the_images(tmp_path, process, shard, monkeypatch):
    monkeypatch.setattr(label_files, "_CHUNK", 500)

    def peak(count):
        samples = samples_of([f"image number {i}" for i in range(count)])
        tracemalloc.start()
        manifest = written(tmp_path / str(count), samples, shard, process, 1)
        process(0, 1)
        assert intact(tmp_path / str(count), samples, manifest)
        for sample in labelled_now(tmp_path / str(count), samples):
            files.read_label_ids(sample.label)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    def least(count):  # in which order the threads write only adds to it
        return min(peak(count) for _ in range(3))
    peak(20)  # what is imported and cached once
    assert least(1000) - least(200) < 800 * 20  # bytes; a hash alone takes 32
