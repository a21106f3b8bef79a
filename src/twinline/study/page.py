"""One self-contained HTML page of a report: what it looks like."""

from __future__ import annotations

from typing import Any

from ..statistics import Correlation

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block;
  overflow-x: auto; }
td, th { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
figcaption, .command { color: #555; font-size: 0.85rem; }
code { background: #f4f4f4; padding: 0.1rem 0.3rem; }
.answer { background: #f6f3ea; padding: 0.5rem 1.2rem; border-left: 4px solid #d1495b; }
</style></head><body>
<h1>{{ title }}</h1>
<div class="answer">{% for sentence in answer %}<p>{{ sentence }}</p>{% endfor %}</div>
{% for part in parts %}
<h2>{{ part.title }}</h2>
{% for text in part.texts %}<p>{{ text }}</p>{% endfor %}
{% for picture in part.pictures %}<figure>{{ picture.svg | safe }}
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
{% for table in part.tables %}<table><caption>{{ table.caption }}</caption>
<tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endfor %}
<p class="command">Run it again: <code>{{ part.command or command }}</code></p>
{% endfor %}
<p class="command">Each command makes everything again, from training on, in the folder again;
add <code>--runs KEY</code> for a single run, and that of its arm's first run where this chooses its
learning rate ({{ runs }}).</p>
<p class="command">Machine: {{ machines }}.</p>
</body></html>
"""


def render(
    title: str, answer: list[str], parts: list[dict[str, Any]], command: str, **told: str
) -> str:
    """The page: the answer, and below it what ``part`` made, each with what makes it again.

    ``told`` are ``runs`` and ``machines``, in words.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(PAGE).render(
        title=title, answer=answer, parts=parts, command=command, **told
    )


def part(title: str, **filled: Any) -> dict[str, Any]:
    """A part of the page: ``texts``, ``pictures`` (svg, caption), ``tables`` (caption, head, rows),
    and a ``command`` if it is not the page's."""
    empty: dict[str, Any] = {"texts": [], "pictures": [], "tables": [], "command": ""}
    return {"title": title, **empty, **filled}


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def interval(found: Correlation | None) -> str:
    return "–" if found is None else f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def amount(value: float) -> str:
    """A cost with three digits and a unit."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
