"""An HTTP request on one of the image routes -> ImageRequest, whatever kind of body it has."""

from starlette.requests import ClientDisconnect, Request

from common.errors import InvalidRequest, RunCancelled
from common.image_origins import ImageOrigins
from common.images_api import MAX_JSON_BYTES, ImageRequest, Task, UploadLimits, parse_form, read_form_request, read_json_request
from common.images_api.control import max_control_bytes
from common.images_api.reading import parse_json_object
from common.images_api.remote import fetch_named
from common.images_api.uploads import MAX_IMAGES
from common.web.bodies import LEFT_EARLY, read_body, too_large
from common.web.headers import headers_of

NOWHERE = ImageOrigins()
CONTROL = b'"control"'
"""Without the field that carries pictures a generation is only text, and text is bounded as tightly as ever."""


async def read_image_request(
    task: Task, request: Request, limits: UploadLimits, origins: ImageOrigins = NOWHERE
) -> ImageRequest:
    """Read the body: a form for what says so, else JSON, as generations of clients send it without any type.

    origins: from where pictures named by URL are fetched.

    Raises: InvalidRequest, PayloadTooLarge; RunCancelled: the client left while sending.
    """
    kind = headers_of(request.scope).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            texts, files = await parse_form(request.headers, request.stream(), limits)
        except ClientDisconnect:
            raise RunCancelled(LEFT_EARLY) from None
        return read_form_request(task, texts, files, limits)
    if task is Task.VARIATION:
        raise InvalidRequest("A variation is sent as multipart/form-data.", code="invalid_content_type")
    most = MAX_JSON_BYTES + max_control_bytes(limits)
    if task is Task.EDIT:
        most += limits.max_bytes * 4 // 3 * (MAX_IMAGES + 1)
    body = await read_body(request, max_bytes=most)
    if len(body) > MAX_JSON_BYTES and task is Task.GENERATION and CONTROL not in body:
        raise too_large(MAX_JSON_BYTES)
    fetched = {}
    if origins.origins and task is Task.EDIT:
        fetched = await fetch_named(parse_json_object(body), origins, limits)
    return read_json_request(task, body, limits, fetched)
