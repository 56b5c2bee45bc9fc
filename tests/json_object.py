"""The type of JSON objects in tests."""

from typing import Any

# A test reads the fields of a JSON object without a check of their types: a wrong type fails the
# test anyway.
JsonObject = dict[str, Any]
