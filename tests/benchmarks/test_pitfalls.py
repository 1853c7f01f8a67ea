"""
Runs that are made to fail: what was measured, and a few of them anew.
"""

import json

import pytest
from faults.cases import CASES
from pitfalls import PAGE, RESULTS, SECTION, ask, ask_published, pitfalls_table

MEASURED = json.loads(RESULTS.read_text())
QUICK = ("gae-differs", "kl-differs", "not-deterministic", "line-search-fails")


def test_published_runs_have_no_finding():
    published = ask_published()
    assert len(published) == 60
    assert [path for path, names in published.items() if names] == []
    assert published == MEASURED["published"]


def test_short_runs_with_the_shipped_hyperparameters_have_no_finding():
    assert MEASURED["shipped"]
    assert [task for task, result in MEASURED["shipped"].items() if result["found"]] == []


def test_every_case_was_measured():
    assert [(case["fault"], case["rule"]) for case in MEASURED["cases"]] == [(case.fault, case.rule) for case in CASES]


@pytest.mark.parametrize("case", MEASURED["cases"], ids=lambda case: case["fault"])
def test_the_fault_was_found_and_its_neighbour_was_silent(case):
    told = case["faulty"]["found"]
    # A new policy leaves no log: training alone warns of it.
    assert case["rule"] in told or case["rule"] == "actions-out-of-reach"
    assert case["rule"] in case["faulty"]["warned"] or not case["is_live"]
    assert case["healthy"]["found"] == case["healthy"]["warned"] == []


@pytest.mark.parametrize("case", [case for case in CASES if case.rule in QUICK], ids=lambda case: case.fault)
def test_cases_can_be_measured_again(case):
    assert case.rule in ask(case.faulty)["found"]


def test_the_page_shows_what_was_measured():
    shown = PAGE.read_text().partition(SECTION.start)[2].partition(SECTION.end)[0].strip()
    assert shown == pitfalls_table(MEASURED["cases"], MEASURED["published"], MEASURED["shipped"])
