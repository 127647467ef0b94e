"""What LangChain for Python makes of the server. `python langchain_python.py URL KEY`; needs langchain-community, openai."""

import sys
import urllib.request
from importlib.metadata import version

import openai
from checking import WRONG_KEY, refusal, size_of
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def main(url: str, key: str) -> None:
    """It asks for `dall-e-2`, reads urls, and hands the SDK's exceptions on."""
    wrapper = DallEAPIWrapper(base_url=url, api_key=key)
    made = wrapper.run("a red circle")
    assert size_of(urllib.request.urlopen(made).read()) == (1024, 1024)

    several = DallEAPIWrapper(base_url=url, api_key=key, model="dall-e-3", n=2, size="256x256", quality="hd", separator=" ")
    links = several.run("a red circle").split(" ")
    assert [size_of(urllib.request.urlopen(link).read()) for link in links] == [(256, 256)] * 2

    error = refusal(lambda: DallEAPIWrapper(base_url=url, api_key=key, size="huge").run("x"), openai.BadRequestError)
    assert (error.param, error.code) == ("size", "invalid_value")
    assert "Invalid size 'huge'" in str(error)
    refusal(lambda: DallEAPIWrapper(base_url=url, api_key=WRONG_KEY).run("x"), openai.AuthenticationError)
    print(f"langchain-community {version('langchain-community')} with openai {openai.__version__}: all as it expects")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
