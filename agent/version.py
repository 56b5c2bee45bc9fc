"""Reads the version of the installed package."""


def version() -> str:
    """Return the version of profile-loader."""
    # The import takes 2 MiB of memory, which most commands do not need.
    from importlib import metadata

    return metadata.version("profile-loader")
