"""What can go wrong in the catalog, beside the errors every package shares."""

from common.errors import AquatintError, CatalogUnavailable, Conflict


class AttemptFenced(Conflict):
    """This attempt no longer owns its run: a later one began, or the run has ended. Its result must not be stored."""

    code = "attempt_fenced"


class SchemaOutdated(CatalogUnavailable):
    """The database's tables are not those this version was written for."""

    code = "schema_outdated"


class AssetCorrupt(AquatintError):
    """Stored bytes are not the ones that were stored: reading them again gives the same."""

    code, retryable = "asset_corrupt", False

    def __init__(self, sha256: str) -> None:
        super().__init__(f"The stored bytes of asset {sha256} are damaged.")
