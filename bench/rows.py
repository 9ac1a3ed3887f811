"""Every row of the table, by the name that the command line takes."""
from bench import labelling, training
from bench.harness import Ratio, Row
from bench.inputs import Size

LIGHT = {"model": "torchvision/lraspp_mobilenet_v3_large"}
KEYS = ({"channels_last": False}, {"compile": True}, {"amp": "bf16"}, {"checkpointing": True})
ALL, PAIR = ("baseline", "product", "floor"), ("baseline", "product")


def faster(bound: float) -> Ratio:
    """The target that the product is this many times as fast as the baseline."""
    return Ratio("baseline", "product", ">=", bound)


def near(floor: str, bound: float) -> Ratio:
    """The target that the product takes at most this many times as long as a floor."""
    return Ratio("product", floor, "<=", bound)


def cpu_rows(size: Size) -> dict[str, list[Row]]:
    """Those of the CPU. Reading whole images is part of the work."""
    found = {
        "round": [Row("pseudo-label round, per image", labelling.pseudo_label_round, ALL,
                      [faster(2.3), near("floor", 1.15)])],
        "round_memory": [Row(f"memory of a round, growth from {labelling.FEW} to {size.many} images (baseline scaled up "
                             f"from {labelling.SOME})", labelling.round_memory, PAIR,
                             [Ratio("product", None, "<=", 64)], unit="MiB")],
        "validation": [Row("validation, per image", labelling.validation, ALL, [near("floor", 1.08)])],
        "losses": [Row(f"losses of an LD step, batch 3, {size.crop}x{size.crop}, forward and backward",
                       training.ld_losses, ALL, [faster(2)], repeats=15)],
        "sample": [Row(f"one training sample, {dataset} ({'x'.join(map(str, getattr(size, dataset)))})",
                       training.training_sample, ALL, [faster(1.6), near("floor", 1.25)], {"dataset": dataset},
                       repeats=15) for dataset in ("gta5", "cityscapes")],
        "head": [Row(f"head of the network, batch 1, {size.width * 32} x {-(-size.crop // 8)} x {-(-size.crop // 8)}, "
                     "forward and backward", training.network_head, PAIR, [faster(1)], repeats=15)],
        "step": [], "keys": key_rows("cpu", 1),
        "start": [Row("start of run.py to its first step (floor: imports and the network)", training.start_of_a_run,
                      ("product", "floor"), [near("floor", 1.3)], repeats=7)],
        "scaling": [Row(f"{work}, by {axis}", prepare, tuple(map(str, size.axes[axis])),
                        [Ratio(str(n), str(size.axes[axis][0])) for n in size.axes[axis][1:]], {"axis": axis})
                    for work, prepare, axes in (("round without the network", labelling.round_growth, size.axes),
                                                ("LD losses", training.loss_growth, ("classes", "sides")))
                    for axis in axes],
        "light": [Row("light network: pseudo-label round, per image", labelling.pseudo_label_round,
                      ("product", "floor"), [near("floor", 2.0)], LIGHT),
                  Row(f"light network: LD step, batch 3, crop {size.crop} (bare: forward and backward)",
                      training.train_step, ("product", "bare"), [near("bare", 1.25)],
                      {"method": "ld", "count": 3, **LIGHT})]}
    for method, count in (("ld", 1), ("be", 2)):
        title, settings = f"{method.upper()} step, batch {count}, crop {size.crop}", {"method": method, "count": count}
        found["step"] += [
            Row(title, training.train_step, (*PAIR, "checkpointing"),
                [faster(1.2), Ratio("baseline", "checkpointing", ">=", 0.7)], settings),
            Row(f"{title}, peak memory", training.train_step, (*PAIR, "checkpointing"),
                [near("baseline", 1), Ratio("checkpointing", "baseline", "<=", 0.45)], {**settings, "memory": True},
                "MiB")]
    return found


def gpu_rows(size: Size) -> dict[str, list[Row]]:
    """Those of a GPU. The product runs with amp=bf16; whole images are decoded before, as reading them takes longer
    than the network."""
    settings = {"decoded": True, "amp": "bf16"}
    return {
        "round": [Row("GPU: pseudo-label round, per image", labelling.pseudo_label_round, PAIR, [faster(6)], settings,
                      repeats=9)],
        "validation": [Row("GPU: validation, per image", labelling.validation, PAIR, [faster(6)], settings, repeats=9)],
        "step": [Row(f"GPU: {method.upper()} step, batch 3, crop {size.crop} (floor: bf16 products of large matrices)",
                     training.train_step, ("baseline", "TF32", "product", "floor"),
                     [faster(3), Ratio("TF32", "product", ">=", 1), near("floor", 2.5)],
                     {"method": method, "count": 3, "steps": 5, "amp": "bf16"}, repeats=9) for method in ("ld", "be")],
        "keys": key_rows("cuda", 3)}


def key_rows(device: str, count: int) -> list[Row]:
    """An LD step with one key after the other set otherwise, beside the same step with all defaults."""
    return [Row(f"LD step with {key}: {value}, {device}, batch {count}", training.train_step, ("defaults", "product"),
                [Ratio("product", "defaults")], {"method": "ld", "count": count, key: value})
            for entry in KEYS for key, value in entry.items()]
