"""What a client may be called: a name that is also safe as a file name, in a table and in a log line."""

from __future__ import annotations

import re

PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RULE = "1 to 64 letters, digits, dots, dashes and underscores that begin with a letter or digit"


FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
"""What a simulation makes out of the name of a domain may be longer; it is safe as a file name all the same."""


def is_file_name(text: str) -> bool:
    """Tell whether ``text`` names a file inside a directory, whatever the directory is."""
    return FILE_NAME.fullmatch(text) is not None


def is_client_id(text: str) -> bool:
    """Tell whether a client may be called ``text``."""
    return PATTERN.fullmatch(text) is not None
