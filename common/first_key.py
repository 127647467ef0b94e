"""A server without a key would be open or useless; so the first start makes one, and says it once."""

import os

from common.catalog import Catalog
from common.errors import Conflict
from common.settings import BOOTSTRAP_KEY_VARIABLE
from common.settings_sources import read_secret

FIRST_KEY_NAME = "admin"


async def make_first_key(catalog: Catalog) -> str | None:
    """If the catalog holds no key yet, make one that may do everything; its secret, else None.

    The secret is `AQUATINT_BOOTSTRAP_KEY`, or the content of the file `AQUATINT_BOOTSTRAP_KEY_FILE`, where one is set, for
    starts that nobody watches.
    """
    if await catalog.keys.count():
        return None
    try:
        _, secret = await catalog.keys.create(
            name=FIRST_KEY_NAME, scopes=["user", "admin"], secret=read_secret(BOOTSTRAP_KEY_VARIABLE, os.environ)
        )
    except Conflict:
        # Another router started in the same moment and was first.
        return None
    return secret
