"""The HTML page of a report: facts of `report_data` as tables, plots and pictures in the template `report.html`."""
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dataset.class_sets import class_set
from dataset.labels import ClassSet
from trainer import report_pictures, verdict
from trainer.report_data import REQUIRED, Stage
from utils import svg_plot
from utils.config import Config
from utils.errors import UserError, one_line

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_SENTENCES = {
    verdict.KEEP: "without labels, the chosen network scores higher than the one that the stage started from",
    verdict.DOUBTFUL: "without labels, the chosen network scores about as high as the one that the stage started from",
    verdict.REJECT: "without labels, no state of this stage is held to be better than the network that it started from"}
_ADVICE = {verdict.KEEP: "Use {}.", verdict.DOUBTFUL: "If its pictures convince you, use {}.",
           verdict.REJECT: "Keep that network; {} is a copy of it."}


def page(cfg: Config, stages: list[Stage]) -> str:
    """The whole page. cfg: names the folders, the data and the network, and says how many pictures are shown."""
    classes, missing = _classes(cfg)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters |= {"number": number, "signed": signed, "duration": duration, "plain": _plain}
    pictures, why_not = report_pictures.tables(cfg, stages)
    return environment.get_template("report.html").render(
        note=cfg.note, stages=stages, protocols=list(dict.fromkeys(p for s in stages for p in s.scores)),
        verdicts=[(stage, *explained(stage)) for stage in stages], iou=_iou_tables(stages, classes),
        decided=[(stage, found) for stage in stages if (found := decision(stage))],
        curves=[(stage, curves(stage)) for stage in stages], shares=_shares(stages, classes), pictures=pictures,
        why_not=why_not, gpu=any(stage.memory("gpu_memory") for stage in stages),
        machines=_machines(stages), legend=list(zip(classes.names, classes.palette)) if classes else [],
        missing=[*(sentence for stage in stages for sentence in stage.missing), *missing], required=REQUIRED)


# ---- words and numbers -----------------------------------------------------------------------------------------------

def explained(stage: Stage) -> tuple[str, str]:
    """A stage's verdict and what it means in a sentence; an empty verdict where there is none."""
    found = decision(stage)
    if not found:
        why = ("it was only validated (train: False)" if not stage.config.get("train", True) else
               "the stage has not run far enough" if not stage.finished else
               "it is trained with labels" if stage.needs_source else
               "switched off by score_images: 0" if stage.config.get("score_images") == 0 else "its file is gone")
        return "", f"No verdict: {why}."
    why = found["why"].replace(" -> ", "\u00a0→\u00a0")
    text = f"{_SENTENCES[found['verdict']]} ({why})."
    if not stage.verdict:
        return found["verdict"], f"So far, as the stage has not run to its end: {text}"
    if stage.chosen:
        text += f" {_ADVICE[found['verdict']].format(stage.chosen)}"
    if found["collapsed"] and stage.checkpoint:
        text += f" The last state has collapsed: do not use {stage.checkpoint}."
    return found["verdict"], text[0].upper() + text[1:]


def decision(stage: Stage) -> dict[str, Any] | None:
    """The verdict on a stage's candidates: of a finished stage the final one, else the last in the log."""
    logged = [event for event in stage.of("verdict") if event.get("candidates")]
    return stage.verdict or (logged[-1] if logged else None)


def number(value: Any, digits: int = 1) -> str:
    """A number with so many digits; a dash for None."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else DASH


def signed(value: float | None, digits: int = 1) -> str:
    """The same with its sign."""
    text = number(value, digits)
    if value is None or not float(text):
        return text.removeprefix("-")
    return f"{value:+.{digits}f}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """A time in words, such as `1 h 02 min`."""
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else \
        f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _plain(value):
    """A value of a configuration as text."""
    if value is REQUIRED:
        return "no default"
    return "None" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(value):
    """What the template prints: control characters, which HTML does not allow, are written as escapes."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "\n".join(one_line(line) for line in value.split("\n"))
    return value


# ---- tables ----------------------------------------------------------------------------------------------------------

def _classes(cfg: Config) -> tuple[ClassSet | None, list[str]]:
    try:
        return class_set(cfg), []
    except UserError as error:
        return None, [f"Names and colours of the classes are not known: {error}"]


def _iou_tables(stages, classes):
    """[(protocol, titles, [(class, colour or None, cells)], cells of the mIoU, largest change)], of the stages with
    scores. A cell is (IoU, its change from the stage before)."""
    scored = [stage for stage in stages if stage.scores]
    colours = dict(zip(classes.labels.names, classes.labels.palette)) if classes else {}
    tables = []
    for protocol in dict.fromkeys(p for stage in scored for p in stage.scores):
        columns = [stage.scores.get(protocol, {"iou": {}, "miou": None}) for stage in scored]
        names = list(dict.fromkeys(name for column in columns for name in column["iou"]))
        rows = [(name, colours.get(name), _changes([c["iou"].get(name) for c in columns])) for name in names]
        tables.append((protocol, [stage.title for stage in scored], rows, _changes([c["miou"] for c in columns]),
                       _largest(by for *_, cells in rows for _, by in cells)))
    return tables


