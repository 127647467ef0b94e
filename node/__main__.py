"""`python -m node`: the same as `aquatint node`."""

import typer

from node.cli import node

if __name__ == "__main__":
    typer.run(node)
