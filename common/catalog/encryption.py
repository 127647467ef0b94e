"""The key node tokens are encrypted with. It lives outside the database, so a copy of the database gives no token away."""

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from common.errors import AquatintError, InvalidRequest
from common.logs import get_logger
from common.secret_files import create_once

log = get_logger(__name__)


def load_or_create_secret_key(path: Path) -> bytes:
    """The key in the file `path`, made with mode 0600 if absent. Several processes may ask at the same moment.

    Raises: AquatintError: the file cannot be read or written, or holds no key.
    """
    try:
        if not path.exists():
            create_once(path, Fernet.generate_key())
        key = path.read_bytes().strip()
    except OSError as error:
        raise AquatintError(f"The secret key {path} cannot be read or made: {error.strerror}.") from error
    _cipher(key, path)
    return key


def _cipher(key: bytes, where: Path | str) -> Fernet:
    try:
        return Fernet(key)
    except ValueError as error:
        raise AquatintError(f"The secret key {where} is not a key: it must be 32 bytes in URL-safe base64.") from error


class TokenCipher:
    """Encrypts and decrypts node tokens; without a key it can do neither."""

    def __init__(self, secret_key: bytes | None) -> None:
        self._fernet = None if secret_key is None else _cipher(secret_key, "given")

    def encrypt(self, token: str | None) -> str | None:
        """Raises: InvalidRequest: there is a token but no key."""
        if token is None:
            return None
        if self._fernet is None:
            raise InvalidRequest("A node's token cannot be stored without the secret key.", param="token")
        return self._fernet.encrypt(token.encode()).decode()

    def decrypt(self, encrypted: str | None, *, node: str) -> str | None:
        """The token; None also without the right key, for one unreadable token must not hide all other nodes."""
        if encrypted is None or self._fernet is None:
            return None
        try:
            return self._fernet.decrypt(encrypted).decode()
        except InvalidToken:
            log.warning("node_token_unreadable", node=node, hint="it was stored with another secret key; set it again")
            return None
