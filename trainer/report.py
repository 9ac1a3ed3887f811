"""Write what a note's stages did into one HTML file, which holds everything that it shows.

    python -m trainer.report NOTE [--config FILE] [--output FILE.html] [key=value ...]

Without --config the note's own saved configuration below ./snapshot is taken; `pictures` says how many images are
shown. The default output is <result>/<NOTE>/report.html.
"""
import contextlib
import os
from pathlib import Path

from utils.cli import default_file, guarded, leave, parser
from utils.cli import path as path_option
from utils.config import Config, load_config
from utils.errors import ConfigError

OWN = "the note's own"  # stands for a file's name
_DEFAULT = "config/ldbe_config.yml"  # names the folders where the note has no configuration that can be read


def write_report(cfg: Config, output: str | None = None) -> Path:
    """Write the report of `cfg.note`. Returns its path.

    Raises ConfigError if there is no such note, or if the output is no file that can be written.
    """
    from trainer import report_data, report_page  # late, so that --help answers at once
    from utils.checkpoint import write_atomically
    path = Path(output or Path(cfg.result) / cfg.note / "report.html")
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output: {str(path)!r} is a folder or does not end in .html: give a file such as "
                          "report.html.")
    content = report_page.page(cfg, report_data.stages(cfg)).encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(content))
    return path


def configuration(note: str, given: str, words: list[str]) -> Config:
    """The configuration that names the note's folders, with the words: the file that is given; for OWN the newest that
    the note has saved and that can be read, else the default."""
    file = given
    if given == OWN:
        file = default_file(_DEFAULT)
        snapshot = [word.removeprefix("snapshot=") for word in words if word.startswith("snapshot=")]
        saved = Path((snapshot or ["snapshot"])[-1], note).glob("*.yml") if Path(note).name == note else ()
        for path in sorted(saved, key=os.path.getmtime):
            with contextlib.suppress(ConfigError):
                load_config(path)
                file = str(path)
    return load_config(file, words, note=note, resume=False)


def main(arguments: list[str] | None = None) -> int:
    """The command-line program; returns its exit code."""
    options = parser(__doc__, _DEFAULT, usual=("pictures", "snapshot", "log", "result", "plabel", "target", "device"))
    options.prog = "python -m trainer.report"
    options.set_defaults(config=OWN)
    options.add_argument("note", metavar="NOTE", help="name of the run")
    options.add_argument("--output", metavar="FILE", type=path_option, help="the page (default: see above)")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="set a key, e.g. pictures=8")
    given = options.parse_intermixed_args(arguments)

    def run():
        print(f"report: {write_report(configuration(given.note, given.config, given.overrides), given.output)}")
    return guarded(run, given.debug)


if __name__ == "__main__":
    leave(main())
