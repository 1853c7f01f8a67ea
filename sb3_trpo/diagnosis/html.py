"""
The report of a diagnosis: one page, which opens without a network, in light and in dark.
"""

from collections.abc import Sequence
from html import escape
from typing import Protocol

from sb3_trpo.diagnosis.finding import Finding
from sb3_trpo.diagnosis.plots import PANELS, Panel, draw
from sb3_trpo.diagnosis.record import Record

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1c1d1f; --muted: #6d7178; --line: #e2e3e5;
  --first: #1f6feb; --second: #c2570c; --limit: #8250df; --error: #c4251c; --warning: #9a6700; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --page: #121314; --card: #1b1d1f; --ink: #e8e8e6; --muted: #9aa0a8;
  --line: #303338; --first: #6cb0ff; --second: #f59e58; --limit: #c3a2ff; --error: #ff7b72; --warning: #e3b341;
  --good: #5fce7c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
p { margin: .3rem 0; }
.extent, .none { color: var(--muted); }
.verdict { font-weight: 600; margin: .2rem 0 1.5rem; }
.verdict.good { color: var(--good); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem;
  margin: 0 0 1rem; }
.panel { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 0 1.5rem; }
.panel h2 { grid-column: 1 / -1; }
@media (max-width: 50rem) { .panel { grid-template-columns: minmax(0, 1fr); } }
svg { width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.finding { border-left: 4px solid var(--warning); padding-left: .8rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
.finding.error { border-color: var(--error); }
.finding strong { display: block; }
.badge { font-size: .72rem; font-weight: 700; letter-spacing: .06em; color: var(--warning); }
.error .badge { color: var(--error); }
.evidence, .page { color: var(--muted); font-size: .9rem; }
"""


class Shown(Protocol):
    """What a report shows of a diagnosis."""

    @property
    def name(self) -> str:
        """The run's name."""

    @property
    def record(self) -> Record:
        """What is known of the run."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What is wrong with it."""

    def extent(self) -> str:
        """Say how much there is of the run."""

    def headline(self) -> str:
        """Say how much was found."""


def make_report(diagnosis: Shown) -> str:
    """
    Make the page.

    :param diagnosis: what was found in a run
    :return: the page
    """
    name = escape(diagnosis.name)
    without_plot = [finding for finding in diagnosis.findings if finding.panel not in {p.name for p in PANELS}]
    sections = "\n".join(_section(panel, diagnosis) for panel in PANELS)
    loose = f"<section>{''.join(map(_show, without_plot))}</section>" if without_plot else ""
    mood = "" if diagnosis.findings else " good"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Diagnosis of {name}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{name}</h1>
<p class="extent">{escape(diagnosis.extent())}</p>
<p class="verdict{mood}">{escape(diagnosis.headline())}</p>
{loose}
{sections}
</body>
</html>
"""


def _section(panel: Panel, diagnosis: Shown) -> str:
    """
    Put a plot and its findings side by side.

    :param panel: the plot
    :param diagnosis: what was found
    :return: the section; empty if there is neither
    """
    findings = [finding for finding in diagnosis.findings if finding.panel == panel.name]
    plot = draw(panel, diagnosis.record)
    if not plot and not findings:
        return ""
    shown = "".join(map(_show, findings)) or '<p class="none">Nothing found.</p>'
    plot = plot or '<p class="none">The log has no such numbers.</p>'
    return (
        f'<section class="panel"><h2>{escape(panel.title)}</h2>\n<figure style="margin:0">{plot}</figure>\n'
        f"<div>{shown}</div></section>"
    )


def _show(finding: Finding) -> str:
    severity = finding.severity.name.lower()
    page = escape(finding.page.strip("`"))
    page = f'<a href="{page}">{page}</a>' if "://" in page else f"<code>{page}</code>"
    evidence = f'<p class="evidence">{_sentence(finding.evidence)}</p>' if finding.evidence else ""
    return (
        f'<div class="finding {severity}"><span class="badge">{severity.upper()}</span>'
        f"<strong>{_sentence(finding.problem)}</strong>{evidence}"
        f"<p>Try: {escape(finding.change)}.</p>"
        f'<p class="page">{page}</p></div>\n'
    )


def _sentence(text: str) -> str:
    return f"{escape(text[0].upper() + text[1:])}."
