"""multipart/form-data as image clients really send it: one image or many, under four names, with nested fields flattened."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from common.errors import InvalidRequest, PayloadTooLarge
from common.images_api.control import MAX_CONTROLS, max_control_bytes
from common.images_api.request import Pieces
from common.images_api.searching import contains
from common.images_api.uploads import MAX_IMAGES, Attached, too_large
from common.upload_limits import UploadLimits

MAX_TEXT_BYTES = 256 * 1024
MAX_FIELDS = 100
OVERHEAD_BYTES = 2 * 1024 * 1024
"""Room for text parts and part headers in the limit of a whole body."""
ROOM_BYTES = 256 * 1024 * 1024
"""Memory of a process for forms that are arriving."""
PIECE_BYTES = 16 * 1024
"""Of a file on average, or it is put together."""

# image, image[], image[0] and the same of mask and control_image; `name[]`, `name[][key]`, `name[key]` as SDKs flatten
# nested values.
_FILE = re.compile(r"(image|mask|control_image)(\[[0-9]{0,2}\])?", re.ASCII)
_NESTED = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])+)", re.ASCII)


class _FileTooLarge(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Room:
    """Memory that forms share while they arrive. A client may be as slow as it likes, and there may be many."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    @contextmanager
    def held(self, size: int | None) -> Iterator[bool]:
        """Whether there is room for a form of so many bytes, which it then has. None: nobody knows how large it is."""
        has_room = size is not None and size <= self.free_bytes
        taken = size if size is not None and has_room else 0
        self.free_bytes -= taken
        try:
            yield has_room
        finally:
            self.free_bytes += taken


ROOM = Room(ROOM_BYTES)


