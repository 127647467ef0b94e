"""README is true."""

import re

from tests.readme import README, refreshed


def test_the_tables_are_those_of_the_code():
    text = README.read_text()

    assert refreshed(text) == text, "run `python -m tests.readme`"


def test_the_two_commands_are_marked_for_the_gate():
    text = README.read_text()

    for mark in ("run", "test"):
        assert re.search(rf"^```bash\n# {mark}\n.+?^```", text, re.MULTILINE | re.DOTALL)
