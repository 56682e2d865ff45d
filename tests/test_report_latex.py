"""LaTeX and BibTeX that a paper can take as they are: structure, escaped names, entries for all that is cited."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.figures import study
from isoflop.figures.study import PUBLISHED
from isoflop.report import run_rows
from isoflop.report.latex import MOST, PAPERS, SPECIAL, bibtex, escape, interval, number, report_tex, used_by
from report_files import HOSTILE, hostile_runs
from study_runs import planted_run, sweep

COMMANDS = {re.sub(r"\{\}$", "", text) for text in SPECIAL.values() if text.startswith("\\") and len(text) > 2}


def check_structure(tex: str) -> None:
    """Braces, environments, mathematics and columns close as they opened."""
    tex = re.sub(r"(?m)(?<!\\)%.*$", "", tex)
    bare = re.sub(r"\\[\\{}$&#%_]", "", tex.replace("\\\\\n", "\n"))
    depth = 0
    for c in bare:
        depth += {"{": 1, "}": -1}.get(c, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", tex):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", tex, re.DOTALL):
        rows = [line for line in body.splitlines() if line.rstrip().endswith("\\\\")]
        assert len(rows) >= 2
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    outside = re.sub(r"\$[^$]*\$|~?\\(cite|label)\{[^}]*\}", "", bare)
    assert not set(outside) & set('#^_~<>|"`'), outside


def test_a_law_and_its_approaches() -> None:
    made = study(sweep(noise=0.002, sizes=5))
    tex = report_tex(made, run_rows(made), "report.bib")
    check_structure(tex)
    assert tex.count(r"\begin{table}") == 3 and r"$\alpha$ & $0." in tex
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    for row in made.compared().rows:  # type: ignore[union-attr]
        assert row.name in tex
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", tex) for key in keys.split(",")}
    assert cited and cited <= set(used_by(made))


def test_hostile_names_are_texts_in_the_table() -> None:
    made = study(hostile_runs())
    tex = report_tex(made, run_rows(made), "report.bib")
    check_structure(tex)
    assert tex.count("\\end{document}") == 0 and r"\textbackslash{}end\{document\}" in tex


def test_no_law_and_no_runs() -> None:
    live = study([planted_run("a", 1e8, 2e9, status="running", until=0.5)])
    tex = report_tex(live, run_rows(live), "report.bib")
    check_structure(tex)
    assert "\n% No law: " in tex
    check_structure(report_tex(study([]), (), "a\nb.bib"))


def test_many_runs_are_not_written_out() -> None:
    made = study([replace(planted_run("a", 1e8, 2e9), run_id=f"a{i}") for i in range(MOST + 1)])
    assert f"% {MOST + 1} runs: too many for a table here" in report_tex(made, run_rows(made), "report.bib")


@given(st.text())
def test_any_text_becomes_one_line_that_latex_takes(text: str) -> None:
    shown = escape(text)
    assert "\n" not in shown and "\r" not in shown
    rest = shown
    for command in sorted({*SPECIAL.values(), *COMMANDS}, key=len, reverse=True):
        if command not in ("--", "''"):
            rest = rest.replace(command, "")
    assert not set(rest) & set('\\{}$&#%_~^<>|"`')
    assert all(" " <= c <= "~" or (c.isalpha() and c <= "ſ") for c in rest)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_keep_their_letters(name: str) -> None:
    assert re.sub(r"[^a-z]", "", name)[:5] in re.sub(r"text[a-z]+|[^a-z]", "", escape(name))


def test_numbers_and_intervals() -> None:
    assert number(4.2e21) == r"$4.2 \times 10^{21}$" and number(-1e-7) == r"$-1 \times 10^{-7}$"
    assert interval((0.31, 0.37)) == "$[0.31, 0.37]$" and interval((0.0, float("inf"))) == interval(None) == "--"


def test_every_entry_is_whole() -> None:
    entries = re.findall(r"@misc\{(\w+),\n(.*?)\n\}\n", bibtex(PAPERS), re.DOTALL)
    assert [key for key, _ in entries] == list(PAPERS)
    for key, body in entries:
        fields = dict(re.findall(r"^  (\w+) +=\s\{(.*)\},?$", body, re.MULTILINE))
        assert set(fields) == {"author", "title", "year", "eprint", "archivePrefix", "primaryClass", "url"}
        assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]) and fields["eprint"] in fields["url"]
        assert (fields["year"] == "20" + fields["eprint"][:2] and key.endswith(fields["year"])) or "misfitting" in key
        assert body.count("{") == body.count("}") and all(
            "," in a or a[0] == "{" for a in fields["author"].split(" and ")
        )


def test_only_what_was_used_is_cited() -> None:
    made = study(sweep(budgets=(1e19, 1e20), sizes=4))
    keys = used_by(made)
    assert {"hoffmann2022", "li2025misfitting", "besiroglu2024"} <= set(keys) and "mccandlish2018" not in keys
    assert "mccandlish2018" in used_by(made, ["batch"])
    assert {name.split("-")[0] for name in PUBLISHED} <= set(keys)  # each published law drawn has its paper
    assert "besiroglu2024" not in used_by(study([], beside=()))
    with pytest.raises(KeyError, match="nobody2000"):
        bibtex(["nobody2000"])
