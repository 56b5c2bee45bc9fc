"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    """Return the version of profile-loader."""
    return metadata.version("profile-loader")
