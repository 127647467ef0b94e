"""The token of a node, and its exchange."""

from pathlib import Path

import pytest

from common.errors import Conflict
from node import tokens
from node.tokens import Tokens, load_or_create_tokens


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    path = tmp_path / "home" / "node-token"

    first, second = load_or_create_tokens(path), load_or_create_tokens(path)

    assert first.current == second.current
    assert len(first.current) > 40
    assert path.stat().st_mode & 0o077 == 0


def test_the_old_token_opens_until_the_new_one_was_used_a_while_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    node = load_or_create_tokens(tmp_path / "node-token")
    old = node.current

    node.exchange("the-new-token-of-it")

    assert node.opened_by(old)
    assert node.opened_by("the-new-token-of-it")
    assert node.opened_by(old), "other routers have not read of it yet"
    assert not node.opened_by("another")
    monkeypatch.setattr(tokens, "GRACE_S", 0.0)
    again = load_or_create_tokens(tmp_path / "node-token")
    assert again.opened_by("the-new-token-of-it")
    assert not again.opened_by(old)
    assert [path.name for path in tmp_path.iterdir()] == ["node-token"]


def test_a_node_that_restarts_before_the_new_token_was_used_still_opens_to_the_old_one(tmp_path: Path):
    node = load_or_create_tokens(tmp_path / "node-token")
    old = node.current
    node.exchange("the-new-token-of-it")

    restarted = load_or_create_tokens(tmp_path / "node-token")

    assert restarted.opened_by(old)
    assert restarted.opened_by("the-new-token-of-it")


def test_a_second_exchange_leaves_the_token_that_is_known_to_be_in_use(tmp_path: Path):
    node = load_or_create_tokens(tmp_path / "node-token")
    node.exchange("the-second-token-of-it")
    node.exchange("the-third-token-of-it")

    assert node.opened_by("the-second-token-of-it")
    assert node.opened_by("the-third-token-of-it")


def test_a_token_from_the_settings_is_not_exchanged():
    node = Tokens("token-of-the-settings")

    with pytest.raises(Conflict):
        node.exchange("the-new-token-of-it")
    assert node.opened_by("token-of-the-settings")
