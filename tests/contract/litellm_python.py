"""What LiteLLM makes of the server. `python litellm_python.py URL KEY`; needs litellm.

Its `openai/` models with an address of one's own. It refuses `response_format` and `style` by itself, before it sends
anything, so a caller who wants urls must use a name whose answers hold them.
"""

import asyncio
import os
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

from checking import MODEL, WRONG_KEY, png, refusal, size_of

# Else the import fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm


def main(url: str, key: str) -> None:
    """Generation, edit, variation, refusals."""
    litellm.suppress_debug_info = True
    at = {"api_base": url, "api_key": key}
    made = litellm.image_generation(prompt="x", model=f"openai/{MODEL}", n=2, size="256x128", extra_body={"seed": 41}, **at)
    assert [size_of(item.b64_json) for item in made.data] == [(256, 128)] * 2
    linked = litellm.image_generation(prompt="x", model="openai/dall-e-3", size="1024x1024", **at)
    assert size_of(urllib.request.urlopen(linked.data[0].url).read()) == (1024, 1024)
    slashed = litellm.image_generation(prompt="x", model="openai/org/other:1", **at)
    assert slashed.data[0].b64_json
    asynchronous = asyncio.run(litellm.aimage_generation(prompt="x", model=f"openai/{MODEL}", **at))
    assert asynchronous.data[0].b64_json

    with tempfile.TemporaryDirectory() as folder:
        # It sends the whole path as the file's name.
        path = Path(folder) / "a.png"
        path.write_bytes(png())
        with path.open("rb") as image, path.open("rb") as mask:
            edited = litellm.image_edit(image=[image], mask=mask, prompt="x", model=f"openai/{MODEL}", size="256x256", **at)
        assert size_of(edited.data[0].b64_json) == (256, 256)
        # Of a variation it sends the image and nothing else, whatever it was given.
        varied = litellm.image_variation(image=png(), model="openai/dall-e-2", n=2, **at)
        assert len(varied.data) == 1
        assert size_of(varied.data[0].b64_json)

    error = refusal(
        lambda: litellm.image_generation(prompt="x", model=f"openai/{MODEL}", n=11, **at), litellm.exceptions.BadRequestError
    )
    assert error.status_code == 400
    assert "Expected a value <= 10, but got 11 instead" in str(error)
    error = refusal(
        lambda: litellm.image_edit(image=b"%PDF-1.7", prompt="x", model=f"openai/{MODEL}", **at),
        litellm.exceptions.BadRequestError,
    )
    assert "unsupported mimetype ('application/pdf')" in str(error)
    refusal(
        lambda: litellm.image_generation(prompt="x", model=f"openai/{MODEL}", api_base=url, api_key=WRONG_KEY),
        litellm.exceptions.AuthenticationError,
    )
    print(f"litellm {version('litellm')}: all as it expects")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
