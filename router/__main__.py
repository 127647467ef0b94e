"""`python -m router` is `aquatint router`."""

import typer

from router.cli import router

if __name__ == "__main__":
    typer.run(router)
