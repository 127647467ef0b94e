"""Reads weighted prompts as AUTOMATIC1111's web UI writes them: `(word)`, `(word:1.3)`, `[word]`, `\\(`.

    (word)       1.1 times the attention          nested: multiplied
    (word:1.3)   1.3 times
    [word]       divided by 1.1
    \\( \\) \\[ \\] \\\\   the character itself

A bracket that is never closed reaches to the end of the prompt; one that was never opened is text, and so is a number
that is no weight, as in "(at 12:30)".
Rules after `parse_prompt_attention` in modules/prompt_parser.py of github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import InvalidRequest

ROUND, SQUARE = 1.1, 1 / 1.1
MAX_DEPTH = 16
"""Brackets within brackets. It also bounds the work: each piece of text is multiplied at most this often for each kind."""
MAX_WEIGHT = 10.0

# No two parts of it can match the same digits, or a long number would be tried in every division.
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_MARK = re.compile(rf"\\[()\[\]\\]|\\|\(|\[|:\s*(?P<weight>{_NUMBER})\s*\)|\)|\]|[^\\()\[\]:]+|:")
_EXPLICIT = re.compile(r"(?<!\\)\(([^()]*?):\s*[+-]?(?:[0-2](?:\.[0-9]*)?|\.[0-9]+)\s*\)")
"""Weights as people use them: "(16:9)" and "(at 12:30)" are language."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt under one weight."""

    text: str
    weight: float


@dataclass(slots=True)
class _Reading:
    """Pieces so far, and where the brackets that are still open began."""

    texts: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    round_at: list[int] = field(default_factory=list)
    square_at: list[int] = field(default_factory=list)

    def open(self, brackets: list[int]) -> None:
        if len(self.round_at) + len(self.square_at) >= MAX_DEPTH:
            raise InvalidRequest(f"Invalid 'prompt': more than {MAX_DEPTH} brackets within one another.", param="prompt")
        brackets.append(len(self.texts))

    def close(self, brackets: list[int], weight: float) -> None:
        for at in range(brackets.pop(), len(self.weights)):
            self.weights[at] *= weight

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)


def pieces_of(prompt: str) -> tuple[Piece, ...]:
    """The prompt in pieces of one weight each, neighbours of equal weight joined; empty for an empty prompt.

    Raises: InvalidRequest: brackets too deep, or a weight beyond MAX_WEIGHT.
    """
    reading = _Reading()
    for match in _MARK.finditer(prompt):
        mark, weight = match[0], match["weight"]
        if mark == "(":
            reading.open(reading.round_at)
        elif mark == "[":
            reading.open(reading.square_at)
        elif weight is not None and reading.round_at and abs(float(weight)) <= MAX_WEIGHT:
            reading.close(reading.round_at, float(weight))
        elif mark == ")" and reading.round_at:
            reading.close(reading.round_at, ROUND)
        elif mark == "]" and reading.square_at:
            reading.close(reading.square_at, SQUARE)
        elif weight is not None and reading.round_at:
            reading.add(mark[:-1])
            reading.close(reading.round_at, ROUND)
        else:
            reading.add(mark[1:] if len(mark) > 1 and mark[0] == "\\" else mark)
    for brackets, weight in ((reading.round_at, ROUND), (reading.square_at, SQUARE)):
        while brackets:
            reading.close(brackets, weight)
    for weight in reading.weights:
        if abs(weight) > MAX_WEIGHT:
            raise InvalidRequest(
                f"Invalid 'prompt': weights go to {MAX_WEIGHT:g}, but brackets within one another come to {weight:g}.",
                param="prompt",
            )
    return _joined(reading.texts, reading.weights)


def _joined(texts: Sequence[str], weights: Sequence[float]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if pieces and pieces[-1].weight == weight:
            pieces[-1] = Piece(pieces[-1].text + text, weight)
        else:
            pieces.append(Piece(text, weight))
    return tuple(pieces)


def without_weights(prompt: str) -> str:
    """The prompt as a model that reads plain language should see it: `(word:1.3)` becomes `word`.

    Brackets without a number stay, for there they are language: "a sign (in red)".
    """
    for _ in range(MAX_DEPTH):
        prompt, count = _EXPLICIT.subn(r"\1", prompt)
        if not count:
            break
    return prompt
