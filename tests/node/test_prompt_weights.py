"""Weighted prompts are read as AUTOMATIC1111's web UI reads them, whatever is typed."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidRequest
from node.prompt_weights import MAX_WEIGHT, Piece, pieces_of, without_weights

PLAIN = st.text(st.characters(exclude_characters="()[]\\:", exclude_categories=("Cs",)), min_size=1, max_size=30)


def read(prompt: str) -> list[tuple[str, float]]:
    return [(piece.text, round(piece.weight, 6)) for piece in pieces_of(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # The examples in the docstring of A1111's own parser.
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("[word]", [("word", 0.909091)]),
        ("a [b", [("a ", 1.0), ("b", 0.909091)]),
        ("(a:1.2) (b : 1.2 )", [("a", 1.2), (" ", 1.0), ("b ", 1.2)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("a) b] c:1.2)", [("a) b] c:1.2)", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(at 12:30)", [("at 12:30", 1.1)]),
        ("(a:１.５)", [("a:１.５", 1.1)]),
        ("16:9, ratio 1:2", [("16:9, ratio 1:2", 1.0)]),
        ("back\\slash \\n", [("back\\slash \\n", 1.0)]),
        ("(白い猫:1.3)", [("白い猫", 1.3)]),
        ("", []),
        ("()", []),
    ],
)
def test_a_prompt_is_pieces_of_one_weight_each(prompt: str, expected: list[tuple[str, float]]):
    assert read(prompt) == expected


@given(PLAIN, st.decimals("0.1", "9", places=2), PLAIN)
def test_an_explicit_weight_is_the_weight(before: str, weight: object, word: str):
    assert pieces_of(f"{before}({word}:{weight})")[-1] == (
        Piece(word, float(str(weight))) if float(str(weight)) != 1.0 else Piece(before + word, 1.0)
    )


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_a_prompt_with_every_mark_escaped_is_itself(text: str):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)

    assert pieces_of(escaped) == ((Piece(text, 1.0),) if text else ())


@given(st.text("ab:1.5-+()[]\\ ,", max_size=80))
def test_whatever_is_typed_is_read_or_refused_and_no_letter_is_lost(text: str):
    try:
        pieces = pieces_of(text)
    except InvalidRequest:
        return
    assert [c for piece in pieces for c in piece.text if c in "ab,"] == [c for c in text if c in "ab,"]
    assert all(abs(piece.weight) <= MAX_WEIGHT for piece in pieces)
    assert all(one.weight != next_.weight for one, next_ in itertools.pairwise(pieces))


@pytest.mark.parametrize("prompt", ["((a:5):5)", "((a:-4):3)", "(" * 17 + "a", "[" * 9 + "(" * 8 + "a"])
def test_a_weight_beyond_the_limit_and_brackets_too_deep_are_refused(prompt: str):
    with pytest.raises(InvalidRequest) as told:
        pieces_of(prompt)

    assert told.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        "(a:" + "1" * 31_000,
        "(:1" * 10_000,
        "()" * 16_000,
        "(a" * 16 + "b)" * 15_000,
        ": " * 16_000,
        "\\" * 32_000,
        "(" + " " * 31_000,
    ],
)
def test_no_prompt_of_the_allowed_length_takes_long(prompt: str):
    began = time.process_time()
    for work in (pieces_of, without_weights):
        try:
            work(prompt)
        except InvalidRequest:
            continue

    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("a (large:1.3) cat", "a large cat"),
        ("((a:1.2) b:0.5)", "a b"),
        ("a sign (in red) [sic]", "a sign (in red) [sic]"),
        ("a clock (at 12:30), (16:9)", "a clock (at 12:30), (16:9)"),
        (r"\(a:1.2\)", r"\(a:1.2\)"),
        ("plain", "plain"),
    ],
)
def test_a_model_of_plain_language_sees_no_weights(prompt: str, language: str):
    assert without_weights(prompt) == language
