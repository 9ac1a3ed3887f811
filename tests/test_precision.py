"""`amp: auto`: which devices compute in bf16, what is chosen for several of them, and what a saved state says."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from model import build
from model.build import with_precision
from trainer.run_state import with_saved_precision
from utils import distributed, machine
from utils.config import load_config, to_yaml
from utils.errors import ConfigError
from utils.machine import computes_in_bf16  # the tests' own process has another: conftest.py

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "c.yml").write_text("method: ld\ninit_weight: imagenet")
    return load_config(tmp_path / "c.yml")


@pytest.mark.parametrize("content, expected", [
    ("processor : 0\nmodel name\t: CPU X\nflags\t\t: fpu avx512f avx512_bf16 sse\n\nflags: other\n", True),
    ("flags\t\t: fpu amx_tile amx_bf16\n", True),
    ("flags\t\t: fpu avx512f avx512_fp16 avx512_bf16x\n", False),
    ("flags\t\t: avx2\n\nprocessor : 1\nflags : avx512_bf16\n", False),  # slower cores beside: the first decides
    ("Features\t: fp asimd bf16\n", False), ("", False), (None, False)])
def test_cpus_with_bf16_units_are_known(content, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert computes_in_bf16(CPU) == (expected and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("capability, expected", [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True),
                                                  ((9, 0), True), ((12, 0), True)])
def test_gpus_have_bf16_units_since_ampere(capability, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    assert computes_in_bf16(torch.device("cuda:1")) == expected and asked == [torch.device("cuda:1")]


def test_others_are_not_known():
    assert not computes_in_bf16(torch.device("meta"))


@pytest.mark.parametrize("own, others, expected", [(True, True, "bf16"), (True, False, "off"), (False, True, "off")])
def test_auto_is_what_all_processes_can_do_well(cfg, own, others, expected, monkeypatch):
    monkeypatch.setattr(machine, "computes_in_bf16", lambda device: own)
    monkeypatch.setattr(distributed, "any_of", lambda flag: flag or not others)
    assert cfg.amp == "auto"
    found = with_precision(cfg, CPU)
    assert found.amp == expected and dataclasses.replace(found, amp="auto") == cfg


def test_what_is_asked_for_is_taken_without_a_look_at_the_machine(cfg, monkeypatch):
    monkeypatch.setattr(machine, "computes_in_bf16", lambda device: 1 / 0)
    for amp in ("off", "bf16", "fp16"):
        asked = dataclasses.replace(cfg, amp=amp)
        assert with_precision(asked, CPU) == asked


def test_a_device_that_cannot_is_refused_in_one_line_and_full_memory_is_not_taken_for_it(cfg, monkeypatch):
    def refuse(text):
        def conv2d(*_):
            raise RuntimeError(text)
        return conv2d
    asked = dataclasses.replace(cfg, amp="bf16")
    monkeypatch.setattr(F, "conv2d", refuse("GET was not able\nto do it"))
    with pytest.raises(ConfigError, match=r"^amp: bf16 is not computed on cpu \(GET was not able\): use off there"):
        with_precision(asked, CPU)
    assert with_precision(dataclasses.replace(cfg, amp="off"), CPU).amp == "off"
    monkeypatch.setattr(F, "conv2d", refuse("CUDA error: out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        with_precision(asked, CPU)


def test_auto_goes_on_in_the_precision_of_the_state(cfg):
    for amp in ("off", "bf16", "fp16"):
        state = {"config": to_yaml(dataclasses.replace(cfg, amp=amp))}
        assert with_saved_precision(cfg, state).amp == amp
        assert with_saved_precision(dataclasses.replace(cfg, amp="bf16"), state).amp == "bf16"


def test_a_network_is_built_in_it(cfg, monkeypatch):
    small = dataclasses.replace(cfg, options={**cfg.options, "layers": (1, 1, 1, 1), "width": 4})
    for native in (True, False):
        monkeypatch.setattr(machine, "computes_in_bf16", lambda device, native=native: native)
        network, _ = build.build_model(small, CPU, load=False)
        assert network.autocast == (torch.bfloat16 if native else None)
