"""Every row of the table, by the name that the command line takes."""
from bench import label_files, labelling, lists, training
from bench.harness import Row
from bench.inputs import Size

LIGHT = {"model": "torchvision/lraspp_mobilenet_v3_large"}
PAIR, ALL = ("baseline", "product"), ("baseline", "product", "floor")


def rows(size: Size, device: str) -> dict[str, list[Row]]:
    """Those of a device. On a GPU the product runs with amp=bf16, and whole images are decoded before: reading them
    takes longer than the network. A GPU's targets follow from counting operations and bytes (docs/speed.md)."""
    gpu = device == "cuda"
    ld = {"method": "ld", "count": 3 if gpu else 1, **({"amp": "bf16"} if gpu else {})}
    whole = {"settings": {"decoded": True, "amp": "bf16"} if gpu else {}, "repeats": 9 if gpu else 5}
    found = {
        "round": [Row("pseudo-label round, per image", labelling.pseudo_label_round, ALL, (
            ["baseline/product >= 6"] if gpu else ["baseline/product >= 2.3", "product/floor <= 1.15"]), **whole)],
        "validation": [Row("validation, per image", labelling.validation, ALL,
                           ["baseline/product >= 3" if gpu else "product/floor <= 1.08"], **whole)],
        "step": [row for method in ("ld", "be") for row in (gpu_step if gpu else cpu_step)(size, method)],
        "reading": [Row(f"reading a batch of an LD step, {training.READERS} processes (floor: the step)",
                        training.reading, ("product", "floor"), ["product/floor <= 1"], ld)],
        "torchrun": [Row(f"{title}, with one process under torchrun", training.under_torchrun, ("product", "torchrun"),
                         ["torchrun/product <= 1.03"], {"prepare": prepare, **settings}, repeats=9 if gpu else 5)
                     for title, prepare, settings in (
                         ("LD step", training.train_step, {**ld, "steps": 5 if gpu else 1}),
                         ("BE step", training.train_step, {**ld, "method": "be", "count": 3 if gpu else 2,
                                                           "steps": 5 if gpu else 1}),
                         ("pseudo-label round, per image", labelling.pseudo_label_round, whole["settings"]))],
        "keys": [Row(f"LD step with {key}: {value}, batch {3 if gpu else 1}", training.train_step,
                     ("defaults", "product"), ["product/defaults"],
                     {"method": "ld", "count": 3 if gpu else 1, key: value})
                 for key, value in (("channels_last", False), ("compile", True), ("amp", "bf16"),
                                    ("checkpointing", True))]}
    return found if gpu else found | cpu_rows(size)


def cpu_step(size: Size, method: str) -> list[Row]:
    """Seconds and peak memory of a step, also with activations recomputed, and seconds in the default precision, which
    is bf16 on a CPU that has units for it, beside the CPU's rate in bf16."""
    count = {"ld": 1, "be": 2}[method]
    title, variants = f"{method.upper()} step, batch {count}, crop {size.crop}", (*PAIR, "checkpointing")
    settings = {"method": method, "count": count}
    return [Row(f"{title} (matrices: as many operations in bf16)", training.train_step,
                (*variants, "auto", "matrices"),
                ["baseline/product >= 1.2", "baseline/checkpointing >= 0.7",
                 "baseline/auto >= 2.5" if method == "ld" else "baseline/auto", "auto/matrices <= 1.25"], settings),
            Row(f"{title}, peak memory", training.train_step, variants,
                ["product/baseline <= 1", "checkpointing/baseline <= 0.45"], {**settings, "memory": True}, "MiB")]


def gpu_step(size: Size, method: str) -> list[Row]:
    """Seconds of a step beside the baseline with and without TF32, and beside the card's rate: moving the activations
    takes as long as 40% of that rate allow, so half of this is the target."""
    title = f"{method.upper()} step, batch 3, crop {size.crop} (matrices: as many operations in bf16)"
    return [Row(title, training.train_step, (*PAIR, "TF32", "matrices"),
                ["baseline/product >= 3", "TF32/product >= 1", "product/matrices <= 5"],
                {"method": method, "count": 3, "steps": 5, "amp": "bf16"}, repeats=9)]


def cpu_rows(size: Size) -> dict[str, list[Row]]:
    """Those that only a CPU has."""
    side, growth = -(-size.crop // 8), {
        "round without the network": (labelling.round_growth, size.axes),
        "LD losses": (training.loss_growth, ("classes", "sides"))}
    return {
        "predict": [Row(f"predict.py{name}, per image (floor: the network's passes)", labelling.predict,
                        ("product", "floor"), ["product/floor <= 1.15"], settings)
                    for name, settings in (("", {}), (" with a light network", LIGHT))],
        "round_memory": [Row(f"memory of a round, growth from {labelling.FEW} to {size.many} images (baseline scaled "
                             f"up from {labelling.SOME})", labelling.round_memory, PAIR, ["product <= 64"],
                             unit="MiB")],
        "shards": [Row(f"{20 * size.many} small pseudo labels, a file each or tar files of {label_files.SHARD}: {work}",
                       prepare, ("png", "tar"), ["png/tar"], unit=unit, repeats=3) for work, prepare, unit in (
                           ("writing, per image", label_files.writing, "s"),
                           ("reading at random, per image", label_files.reading, "s"),
                           ("checking hashes, per image", label_files.checking, "s"),
                           ("listing and removing, per image", label_files.removing, "us"),
                           ("room on the disk, per image", label_files.space, "B"))],
        "losses": [Row(f"losses of an LD step, batch 3, {size.crop}x{size.crop}, forward and backward",
                       training.ld_losses, ALL, ["baseline/product >= 2"], repeats=15)],
        "sample": [Row(f"one training sample, {name} ({'x'.join(map(str, getattr(size, name)))})",
                       training.training_sample, ALL, ["baseline/product >= 1.6", "product/floor <= 1.25"],
                       {"dataset": name}, repeats=15) for name in ("gta5", "cityscapes")],
        "head": [Row(f"head of the network, batch 1, {size.width * 32} x {side} x {side}, forward and backward",
                     training.network_head, PAIR, ["baseline/product >= 1"], repeats=15)],
        "start": [Row("start of run.py to its first step (floor: imports and the network)", training.start_of_a_run,
                      ("product", "floor"), ["product/floor <= 1.3"], repeats=7)],
        "lists": [Row(f"{work}{', memory' if memory else ''}", prepare, PAIR,
                      [f"product <= {most[memory]}", "baseline/product >= 1"], {"memory": memory},
                      unit="MiB" if memory else "s", repeats=3)
                  for work, prepare, most in (
                      (f"a list of {size.names[0]} names is read (baseline scaled up from {size.names[1]})",
                       lists.reading, (5, 1024)),
                      (f"first 1000 batches of an epoch of {size.names[0]} crops", lists.order, (1, 64)))
                  for memory in (False, True)],
        "scaling": [Row(f"{work}, by {axis}", prepare, tuple(map(str, size.axes[axis])),
                        [f"{n}/{size.axes[axis][0]}" for n in size.axes[axis][1:]], {"axis": axis})
                    for work, (prepare, axes) in growth.items() for axis in axes],
        "light": [Row("light network: pseudo-label round, per image", labelling.pseudo_label_round,
                      ("product", "floor"), ["product/floor <= 2.0"], LIGHT),
                  Row(f"light network: LD step, batch 3, crop {size.crop} (floor: forward and backward)",
                      training.train_step, ("product", "floor"), ["product/floor <= 1.25"],
                      {"method": "ld", "count": 3, **LIGHT})]}
