"""README's examples do what they say."""

from pathlib import Path

import pytest

from tests.contract.readme_examples import ROUTES, Example, check, examples, made_by
from tests.e2e.conftest import Started

EXAMPLES = [*examples("python"), *examples("bash")]


@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_there_is_an_example_of_each_route_in_each_language(language: str):
    assert {example.route for example in examples(language)} == ROUTES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.language}-{example.route}")
def test_an_example_makes_the_picture_it_asks_for(example: Example, up: Started, tmp_path: Path):
    check(example, made_by(example, tmp_path, up.url))
