"""Runs inside a container: what of the places that are named can be reached from here, and may anything be written?

python probe.py may=superlink:8000 site-1:9094 172.20.0.3:9094

Prints a line for every place. Ends with 1 where one can be reached without ``may=`` before it, one with it cannot, or
the container's own file system can be written.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

WAIT = 3.0
NOT_MOUNTED = Path("/probe")


def reached(place: str) -> bool:
    """Tell whether a TCP connection to ``host:port`` comes about; a name that is not known is not reached."""
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=WAIT):
            return True
    except OSError:
        return False


def written(path: Path) -> bool:
    """Tell whether a file can be written; it is removed again."""
    try:
        path.write_text("")
    except OSError:
        return False
    path.unlink()
    return True


def main(places: list[str]) -> int:
    """Print what was found and return the exit status."""
    wrong = 0
    for place in places:
        may, found = place.startswith("may="), reached(place.removeprefix("may="))
        wrong += found != may
        says = "as it should" if found == may else "WRONG"
        print(f"  {place.removeprefix('may=')} is {'' if found else 'not '}reached: {says}")
    if written(NOT_MOUNTED):
        wrong += 1
        print(f"  {NOT_MOUNTED} can be written: WRONG")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
