"""The pictures of the docs: no arrow that the table does not have, none of its own left out."""

from __future__ import annotations

from onefleet.core.lifecycle import TRANSITIONS
from onefleet.core.lifecycle_diagrams import (
    WORDS,
    cut_diagram,
    diagram,
    failure_diagram,
    life_diagram,
    moving_diagram,
)
from onefleet.domain.work import Phase


def arrows(drawing: str) -> list[tuple[str, str, str]]:
    lines = [line.strip() for line in drawing.splitlines() if "-->" in line]
    return [
        (a, b, words)
        for a, _, b, words in (
            line.replace(": ", " ", 1).split(" ", 3) for line in lines if "[*]" not in line
        )
    ]


def test_the_whole_table_is_drawn() -> None:
    text = diagram()
    assert text.startswith("stateDiagram-v2\n    [*] --> pending\n")
    assert "    running --> saving: SaveOrdered\n" in text
    assert text.count("-->") == 2 + sum(
        len(targets) for (phase, _), targets in TRANSITIONS.items() if targets != (phase,)
    )


def test_every_arrow_in_words_is_one_of_the_table() -> None:
    known = {
        (phase.value, target.value, WORDS[event])
        for (phase, event), targets in TRANSITIONS.items()
        if event in WORDS
        for target in targets
    }
    for drawing in (life_diagram(), moving_diagram()):
        drawn = arrows(drawing)
        assert len({(a, b) for a, b, _ in drawn}) == len(drawn), "one arrow for two ends"
        assert all((a, b, w) in known for a, b, words in drawn for w in words.split(", or "))
    reached = {b for _, b, _ in arrows(life_diagram())}
    assert reached == {phase.value for phase in Phase} - {"pending"}


def test_a_save_cannot_fail_once_its_cut_is_made() -> None:
    drawn = {(a, b) for a, b, _ in arrows(cut_diagram())}
    assert {b for a, b in drawn if a == "holds"} == {
        "cut", "suspended", "running", "frozen", "stopping",
    }  # fmt: skip
    assert {b for a, b in drawn if a == "cut"} == {"suspended", "stopping"}
    assert {a for a, b in drawn if b == "holds"} == {"running", "frozen"}


def test_a_failure_leads_back_to_an_image_to_the_start_or_to_the_end() -> None:
    text = failure_diagram()
    assert {b for a, b, _ in arrows(text) if a == "failed"} == {"suspended", "pending", "ended"}
    assert 'state "starting, running, saving, frozen, restoring" as Lost' in text
