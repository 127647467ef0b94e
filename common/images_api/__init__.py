"""OpenAI's Images wire, both directions: what a request may hold, and how an answer is written.

Bodies are parsed by hand from one table of fields (`fields.py`) rather than by typed FastAPI bodies: those coerce
`"2"` and `true` to integers, answer 422 with a `detail` that OpenAI's SDKs cannot show, and fail with a 500 on NaN.
"""

from common.images_api.answer import Picture, answer_bytes, usage
from common.images_api.forms import parse_form
from common.images_api.links import AssetLinks
from common.images_api.loras import asked_for
from common.images_api.reading import MAX_JSON_BYTES, read_form_request, read_json_request
from common.images_api.request import (
    ControlAsk,
    ControlKind,
    ImageRequest,
    InputFidelity,
    LoraAsk,
    OutputFormat,
    Preprocess,
    Preset,
    Quality,
    ResponseFormat,
    Size,
    Style,
    Task,
    Upload,
    UpscaleAsk,
)
from common.images_api.sending import encoded
from common.upload_limits import UploadLimits

__all__ = [
    "MAX_JSON_BYTES",
    "AssetLinks",
    "ControlAsk",
    "ControlKind",
    "ImageRequest",
    "InputFidelity",
    "LoraAsk",
    "OutputFormat",
    "Picture",
    "Preprocess",
    "Preset",
    "Quality",
    "ResponseFormat",
    "Size",
    "Style",
    "Task",
    "Upload",
    "UploadLimits",
    "UpscaleAsk",
    "answer_bytes",
    "asked_for",
    "encoded",
    "parse_form",
    "read_form_request",
    "read_json_request",
    "usage",
]
