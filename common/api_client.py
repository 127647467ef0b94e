"""How the command line talks to a router: its public and admin API, as any other client would."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.settings import CommonSettings
from common.settings_sources import read_secret

if TYPE_CHECKING:
    import httpx

URL_VARIABLE = "AQUATINT_URL"
KEY_VARIABLE = "AQUATINT_API_KEY"
FILE_NAME = "client.json"


class ApiError(Exception):
    """The router refused, or could not be reached; the text is for the person at the terminal."""


def remember(home: Path, url: str, key: str | None) -> Path:
    """Note where the router of this home is, and a key for it, readable by its owner only."""
    path = home / FILE_NAME
    known = _remembered(home)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump({"url": url, "key": key or known.get("key")}, file)
    return path


def _remembered(home: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads((home / FILE_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return known


class ApiClient:
    """Calls with the address and key of the options, the environment, or what `aquatint up` noted, in this order."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        import httpx

        known = _remembered(CommonSettings.load().home)
        self.url = url or os.environ.get(URL_VARIABLE) or known.get("url") or "http://127.0.0.1:8000"
        self.key = key or read_secret(KEY_VARIABLE, os.environ) or known.get("key")
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(600, connect=5), trust_env=False)

    def call(self, method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The JSON of the answer; None where it has no body. Raises: ApiError."""
        response = self._answer(method, path, body=body, headers=headers)
        return response.json() if response.content else None

    def text(self, path: str) -> str:
        """An answer that is not JSON. Raises: ApiError."""
        return self._answer("GET", path).text

    def events(self, path: str, *, after: int) -> Iterator[tuple[int, str, Any]]:
        """Number, name and data of server-sent events, until the router ends them. Raises: ApiError."""
        import httpx

        headers = {"last-event-id": str(after)} if after else {}
        number, name = 0, ""
        with self._reaching(), self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(60, connect=5)) as answer:
            if answer.is_error:
                raise ApiError(_told(answer.read().decode(errors="replace"), answer.status_code))
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    number = int(value)
                elif field == "event":
                    name = value
                elif field == "data":
                    yield number, name, json.loads(value)

    def _answer(self, method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None) -> "httpx.Response":
        with self._reaching():
            response = self._http.request(method, path, json=body, headers=headers)
        if response.is_error:
            raise ApiError(_told(response.text, response.status_code))
        return response

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError:
            raise ApiError(
                f"No router answers at {self.url}. Start one with `aquatint up`, or say where it is with {URL_VARIABLE}."
            ) from None
        except httpx.HTTPError as error:
            raise ApiError(f"The router at {self.url} broke off: {type(error).__name__}.") from None


def _told(body: str, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The router answered {status}."
