"""Edits that name their pictures by URL: off by default, and never a way into the server's own network."""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from common.dialling import trusted
from common.images_api import remote
from router.settings import RouterSettings
from tests.fakes.node import MODEL
from tests.router.conftest import House, MakeHouse

OWN_NETWORK = ["127.0.0.0/8"]
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


class PictureServer:
    """A server of pictures that keeps what it was asked, and answers as told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.head = "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"
        self.content = png()
        self.hangs = False
        self.connections: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. Whoever asks may be gone before it is read: a client that is out of time does not wait."""
        connection = asyncio.current_task()
        assert connection is not None
        self.connections.add(connection)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.hangs:
                await reader.read()
            else:
                head = f"{self.head}content-length: {len(self.content)}\r\nconnection: close\r\n\r\n"
                writer.write(head.encode() + self.content)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def certificate(name: str, folder: Path) -> Path:
    """A certificate for `name`, signed by itself, with its key: one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@asynccontextmanager
async def listening(pictures: PictureServer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(pictures.answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*pictures.connections)


async def edit(house: House, *urls: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": "a hat", "images": [{"image_url": url} for url in urls], **fields}
    return await house.client.post("/v1/images/edits", json=body)


async def test_no_url_is_followed_unless_an_operator_lists_its_origin(make_house: MakeHouse):
    house = await make_house("a")
    pictures = PictureServer()

    async with listening(pictures) as port:
        reply = await edit(house, f"http://127.0.0.1:{port}/a.png")

    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "images[0].image_url", "invalid_image_url")
    assert pictures.asked == []


async def test_a_picture_of_a_listed_origin_is_fetched_and_edited(make_house: MakeHouse):
    pictures = PictureServer()
    async with listening(pictures) as port:
        origin = f"http://localhost:{port}"
        house = await make_house("a", common={"image_url_origins": [origin], "image_url_networks": OWN_NETWORK})

        reply = await edit(house, f"{origin}/a%20b.png?x=1#part")

    assert reply.status_code == 200, reply.text
    assert house.nodes["a"].uploads == [pictures.content]
    (asked,) = pictures.asked
    assert asked.startswith("GET /a%20b.png?x=1 HTTP/1.1\r\n")
    assert f"\r\nhost: localhost:{port}\r\n" in asked.lower()
    assert "authorization" not in asked.lower()


async def test_a_listed_name_that_leads_inside_is_not_dialled(make_house: MakeHouse):
    pictures = PictureServer()
    async with listening(pictures) as port:
        house = await make_house("a", common={"image_url_origins": [f"http://localhost:{port}"]})

        reply = await edit(house, f"http://localhost:{port}/a.png")

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image_url")
    assert pictures.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}@evil.test/a.png", "http://user:secret@localhost:{port}/a.png", "http://2130706433:{port}/",
        "http://0x7f000001:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://localhost:{other}/a.png",
        "https://localhost:{port}/a.png", "http://localhost.:{port}/", "http://127.1:{port}/", "http://:{port}/",
        "http://[::1/", "http://localhost:99999/", "HTTP://evil.test:{port}/", "http://loc\\u0000alhost:{port}/",
    ],
)  # fmt: skip
async def test_urls_that_only_look_like_a_listed_one_are_refused(make_house: MakeHouse, url: str):
    pictures = PictureServer()
    async with listening(pictures) as port:
        house = await make_house(
            "a", common={"image_url_origins": [f"http://localhost:{port}"], "image_url_networks": OWN_NETWORK}
        )

        reply = await edit(house, url.format(port=port, other=port ^ 1).replace("\\u0000", "\0"))

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "images[0].image_url")
    assert pictures.asked == []


@pytest.mark.parametrize(
    ("head", "content", "code"),
    [
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{canary}/\r\n", b"", "invalid_image_url"),
        ("HTTP/1.1 404 Not Found\r\n", b"secret of an inner service", "invalid_image_url"),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n", b"\x1f\x8b", "invalid_image_url"),
        ("nonsense\r\n", b"", "invalid_image_url"),
        ("HTTP/1.1 200 OK\r\n", b"\x89PNG" + b"0" * 4_194_304, "image_too_large"),
        ("HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n", b"<html>", "unsupported_file_mimetype"),
    ],
)
async def test_answers_that_are_no_picture_are_refused_and_never_shown(
    make_house: MakeHouse, head: str, content: bytes, code: str
):
    pictures, canary = PictureServer(), PictureServer()
    async with listening(pictures) as port, listening(canary) as canary_port:
        origin = f"http://localhost:{port}"
        house = await make_house("a", common={"image_url_origins": [origin], "image_url_networks": OWN_NETWORK})
        pictures.head, pictures.content = head.format(canary=canary_port), content

        reply = await edit(house, f"{origin}/a.png")

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    assert "secret" not in reply.text
    assert canary.asked == []


async def test_a_mask_and_several_pictures_may_be_named_and_each_is_fetched_once(make_house: MakeHouse):
    pictures = PictureServer()
    async with listening(pictures) as port:
        origin = f"http://localhost:{port}"
        house = await make_house("a", common={"image_url_origins": [origin], "image_url_networks": OWN_NETWORK})

        reply = await edit(house, f"{origin}/a.png", f"{origin}/a.png", mask={"image_url": f"{origin}/mask.png"})

    assert reply.status_code == 200, reply.text
    assert house.nodes["a"].uploads == [pictures.content] * 3
    assert sorted(asked.split()[1] for asked in pictures.asked) == ["/a.png", "/mask.png"]


@pytest.fixture
def authorities_anew() -> Iterator[None]:
    """Whom this process trusts is read again in the test, and after it."""
    trusted.cache_clear()
    yield
    trusted.cache_clear()


@pytest.mark.usefixtures("authorities_anew")
@pytest.mark.parametrize(("certified", "status"), [("localhost", 200), ("other.example", 400)])
async def test_a_server_must_prove_the_name_it_was_asked_by(
    make_house: MakeHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certified: str, status: int
):
    pictures = PictureServer()
    chain = certificate(certified, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain)
    async with listening(pictures, tls) as port:
        origin = f"https://localhost:{port}"
        house = await make_house("a", common={"image_url_origins": [origin], "image_url_networks": OWN_NETWORK})

        reply = await edit(house, f"{origin}/a.png")

    assert reply.status_code == status, reply.text
    assert len(pictures.asked) == (status == 200)


async def test_a_server_that_never_answers_costs_its_time_and_no_more(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3)
    pictures = PictureServer()
    pictures.hangs = True
    async with listening(pictures) as port:
        origin = f"http://localhost:{port}"
        house = await make_house("a", common={"image_url_origins": [origin], "image_url_networks": OWN_NETWORK})

        reply = await edit(house, f"{origin}/a.png", mask={"image_url": f"{origin}/mask.png"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image_url")


def test_a_wrong_origin_stops_the_start():
    with pytest.raises(ValueError, match="more than an origin"):
        RouterSettings(image_url_origins=["https://a.example/path"])
