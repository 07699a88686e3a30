"""The README and those of the rooms: short enough to be read, and every link leads somewhere."""

import re

import pytest
import yaml

import fusetune
from conftest import ROOT

ROOMS = sorted(ROOT.glob("src/fusetune/**/README.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = ("http://", "https://")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub names them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken(file, text: str) -> list[str]:
    """Links that lead nowhere."""
    found = []
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if link.startswith(ELSEWHERE):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize("file", [ROOT / "README.md", *ROOMS], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file):
    text = file.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 250
    assert broken(file, text) == []


def test_a_link_that_leads_nowhere_is_found():
    file = ROOT / "README.md"
    assert broken(file, "[a](nowhere.md) [b](README.md#nothing) [c](#nothing) [d](README.md#your-own-data)") == [
        "nowhere.md", "README.md#nothing", "#nothing",
    ]  # fmt: skip


def test_every_room_is_named_by_the_readme():
    text = (ROOT / "README.md").read_text()
    assert len(ROOMS) >= 8
    assert [str(room.relative_to(ROOT)) for room in ROOMS if str(room.relative_to(ROOT)) not in text] == []


def test_what_is_cited_is_what_is_here():
    cited = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text())
    assert cited["version"] == fusetune.__version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format asks for
