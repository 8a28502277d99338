"""``python -m tests.faults [PART ...]``: try everything, print the table; exit status 1 if a row is not as expected."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
RECORDS, INTAKES, CHECKPOINTS, FILES, LEDGERS, KILLS = 20_000, 2_000, 1_000, 2_000, 500, 200


def clients(directory: Path) -> Iterable[object]:
    from tests.faults.clients import client_rows

    return client_rows()


def server(directory: Path) -> Iterable[object]:
    from tests.faults.server import server_rows

    return server_rows(KILLS, directory)


def disk(directory: Path) -> Iterable[object]:
    from tests.faults.disk import full_disk
    from tests.faults.server import left_alone

    return [full_disk(directory, left_alone(directory / "alone"))]


def network(directory: Path) -> Iterable[object]:
    from tests.faults.network import network_row

    return [network_row(directory)]


def records(directory: Path) -> Iterable[object]:
    from tests.faults.intake import intake_rows
    from tests.faults.records import record_rows

    yield from record_rows(RECORDS)
    yield from intake_rows(INTAKES)


def files(directory: Path) -> Iterable[object]:
    from tests.faults.damaged import damaged_rows
    from tests.faults.ledgers import ledger_row
    from tests.faults.places import place_rows
    from tests.faults.run_files import run_files_row
    from tests.faults.server import left_alone

    yield from damaged_rows(CHECKPOINTS, directory)
    yield ledger_row(LEDGERS, directory)
    alone = left_alone(directory / "alone")
    yield run_files_row(FILES, directory, alone)
    yield from place_rows(directory, alone)


PARTS: dict[str, Callable[[Path], Iterable[object]]] = {
    one.__name__: one for one in (clients, server, disk, network, records, files)
}


def main() -> int:
    from tests.faults.table import Row, as_table

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(PARTS)}; all by default")
    wanted = parser.parse_args().parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    logging.getLogger("strategies").addHandler(logging.NullHandler())
    logging.getLogger("strategies").propagate = False
    rows: list[Row] = []
    for name in wanted:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"hyperlora-faults-{name}-") as scratch:
            rows += [row for row in PARTS[name](Path(scratch)) if isinstance(row, Row)]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(as_table(rows))
    failed = [row.tried for row in rows if not row.passed]
    print(f"{sum(row.count for row in rows)} tries, {len(failed)} of {len(rows)} rows not as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
