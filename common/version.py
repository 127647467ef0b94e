"""The version that runs."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("aquatint")
except PackageNotFoundError:  # run from a tree that was never installed
    VERSION = "0"
