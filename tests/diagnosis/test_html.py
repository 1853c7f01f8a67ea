"""
The report: one page that needs nothing else, in which no text of a file does anything.
"""

import dataclasses
import functools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from records import record

pytest.importorskip("matplotlib", reason="needs sb3-trpo[zoo]")

from sb3_trpo.diagnosis.diagnose import Diagnosis
from sb3_trpo.diagnosis.finding import Finding, Severity
from sb3_trpo.diagnosis.html import make_report
from sb3_trpo.diagnosis.plots import PANELS, VARIABLES, draw
from sb3_trpo.diagnosis.record import Record
from sb3_trpo.diagnosis.rules import find

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page's elements; those that are left open are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report(run: Record, name: str = "logs/run_1") -> str:
    return make_report(Diagnosis(name, run, find(run)))


@functools.cache
def healthy_report() -> str:
    return report(record())


def test_every_plot_is_there_with_its_findings_beside_it() -> None:
    text = report(record(value_loss=1e4, obs_std_max=9.0))
    page = Page(text)
    assert sum(tag == "svg" for tag, _ in page.elements) == len(PANELS)
    sections = dict(zip((p.name for p in PANELS), text.split('<section class="panel">')[1:], strict=True))
    assert "The critic diverges" in sections["critic"]
    assert "Observations are too large" in sections["return"]
    assert "Nothing found." in sections["kl"]
    for name in ("critic-diverges", "observations-not-normalised"):
        assert len(re.findall(rf'<p class="page">.*{name}</(?:a|code)></p>', text)) == 1


def test_the_page_needs_nothing_else() -> None:
    text = healthy_report()
    page = Page(text)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    references = [
        value for _, attrs in page.elements for key, value in attrs.items() if key in ("src", "href", "xlink:href")
    ]
    assert references
    assert all(value is not None and value.startswith("#") for value in references)
    # Namespaces are names, and nothing is fetched by them.
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in text


def test_identifiers_are_unique_and_all_references_lead_to_one() -> None:
    text = healthy_report()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_colours_are_those_of_the_page() -> None:
    """So that they change with light and dark."""
    text = healthy_report()
    for color, variable in VARIABLES.items():
        assert color not in text
        assert f"var({variable})" in text
        assert text.count(f"{variable}:") == 2
    assert not re.search(r"(fill|stroke): #(?!none)", text.partition("<body>")[2])


def test_the_same_run_makes_the_same_page() -> None:
    assert report(record()) == healthy_report()


def test_texts_are_escaped() -> None:
    evil = '"><script>alert(1)</script>&'
    finding = Finding("x", Severity.ERROR, evil, evil, evil, "kl")
    loose = dataclasses.replace(finding, panel="")
    text = make_report(Diagnosis(evil, record(), [finding, loose]))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)") == 8
    Page(text)


@pytest.mark.parametrize("run", [Record(), Record({"train/kl_divergence_loss": np.array([0.01])})])
def test_a_log_may_be_empty_or_short(run: Record) -> None:
    Page(report(run))


def test_a_long_log_makes_a_small_page(tmp_path: Path) -> None:
    run = record(record().settings, 1.0, 50_000)
    Diagnosis("long", run, []).to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 500_000


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.name)
def test_a_plot_has_the_lines_that_the_log_has(panel) -> None:
    svg = draw(panel, record())
    present = [line for line in panel.lines if line.key != "eval/mean_reward"]
    for line in present:
        assert line.label in svg
    assert svg.startswith("<svg role")
