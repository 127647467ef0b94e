"""README's examples, word for word, as a newcomer pastes them. `python -m tests.contract.readme_examples javascript FOLDER`
runs those of a language in a folder that has what they import."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from node.demo import checker
from node.demo.world import RGB, Drawing, Mark, Scene, Thing, draw
from tests.e2e.conftest import KEY, new_machine
from tests.readme import README

BLUE: RGB = (36, 84, 204)
CIRCLE = Scene((Thing("circle", "red", "large", "left"),), "blue")
SQUARE = Scene((Thing("square", "green", "large", "left"),), "blue")
ROUTES = {"generations", "edits", "variations"}
FILE_NAMES = {"python": "example.py", "javascript": "example.mjs", "bash": "example.sh"}
COMMANDS = {"python": [sys.executable, "-W", "ignore"], "javascript": ["node"], "bash": ["bash", "-eu"]}


@dataclass(frozen=True, slots=True)
class Example:
    """One fenced block that calls a route."""

    language: str
    route: str
    text: str


def examples(language: str) -> list[Example]:
    """Those of a language, each with the route it calls."""
    blocks = re.findall(rf"^```{language}\n(.+?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    calls = {"generations": r"images\.generate|images/generations", "edits": r"images\.edit|images/edits"}
    calls["variations"] = r"images\.create_?[vV]ariation|images/variations"
    return [Example(language, route, text) for text in blocks for route, call in calls.items() if re.search(call, text)]


def prepare(folder: Path) -> None:
    """The files that the examples start from: a picture, and a mask with a hole over the thing in it."""
    mark = Mark("circle", (214, 39, 40), 0.26, 0.5, 0.46)
    draw(Drawing(CIRCLE, BLUE, (mark,)), 256, 256).save(folder / "picture.png")
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 56, 144, 200))
    mask.save(folder / "mask.png")


def made_by(example: Example, folder: Path, url: str) -> list[Image.Image]:
    """The pictures that an example leaves in a folder. Raises: CalledProcessError: it fails."""
    prepare(folder)
    before = {path.name for path in folder.iterdir()}
    program = folder / FILE_NAMES[example.language]
    program.write_text(example.text)
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY}
    subprocess.run([*COMMANDS[example.language], program.name], cwd=folder, env=environment, check=True, timeout=120)
    left = sorted(path for path in folder.iterdir() if path.name not in before and path != program)
    pictures = [picture for path in left for picture in _pictures(path)]
    for path in (*left, program):
        path.unlink()
    return pictures


def _pictures(path: Path) -> list[Image.Image]:
    if path.suffix == ".png":
        return [Image.open(io.BytesIO(path.read_bytes())).convert("RGB")]
    items = json.loads(path.read_text())["data"]
    files = [base64.b64decode(item["b64_json"]) if "b64_json" in item else httpx.get(item["url"]).content for item in items]
    return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]


def check(example: Example, pictures: list[Image.Image]) -> None:
    """Raises: AssertionError: the last picture, which is the finished one, is not what the example asks for."""
    assert pictures, example
    assert pictures[-1].size == (256, 256), example
    wanted = {"generations": CIRCLE, "edits": SQUARE, "variations": Scene((), "blue")}[example.route]
    verdict = checker.compare(wanted, checker.look(pictures[-1]))
    assert verdict.ground, example
    if wanted.things:
        assert (verdict.count, verdict.colour, verdict.size, verdict.place) == (True,) * 4, example


@contextmanager
def server(home: Path) -> Iterator[str]:
    """`aquatint up` with the demonstration model; its address."""
    machines = new_machine(home, {})
    yield next(machines).up().url
    next(machines, None)


def main(language: str, folder: Path) -> None:
    """Run those of one language."""
    found = examples(language)
    assert {example.route for example in found} == ROUTES
    with tempfile.TemporaryDirectory() as home, server(Path(home)) as url:
        for example in found:
            pictures = made_by(example, folder, url)
            check(example, pictures)
            print(f"README's {language} example of {example.route}: {len(pictures)} pictures")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
