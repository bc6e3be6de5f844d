"""One HTML page per run that needs nothing else: figures are inside it, styles too."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from opifex.cli.drawing import Figure, draw_run
from opifex.cli.errors import CommandError
from opifex.cli.model_files import run_settings
from opifex.cli.outputs import accounts, price_rows, write_tables
from opifex.cli.parts import load_history
from opifex.cli.run_folder import RunFolder
from opifex.cli.settings import RunSettings
from opifex.training.multilevel import History

__all__ = ["draw_folder", "seed_folders", "write_report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #ffffff; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #d0d0d0; padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; }
"""


def seed_folders(folder: RunFolder, settings: RunSettings) -> list[tuple[str, RunFolder]]:
    """The folders of all seeds that have begun, with their names.

    Args:
        folder: the run folder.
        settings: its configuration.

    Raises:
        CommandError: if none has begun.
    """
    if len(settings.seeds) == 1:
        return [(f"seed {settings.seeds[0]}", folder)]
    found = [
        (f"seed {seed}", folder.seed(seed))
        for seed in settings.seeds
        if folder.seed(seed).state.exists()
    ]
    if not found:
        raise CommandError(f"{folder.path} holds no checkpoint of any seed yet")
    return found


def draw_folder(folder: RunFolder, *, png: bool = False) -> dict[str, list[Figure]]:
    """Draw the figures of all seeds of a run folder.

    Args:
        folder: the run folder.
        png: write PNG files beside the SVG files.

    Returns:
        Figures by name of the seed.

    Raises:
        CommandError: if there is nothing to draw, or Matplotlib is missing.
    """
    settings = run_settings(folder)
    with jax.enable_x64(settings.precision == "float64"):
        return {
            name: draw_run(where, settings, png=png)
            for name, where in seed_folders(folder, settings)
        }


def write_report(folder: RunFolder) -> None:
    """Write ``report.html``, with fresh figures, and the tables of every seed.

    Args:
        folder: the run folder.

    Raises:
        CommandError: if there is nothing to report.
    """
    settings = run_settings(folder)
    figures = draw_folder(folder)
    title = folder.path.resolve().name
    parts = [f"<h1>{html.escape(title)}</h1>", _summary(folder)]
    for name, where in seed_folders(folder, settings):
        history = load_history(where)
        write_tables(where, history)
        if where.status != "running":
            price_rows(where, history)
        if len(settings.seeds) > 1:
            parts.append(f"<h2>{html.escape(name)}</h2>")
        parts += [_levels(history), *map(_figure, figures[name]), _accounts(history)]
    parts += [
        "<h2>Configuration</h2>",
        f"<pre>{html.escape(folder.configuration.read_text(encoding='utf-8'))}</pre>",
        "<h2>Versions</h2>",
        _table(["what", "version"], list(folder.read_json("versions.json").items())),
    ]
    page = (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    folder.report.write_text(page, encoding="utf-8")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(_number(cell))}</{tag}>" for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _summary(folder: RunFolder) -> str:
    status: Mapping[str, Any] = folder.read_json("status.json")
    seeds = folder.read_json("summary.json").get("seeds")
    if seeds:
        names = list(seeds[0])
        return f"<p>{html.escape(str(status.get('status')))}</p>" + _table(
            names, [[row.get(name, "-") for name in names] for row in seeds]
        )
    return _table(["result", ""], [(k.replace("_", " "), v) for k, v in status.items()])


def _levels(history: History) -> str:
    """One row per level: steps, losses, work, seconds."""
    rows = []
    for level in sorted({stretch.level for stretch in history.stretches}):
        ours = [stretch for stretch in history.stretches if stretch.level == level]
        steps = sum(len(stretch.losses) for stretch in ours)
        rows.append(
            [
                level,
                steps,
                float(ours[0].losses[0]),
                float(ours[-1].losses[-1]),
                steps * history.step_work[level],
                sum(stretch.seconds for stretch in ours),
            ]
        )
    head = ["level", "steps", "first loss", "last loss", "work of the steps", "training seconds"]
    return _table(head, rows)


def _accounts(history: History) -> str:
    spent = [(name, seconds) for name, seconds in accounts(history).items() if seconds]
    return "<h3>Where the seconds went</h3>" + _table(["account", "seconds"], spent)


def _figure(figure: Figure) -> str:
    content = base64.b64encode(figure.svg.read_bytes()).decode("ascii")
    caption = html.escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{content}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
