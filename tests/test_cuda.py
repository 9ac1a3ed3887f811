"""What only a CUDA GPU can show: copies beside the computation, stages in each precision, steps without waits, resumes.
tests/test_waits.py, test_background.py and test_compiling.py show on the CPU what can be shown there."""
import signal
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import TINY, all_stages, call, toy_world, weights, world  # noqa: F401 (fixtures)
from test_resume import kill_at
from test_waits import item

import run as run_script
import run_so as run_so_script
from model.build import build_model, with_precision
from model.weights import save_weights
from trainer.loop import Trainer
from trainer.methods import find, known
from utils.background import host_copies, host_copy, to_device
from utils.checkpoint import digest, digest_later, read_state
from utils.cli import EXIT_STOPPED, EXIT_USER_ERROR, guarded
from utils.config import load_config
from utils.errors import TrainingError

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LD = ("method=ld", "init_weight=snapshot/tiny/source_only.pth", "device=cuda")


def busy(device, seconds=0.2):
    """Keep a GPU's current stream busy for about so long."""
    with torch.cuda.device(device):
        torch.cuda._sleep(int(seconds * 1e9))


@pytest.fixture(params=["cuda:0", "cuda:1"])
def device(request):
    if int(request.param[-1]) >= torch.cuda.device_count():
        pytest.skip("one GPU")
    torch.cuda.set_device(0)
    return torch.device(request.param)


def test_a_copy_waits_for_its_own_gpu(device):
    """The current GPU is cuda:0, which has nothing to do."""
    for count in range(20):
        x = torch.zeros(2**22, dtype=torch.int16, device=device)
        busy(device, 0.02)
        x += count + 1
        copy = host_copy(x)
        x.zero_()
        assert copy().eq(count + 1).all()


def test_many_copies_at_once_are_right(device):
    tensors = {n: torch.full((2**16 + n,), float(n), device=device) for n in range(200)}
    busy(device)
    copies = host_copies(tensors)
    for x in tensors.values():
        x.fill_(-1)
    del tensors, x
    later = torch.full((2**24,), -2.0, device=device)  # takes the memory that is free now
    assert all(copy.eq(n).all() and copy.device.type == "cpu" for n, copy in copies().items()) and later[0] == -2


def test_a_copy_to_the_gpu_and_back_waits_for_nothing(device):
    x = torch.randn(2**20)
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(x, device)
        back = host_copy(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert back().equal(x)


def test_a_digest_is_that_of_the_cpu(device):
    state = {"a": torch.randn(7, 6, 3, 3).to(memory_format=torch.channels_last), "b": torch.arange(9)}
    there = {name: tensor.to(device) for name, tensor in state.items()}
    found = digest_later(there)
    there["b"] += 1
    assert found() == digest(state) == digest({name: tensor.to(device) for name, tensor in state.items()})


@pytest.mark.parametrize("words", [["amp=off"], ["amp=bf16"], ["amp=fp16"], ["amp=auto"], ["checkpointing=true"],
                                   ["compile=true"], ["compile=true", "checkpointing=true", "amp=bf16"],
                                   ["channels_last=false"]], ids=" ".join)
def test_all_stages_run(world, monkeypatch, words):  # noqa: F811
    all_stages(monkeypatch, "device=cuda", *words)
    assert all(tensor.isfinite().all() for tensor in weights("snapshot/tiny/be.pth").values())


@pytest.fixture
def started(world):  # noqa: F811
    """A function that makes a trainer on the GPU, from a network that is trained enough."""
    network, _ = build_model(load_config("tiny.yml"), torch.device("cpu"))
    save_weights(network, "start.pth")

    def make(name, *words):
        cfg = load_config("tiny.yml", ["init_weight=start.pth", "device=cuda", "val=false", "score_images=0",
                                       f"note={name}", *words], method=name)
        trainer = Trainer(cfg)
        trainer.begin_optimisation()
        if trainer.optimisation:
            trainer.optimisation.schedule(1e-3, 0)
        return trainer
    return make


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("name", known())
def test_a_step_waits_for_nothing(started, name, amp):
    trainer = started(name, f"amp={amp}")
    batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v
             for k, v in item(2 if find(name).trains else 1).items()}
    for _ in range(3):  # cuDNN has chosen its algorithms, and what is cached is there
        trainer.step(batch)
    torch.cuda.set_sync_debug_mode("warn")  # waiting for the event of the step before is no wait for this one
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(w.message) for w in caught if "synchroniz" in str(w.message)] == []
    trainer.settle()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_loss_that_is_not_finite_is_said_a_step_later_and_nothing_has_moved(started, monkeypatch, amp):
    trainer = started("entmin", f"amp={amp}")
    plain = trainer.method.losses
    for _ in range(3):
        trainer.step(item(2))
        trainer.position.global_step += 1
    before = {k: v.clone() for k, v in trainer.network.named_parameters()}
    monkeypatch.setattr(trainer.method, "losses", lambda *a: {k: v * float("nan") for k, v in plain(*a).items()})
    trainer.step(item(2))
    trainer.position.global_step += 1
    with pytest.raises(TrainingError, match="step 3: the loss is not finite"):
        trainer.save_state()
    assert all(before[k].equal(v) for k, v in trainer.network.named_parameters())


