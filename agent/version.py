"""The version of the installed package."""


def version() -> str:
    """Return the version of profile-loader."""
    from importlib import metadata  # The import needs 2 MiB, which most commands can save.

    return metadata.version("profile-loader")
