"""The one place that writes errors: OpenAI's envelope, whatever went wrong and wherever."""

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from common.errors import (
    AquatintError,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
)
from common.logs import get_logger
from common.node_api import RUN_ID_HEADER

log = get_logger(__name__)

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def answer_error(error: AquatintError) -> Response:
    """`error` as OpenAI's SDKs read it, with the run that ended so."""
    headers = error.headers() | ({} if error.run_id is None else {RUN_ID_HEADER: error.run_id})
    return Response(orjson.dumps(error.envelope()), status_code=error.status, headers=headers, media_type="application/json")


def unexpected(error: Exception) -> AquatintError:
    """An error nobody foresaw: logged in full, told without its text, which may hold anything."""
    log.error("unexpected_error", exc_info=error)
    return AquatintError("The server had an error while processing your request.")


def from_http_exception(error: HTTPException, request: Request) -> AquatintError:
    """What Starlette itself raises while routing, in our words."""
    path, method = request.scope["path"], request.method
    if error.status_code == 404:
        return NotFound(f"Unknown request URL: {method} {path}.", code="unknown_url")
    if error.status_code == 405:
        return MethodNotAllowed(f"Not allowed to {method} on {path}.", allowed(request))
    known = {401: Unauthorized, 403: Forbidden, 413: PayloadTooLarge}.get(error.status_code)
    if known is not None:
        return known(str(error.detail))
    if 400 <= error.status_code < 500:
        return InvalidRequest(str(error.detail), code="invalid_request")
    return unexpected(error)


def allowed(request: Request) -> str:
    """The methods of a path over all of its routes. Starlette names those of the first route alone."""
    routes = request.app.router.routes
    return ", ".join(
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    )


def from_validation_error(error: RequestValidationError) -> InvalidRequest:
    """FastAPI's own answer is a 422 that echoes the input, which is a 500 for NaN and lone surrogates."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or None
    return InvalidRequest(f"{where or 'request'}: {first['msg']}.", param=where, code="invalid_request")


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` an envelope."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, AquatintError)
        return answer_error(error)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer_error(from_http_exception(error, request))

    async def validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_error(from_validation_error(error))

    app.add_exception_handler(AquatintError, ours)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(RequestValidationError, validation)
