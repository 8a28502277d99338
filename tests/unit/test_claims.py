"""Comparative sentences: those of this repository are what the results say; wrong and unlisted ones are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.claims import Apart, Claim, Claims, check, read_claims, repository_texts
from benchmarks.comparatives import compares, sentences
from benchmarks.result import HERE, write_json

SENTENCE = "HyperLoRA is 10.0 points above FedIT (10.0 to 10.0)."


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for variant, share in (("hyperlora", 0.7), ("fedit", 0.6), ("flexlora", 0.7)):
        for seed in (10, 11):
            clients = [
                {"client_id": name, "track": "start", "seen": True, "zero_step": share, "k_step": share}
                for name in ("a", "b", "c")
            ]
            run = {"suite": "some", "variant": variant, "seed": seed, "clients": clients}
            write_json(tmp_path / ".runs" / "some" / f"{variant}-{seed}.json", run)
    return tmp_path


def claim(sentence: str = SENTENCE, **other: object) -> Claim:
    said = {"page": "p.md", "sentence": sentence, "suite": "some", "variant": "hyperlora", "rival": "fedit"}
    said |= {"group": "seen", "column": "as received", "verdict": "above", "points": "+10.0"}
    return Claim.model_validate({**said, "interval": ("+10.0", "+10.0"), **other})


def faults(results: Path, page: str, *listed: Claim | Apart) -> list[str]:
    claims = tuple(one for one in listed if isinstance(one, Claim))
    apart = tuple(one for one in listed if isinstance(one, Apart))
    return check(Claims(claim=claims, apart=apart), {"p.md": page}, results)[1]


def test_every_comparative_sentence_of_this_repository_is_what_the_results_say() -> None:
    lines, wrong = check(read_claims(), repository_texts(), HERE / "results")
    assert wrong == [], "run 'python -m benchmarks claims'"
    assert all(line.startswith(("yes", "    ")) for line in lines)


def test_a_claim_that_the_files_have_is_no_fault_and_is_listed_with_its_figure(results: Path) -> None:
    lines, wrong = check(Claims(claim=(claim(),)), {"p.md": SENTENCE.replace("above ", "above\n")}, results)
    assert wrong == []
    assert "measured +10.0 [+10.0, +10.0]" in lines[0]


@pytest.mark.parametrize(
    ("sentence", "other", "says"),
    [
        (SENTENCE.replace("10.0 points", "12.0 points"), {"points": "+12.0"}, "stated +12.0, the files say +10.0"),
        (SENTENCE, {"interval": ("+9.0", "+10.0")}, "stated +9.0, the files say +10.0"),
        (SENTENCE.replace("10.0 points ", ""), {"points": "+10.05"}, "the sentence does not say +10.05"),
        (SENTENCE.replace("above", "below"), {"verdict": "below"}, "stated below, the files say +10.0"),
        (SENTENCE, {"rival": "flexlora"}, "stated above, the files say +0.0 [+0.0, +0.0], level"),
        (SENTENCE, {"rival": "hilora"}, "there are no such results"),
        (SENTENCE, {"group": "unseen"}, "there are no such results"),
    ],
)
def test_a_wrong_claim_is_a_fault(results: Path, sentence: str, other: dict[str, object], says: str) -> None:
    assert any(says in one for one in faults(results, sentence, claim(sentence, **other)))


def test_a_sentence_without_a_claim_and_a_claim_without_its_sentence_are_faults(results: Path) -> None:
    page = f"Some text.\n\n- {SENTENCE} Ditto is worse.\n"
    assert faults(results, page, claim()) == ["p.md: compares and stands in no claim: 'Ditto is worse.'"]
    apart = Apart(page="p.md", sentence="Ditto is worse.", why="a test")
    assert faults(results, page, claim(), apart) == []
    assert "p.md has no such sentence" in faults(results, "Nothing.", claim())[0]
    assert "which is set apart" in faults(results, SENTENCE, claim(), apart)[0]


def test_printed_tables_code_and_plain_words_are_no_comparisons() -> None:
    page = "# FedIT is worse\n\n<!-- results: x -->\nFedIT is worse\n<!-- /results -->\n\n```\nFedIT is worse\n```\n"
    assert list(sentences(f"{page}\n| FedIT | worse |\n")) == []
    assert not compares("Python 3.11 or a higher version.")
    assert not compares("The local part is lost.")
    assert compares("`local` is worse.")
    assert compares("It wins by 2 points.")