def test_a_stopped_run_ends_as_one_that_was_not(world, monkeypatch):  # noqa: F811
    """Not to the last bit, as some sums on a GPU have no fixed order."""
    assert call(monkeypatch, run_so_script, "device=cuda") == 0
    assert call(monkeypatch, run_script, *LD, "note=whole", "save_freq=1") == 0
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, 2, signal.SIGTERM)
        assert call(patch, run_script, *LD, "save_freq=1") == EXIT_STOPPED
    state = read_state(sorted(Path("snapshot/tiny/ld.state").glob("*.pth"))[-1])
    assert all(tensor.device.type == "cpu" for tensor in state["parts"]["network"].values())
    assert call(monkeypatch, run_script, *LD, "--resume") == 0
    whole, resumed = weights("snapshot/whole/ld.pth"), weights("snapshot/tiny/ld.pth")
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=1e-2, atol=1e-3)


def test_a_state_of_the_cpu_goes_on_on_a_gpu_and_back(world, monkeypatch):  # noqa: F811
    assert call(monkeypatch, run_so_script) == 0
    for step, device in ((1, "cpu"), (1, "cuda"), (1, "cpu")):
        with monkeypatch.context() as patch:
            kill_at(patch, Trainer, step, signal.SIGTERM)
            assert call(patch, run_script, *LD, f"device={device}", "--resume", "epochs=3") == EXIT_STOPPED
    assert call(monkeypatch, run_script, *LD, "--resume", "epochs=3") == 0


def test_full_memory_is_one_line(capsys):
    def main():
        held = [torch.empty(2**33, dtype=torch.uint8, device="cuda") for _ in range(10**4)]
        return len(held)
    torch.cuda.set_per_process_memory_fraction(0.01)  # other processes test at the same time
    try:
        assert guarded(main) == EXIT_USER_ERROR
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    said = capsys.readouterr().err
    assert said.startswith("error: the GPU's memory is full") and said.count("\n") == 1


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16", "auto"])
def test_a_gpu_computes_in_each_precision(tmp_path, amp):
    (tmp_path / "c.yml").write_text(yaml.safe_dump({**TINY, "amp": amp}))
    found = with_precision(load_config(tmp_path / "c.yml"), torch.device("cuda"))
    assert found.amp == ("off" if amp == "auto" else amp)  # conftest.py: as on a machine without bf16 units


def test_a_state_that_is_written_beside_steps_is_that_of_its_own(started):
    """The copy of a state is asked for beside steps, whose weights move on."""
    trainer = started("entmin")
    trainer.step(item(2))
    expected = {k: v.detach().cpu().clone() for k, v in trainer.network.state_dict().items()}
    trainer.position.step = trainer.position.global_step = 1
    trainer.save_state(wait=False)
    for _ in range(3):
        trainer.step(item(2))
    trainer.settle()
    saved = read_state(trainer.folder.states.paths()[-1])["parts"]["network"]
    assert all(saved[k].equal(expected[k]) for k in expected)
    assert any(not v.detach().cpu().equal(expected[k]) for k, v in trainer.network.state_dict().items())
