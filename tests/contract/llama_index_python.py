"""What LlamaIndex' image tool makes of the server. `python llama_index_python.py URL KEY`; needs
llama-index-tools-openai-image-generation, openai, pillow. The tool takes no address, so the SDK beneath must find one."""

import os
import sys
import tempfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

import openai
from checking import WRONG_KEY, refusal, size_of
from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec


def main(url: str, key: str) -> None:
    """It knows two models by name, always sends a style, and guesses the file's ending from its base64."""
    os.environ["OPENAI_BASE_URL"] = url
    with tempfile.TemporaryDirectory() as folder:
        tool = OpenAIImageGenerationToolSpec(api_key=key, cache_dir=folder)
        link = tool.image_generation("a red circle")
        assert size_of(urllib.request.urlopen(link).read()) == (1024, 1024)

        (saved,) = tool.image_generation("a red circle", model="dall-e-2", size="256x256", download=True)
        assert Path(saved).suffix == ".png"
        assert size_of(Path(saved).read_bytes()) == (256, 256)

        as_agents_call_it = tool.to_tool_list()[0].call(text="a red circle", quality="hd")
        assert str(as_agents_call_it.content).startswith(url)

        error = refusal(lambda: tool.image_generation("x", num_images=11), openai.BadRequestError)
        assert (error.param, error.code) == ("n", "integer_above_max_value")
        stranger = OpenAIImageGenerationToolSpec(api_key=WRONG_KEY, cache_dir=folder)
        refusal(lambda: stranger.image_generation("x"), openai.AuthenticationError)
    print(f"llama-index-tools-openai-image-generation {version('llama-index-tools-openai-image-generation')}: as it expects")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
