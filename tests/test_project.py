"""What GitHub and those who cite read: the same release everywhere, and commands that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def release_in_changelog():
    """Version and date of the newest release; nothing if there is none yet."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", text) for text in headings[1:]]
    assert all(found), "a heading is not 'version - date'"
    return found[0].groups() if found else (None, None)


def test_release_is_the_same_everywhere():
    """Who cites the project cites another version than the changelog's newest."""
    citation = (ROOT / "CITATION.cff").read_text()
    keys = ("version", "date-released")
    found = [re.search(rf"^{key}: \"?([^\s\"]+)", citation, re.MULTILINE) for key in keys]
    assert tuple(match and match[1] for match in found) == release_in_changelog()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(path):
    """A workflow asks make for a target or an option that it does not have."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    lists = re.findall(r"^(?:OPTIONS|SETTINGS) := (.*)$", makefile, re.MULTILINE)
    options = set(" ".join(lists).split())
    commands = re.findall(r"\bmake ([a-z-]+)((?: [A-Z_]+=\S+)*)", path.read_text())
    assert commands
    for target, given in commands:
        assert target in targets
        assert set(re.findall(r"([A-Z_]+)=", given)) <= options


def test_workflows_are_there():
    """The site is published by nobody, or nobody tries the real data."""
    texts = {path.stem: path.read_text() for path in WORKFLOWS}
    assert "path: doc/_build/html" in texts["site"]
    assert "macos-latest" in texts["site"]
    assert "cron:" in texts["real_data"]
    assert "DATA=development_fmri" in texts["real_data"]