def _changes(values):
    """Each value with its change from the one before; None where one of them is not known."""
    return [(now, None if None in (before, now) else now - before) for before, now in zip([None, *values], values)]


def _machines(stages):
    """[(event, titles of the stages that ran there)], each machine with its versions once."""
    found: list[tuple[dict, list[str]]] = []
    for stage in stages:
        for event in stage.of("machine"):
            facts = {k: v for k, v in event.items() if k not in ("event", "step", "seconds")}
            title = f"{stage.title} from step {event['step']}" if event["step"] else stage.title
            if facts not in [known for known, _ in found]:
                found.append((facts, []))
            next(titles for known, titles in found if known == facts).append(title)
    return found


def _largest(changes):
    """The largest size of a change, at least one point: the length of a whole bar."""
    return max([1.0, *(abs(by) for by in changes if by is not None)])


def _shares(stages, classes):
    """[(stage, [(class, colour, share before, of the last state, of the chosen one)], largest change)], in percent."""
    found = []
    for stage in stages:
        if decided := decision(stage):
            of = {c["name"]: c["histogram"] for c in decided["candidates"]}
            names = [verdict.UNTOUCHED, decided["last"], decided["chosen"]]
            columns = [[100 * share for share in of[name]] for name in names]
            known = classes is not None and len(classes.names) == len(columns[0])
            titles = classes.names if known else [f"class {i}" for i in range(len(columns[0]))]
            found.append((stage, list(zip(titles, classes.palette if known else [None] * len(titles), *columns)),
                          _largest(c - b for b, _, c in zip(*columns))))
    return found


# ---- plots -----------------------------------------------------------------------------------------------------------

Plot = tuple[str, Markup, list[tuple[Markup, str]]]  # title, SVG, [(sign, name of the series)]


def curves(stage: Stage) -> list[list[Plot]]:
    """The plots of a stage in groups: over the steps, and of its rounds of pseudo labels."""
    rounds = stage.of("pseudo_label")
    marks, names = [event["step"] for event in rounds], [f"round {event.get('round')}" for event in rounds]
    over_steps = [_lines("Losses", _series(stage.of("train"), "loss"), "loss", marks),
                  _lines("Learning rates", _series(stage.of("train"), "lr"), "rate", marks),
                  _lines("mIoU of the validations", _miou(stage), "mIoU, %", marks),
                  _lines("Trust in the candidates, found without labels", _trust(stage), "trust", marks)]
    of_rounds = []
    for key, label in (("threshold", "lowest confidence that is selected"), ("coverage", "selected share of "
                       "the pixels"), ("accuracy", "right share of the selected pixels")):
        rows = {name: [event.get(key, {}).get(name) for event in rounds]
                for name in dict.fromkeys(name for event in rounds for name in event.get(key, {}))}
        title = f"{key.capitalize()} of the pseudo labels"
        if rows:
            of_rounds.append((title, Markup(svg_plot.dots(rows, names, f"{stage.title}: {title}", label)),
                              [(Markup(svg_plot.swatch(i, dotted=True)), name) for i, name in enumerate(names)]))
    return [group for group in ([plot for plot in over_steps if plot[1]], of_rounds) if group]


def _lines(title, series, y_label, marks):
    return (title, Markup(svg_plot.lines(series, title, "step", y_label, marks)),
            [(Markup(svg_plot.swatch(i)), name) for i, name in enumerate(series)])


def _series(events, key):
    """Name -> points (step, value) of the numbers below a key of some events; equal series are one."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        for name, value in event.get(key, {}).items():
            if isinstance(value, (int, float)):
                found.setdefault(name, []).append((event["step"], value))
    names: dict[tuple, list[str]] = {}
    for name, points in found.items():
        names.setdefault(tuple(points), []).append(name)
    return {", ".join(same): list(points) for points, same in names.items()}


def _miou(stage):
    protocols = dict.fromkeys(name for event in stage.of("val") for name, s in event.items() if isinstance(s, dict))
    return {p: points for p in protocols if (points := [(e["step"], e[p]["miou"]) for e in stage.of("val")
                                                       if p in e and e[p]["miou"] is not None])}


def _trust(stage):
    """The trust of each kind of candidate over the steps; the untouched network's as a level line."""
    candidates = [c for c in (decision(stage) or {"candidates": []})["candidates"] if c["scores"]["trust"] is not None]
    last = max((c["step"] for c in candidates), default=0)
    found = {c["name"]: [(0, c["scores"]["trust"]), (last, c["scores"]["trust"])] for c in candidates
             if c["name"] == verdict.UNTOUCHED and last}
    for c in candidates:
        if c["name"] not in verdict.REFERENCES:
            kind = c["name"].removeprefix(f"step {c['step']}").strip() or "network"
            found.setdefault(kind, []).append((c["step"], c["scores"]["trust"]))
    return found
