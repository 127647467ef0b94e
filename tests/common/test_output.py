"""Tables on a terminal show what is in them."""

import pytest

from common.commands.output import show


def test_square_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]):
    show([{"advice": "pip install 'aquatint[sdcpp]'"}], {"advice": "advice"}, as_json=False, empty="")

    assert "pip install 'aquatint[sdcpp]'" in capsys.readouterr().out