class _Parser(MultiPartParser):
    """Starlette's parser, which bounds text parts but not files, and reads as Latin-1 what is no UTF-8: here a file that is
    too large is refused while it arrives, and a text that is none is refused as JSON would refuse it.

    Nor does it keep more than a megabyte of a file in memory, and each piece that it writes to disk goes to a thread and back.
    Here files for which there is room are kept as they come, and found among the items in their pieces; nor need the parser
    see what lies in the middle of one.
    """

    def __init__(self, headers: Headers, stream: AsyncIterator[bytes], limits: UploadLimits, *, in_memory: bool) -> None:
        super().__init__(
            headers,
            self._seen_by_parser(stream),
            max_files=MAX_IMAGES + 1 + MAX_CONTROLS,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_TEXT_BYTES,
        )
        self._max_body_bytes = max_body_bytes(limits)
        self._max_file_bytes = limits.max_bytes
        self._max_control_bytes = max_control_bytes(limits)
        self._in_memory = in_memory
        self._delimiter = b"\r\n--" + parse_options_header(headers.get("content-type"))[1].get(b"boundary", b"")
        self._in_file = False
        """Whether all that the parser has seen of its last chunk is of the file that is just coming."""

    async def _seen_by_parser(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        size_bytes = 0
        async for chunk in stream:
            size_bytes += len(chunk)
            if size_bytes > self._max_body_bytes:
                raise PayloadTooLarge(f"The body of the request is larger than {self._max_body_bytes:,} bytes.")
            if self._in_file and self._has_no_delimiter(chunk):
                self._of_file(chunk)
            else:
                self._in_file = False
                yield chunk

    def _has_no_delimiter(self, chunk: bytes) -> bool:
        """Not even the beginning of one at its end."""
        return b"\r" not in chunk[-len(self._delimiter) :] and not contains(chunk, self._delimiter)

    def _of_file(self, data: bytes) -> None:
        self._count(len(data))
        self._pieces.append(data)

    def _count(self, size_bytes: int) -> None:
        self._file_bytes += size_bytes
        if self._file_bytes > self._max_file_bytes:
            raise _FileTooLarge(self._current_part.field_name)

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._file_bytes = 0
        self._pieces: list[bytes] = []

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            if self._in_memory:
                self._in_file = end == len(data)  # Or the rest may be the beginning of a delimiter.
                self._of_file(data[start:end])
                return
            self._count(end - start)
        elif self._current_part.field_name.partition("[")[0] == "control":
            # The only texts that may hold a picture.
            self.max_part_size = self._max_control_bytes
        else:
            self.max_part_size = MAX_TEXT_BYTES
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        name = self._current_part.field_name
        if self._current_part.file is not None:
            if self._in_memory:
                self._current_part.file.file.close()
                self.items.append((name, self._taken()))  # type: ignore[arg-type]
            else:
                super().on_part_end()
            return
        try:
            self.items.append((name, self._current_part.data.decode()))
        except UnicodeDecodeError:
            raise InvalidRequest(f"Invalid {name[:64]!r}: the text is not UTF-8.", param=name[:64]) from None

    def _taken(self) -> Pieces:
        """Not of many small pieces, each of which is an object of its own."""
        return tuple(self._pieces) if self._file_bytes >= PIECE_BYTES * len(self._pieces) else (b"".join(self._pieces),)


def max_body_bytes(limits: UploadLimits) -> int:
    """The largest form that can be valid: sixteen images, a mask, pictures that guide, and text."""
    return limits.max_bytes * (MAX_IMAGES + 1) + max_control_bytes(limits) + OVERHEAD_BYTES


async def parse_form(
    headers: Headers, stream: AsyncIterator[bytes], limits: UploadLimits, room: Room = ROOM
) -> tuple[dict[str, Any], Attached]:
    """Text parts by name, nested ones gathered (`loras[][name]` -> `loras: [{"name": ...}]`), and the files.

    Files for which there is no room go to disk above 1 MB while they arrive, and so do those of a form that does not say how
    large it is; names and types of files are never looked at.
    Raises: InvalidRequest: no form, broken, a file too large; PayloadTooLarge: the whole is.
    """
    with room.held(_declared_bytes(headers)) as in_memory:
        return await _parsed(headers, stream, limits, in_memory=in_memory)


def _declared_bytes(headers: Headers) -> int | None:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else None


async def _parsed(
    headers: Headers, stream: AsyncIterator[bytes], limits: UploadLimits, *, in_memory: bool
) -> tuple[dict[str, Any], Attached]:
    parser = _Parser(headers, stream, limits, in_memory=in_memory)
    try:
        form = await parser.parse()
    except _FileTooLarge as error:
        raise too_large(_file_name(error.name), limits) from None
    except MultiPartException as error:
        raise InvalidRequest(f"We could not parse the form of your request. ({error.message})", code="invalid_form") from None
    except (KeyError, UnicodeDecodeError, ValueError):
        raise InvalidRequest("We could not parse the form of your request.", code="invalid_form") from None
    texts: list[tuple[str, str]] = []
    files = Attached()
    try:
        for name, value in form.multi_items():
            if not isinstance(value, str):
                pieces: Pieces = (await value.read(),) if isinstance(value, UploadFile) else value
                _take_file(name, pieces, files)
            else:
                _refuse_text_for_file(name)
                texts.append((name, value))
    finally:
        await form.close()
    return gathered(texts), files


def _take_file(name: str, pieces: Pieces, files: Attached) -> None:
    match = _FILE.fullmatch(name)
    if match is None:
        raise InvalidRequest(
            f"Invalid type for {name[:64]!r}: expected a string, but got a file instead.", param=name[:64], code="invalid_type"
        )
    if match[1] == "mask":
        files.mask = pieces
    elif match[1] == "control_image":
        files.controls.append((name, pieces))
    else:
        files.images.append((f"image[{len(files.images)}]" if "[" in name or files.images else "image", pieces))


def _refuse_text_for_file(name: str) -> None:
    match = _FILE.fullmatch(name)
    if match is not None:
        where = f"{match[1]}[0]" if match[1] == "image" else match[1]
        raise InvalidRequest(
            f"Invalid type for '{where}': expected a file, but got a string instead.", param=where, code="invalid_type"
        )


def _file_name(name: str) -> str:
    match = _FILE.fullmatch(name)
    return match[1] if match else "image"


def gathered(texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Parts as values: a plain name keeps its last text; nested names become lists and objects.

    `tags[]` is a list; `svg[model]` an object; `loras[][name]` and `loras[][scale]` a list of objects, zipped by position,
    because that is all that is left of their order.
    """
    values: dict[str, Any] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for name, text in texts:
        match = _NESTED.fullmatch(name)
        if match is None:
            values[name] = text
            continue
        base, keys = match[1], re.findall(r"\[([^\[\]]*)\]", match[2])
        if keys == [""]:
            known = values.setdefault(base, [])
            if isinstance(known, list):
                known.append(text)
        elif keys[0] == "" and len(keys) == 2:
            columns.setdefault(base, {}).setdefault(keys[1], []).append(text)
        else:
            known = values.setdefault(base, {})
            if isinstance(known, dict):
                known[".".join(keys)] = text
    for base, rows in columns.items():
        length = max(map(len, rows.values()))
        values[base] = [{key: texts[i] for key, texts in rows.items() if i < len(texts)} for i in range(length)]
    return values
