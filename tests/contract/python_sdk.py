"""What the openai package for Python makes of the server. `python python_sdk.py URL KEY`; needs nothing but the package.

Written for every version from 2.29 on, so arguments that came later travel in `extra_body`.
"""

import asyncio
import io
import sys

import openai
from checking import MODEL, WRONG_KEY, png, refusal, size_of


def check_generations(client: openai.OpenAI) -> None:
    """Bytes, links, seeds, extra keys."""
    answer = client.images.generate(model=MODEL, prompt="猫", n=2, size="256x128", extra_body={"seed": 41})
    assert [size_of(item.b64_json) for item in answer.data] == [(256, 128)] * 2
    assert [item.seed for item in answer.data] == [41, 42]
    assert answer.usage.total_tokens > 0
    assert answer.size == "256x128"
    linked = client.images.generate(model="dall-e-3", prompt="x", size="1024x1024", style="vivid", quality="hd")
    assert linked.data[0].url.startswith(str(client.base_url))
    raw = client.images.with_raw_response.generate(model=MODEL, prompt="x")
    assert raw.headers["x-request-id"]
    assert raw.headers["x-run-id"].startswith("run_")
    assert raw.parse().data[0].b64_json


def check_edits(client: openai.OpenAI) -> None:
    """Bytes, files, tuples, lists, a mask."""
    for image in (png(), io.BytesIO(png()), ("a.png", png(), "image/png"), [png()]):
        answer = client.images.edit(model=MODEL, image=image, prompt="x", mask=png(), extra_body={"strength": 0.5})
        assert answer.data[0].b64_json
    varied = client.images.create_variation(image=png(), n=2, size="256x256")
    assert len(varied.data) == 2


def check_models(client: openai.OpenAI) -> None:
    """Lists, ids with slashes and colons."""
    assert {MODEL, "org/other:1", "dall-e-3"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("org/other:1").id == "org/other:1"
    assert refusal(lambda: client.models.retrieve("no/one"), openai.NotFoundError).code == "model_not_found"


def check_errors(client: openai.OpenAI) -> None:
    """The SDK's own classes, with code and param."""
    error = refusal(lambda: client.images.generate(model=MODEL, prompt="x", n=11), openai.BadRequestError)
    assert (error.code, error.param) == ("integer_above_max_value", "n")
    error = refusal(lambda: client.images.generate(model="no/one", prompt="x"), openai.BadRequestError)
    assert (error.type, error.param) == ("image_generation_user_error", "model")
    error = refusal(lambda: client.images.edit(model=MODEL, image=b"%PDF", prompt="x"), openai.BadRequestError)
    assert error.code == "unsupported_file_mimetype"
    stranger = client.with_options(api_key=WRONG_KEY)
    error = refusal(lambda: stranger.images.generate(model=MODEL, prompt="x"), openai.AuthenticationError)
    assert error.code == "invalid_api_key"
    assert error.request_id


async def check_async(url: str, key: str) -> None:
    """Many at once."""
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        answers = await asyncio.gather(*(client.images.generate(model=MODEL, prompt=str(i)) for i in range(5)))
    assert len({answer.data[0].b64_json for answer in answers}) == 5


def main(url: str, key: str) -> None:
    """All of it."""
    with openai.OpenAI(base_url=url, api_key=key) as client:
        for check in (check_generations, check_edits, check_models, check_errors):
            check(client)
    asyncio.run(check_async(url, key))
    print(f"openai {openai.__version__} for Python: all as it expects")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
