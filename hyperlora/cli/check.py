"""`hyperlora check`: what the clients of a run hold, which files are bad, and what the run will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlora.cli.app_directory import app_directory
from hyperlora.cli.estimate import estimate
from hyperlora.cli.output import print_table, reports_errors, say
from hyperlora.cli.preflight import check_kind
from hyperlora.cli.settings import read_settings, require_inputs
from hyperlora.clock import clock
from hyperlora.progress import counted

if TYPE_CHECKING:
    from client_app.runtime import ClientRuntime
    from hyperlora.data.federation import ClientData, Federation

MOST_CLASSES = 12
GIB, MIB, KIB = 2**30, 2**20, 2**10


@reports_errors
def check(
    config: Annotated[list[Path] | None, typer.Argument(help="TOML files, as for 'hyperlora run --config'.")] = None,
    override: Annotated[list[str] | None, typer.Option("-c", help="Override a setting, key=value; repeatable.")] = None,
    app_dir: Annotated[
        Path | None, typer.Option(help="Flower app to use; default: the current directory, else HyperLoRA's own app.")
    ] = None,
    cost: Annotated[bool, typer.Option(help="Time one batch to estimate run time, memory and traffic.")] = True,
) -> None:
    """Check a run's data before it starts: samples per client and class, unreadable files, and the estimated cost.

    Examples:

        hyperlora check photos.toml

        hyperlora check -c data.name=csv -c data.path=reviews.csv --no-cost
    """
    from hyperlora.task import build_federation

    with app_directory(app_dir) as place:
        settings = read_settings(place, config or [], override or [], {}).config
    check_kind(settings)
    require_inputs(settings)
    federation = build_federation(settings.data, image_size=settings.model.image_size, seed=settings.seed)
    held, left_out = _read(federation)
    print_table(_columns(federation.class_names), [_row(client, federation.class_names) for client in held])
    for sentence in left_out:
        say(f"left out: {sentence}", style="yellow")
    say(f"{len(held)} clients hold {sum(map(_size, held))} samples of {len(federation.class_names)} classes")
    if cost and held:
        from client_app.runtime import open_runtime  # brings the models' libraries

        for line in _costs(open_runtime(settings), [client.client_id for client in held], sum(map(_size, held))):
            say(line)


def _read(federation: Federation) -> tuple[list[ClientData], list[str]]:
    """Read every client; return what they hold, and why the others are left out. Bad files go to the log."""
    from hyperlora.data.federation import DataError

    held, left_out = [], []
    for client_id in counted(federation.client_ids, "reading clients", len(federation.client_ids)):
        try:
            held.append(federation.load(client_id))
        except DataError as error:
            left_out.append(str(error))
    return held, left_out


def _size(client: ClientData) -> int:
    return len(client.train) + len(client.validation) + len(client.test)


def _columns(names: Sequence[str]) -> list[str]:
    of_classes = list(names) if len(names) <= MOST_CLASSES else [f"classes of {len(names)}"]
    return ["client", "trains", "train", "validation", "test", *of_classes]


def _row(client: ClientData, names: Sequence[str]) -> list[str]:
    """Return a client's samples in each part, and of each class, where the classes are few, else how many it has."""
    parts = (client.train, client.validation, client.test)
    counts = Counter(label for part in parts for label in part.labels.tolist())
    few = [str(counts[label]) for label in range(len(names))] if len(names) <= MOST_CLASSES else [str(len(counts))]
    return [client.client_id, "yes" if client.trains else "never", *(str(len(part)) for part in parts), *few]


def _costs(runtime: ClientRuntime, client_ids: Sequence[str], samples: int) -> Iterator[str]:
    """Yield what the run will cost, as far as one batch tells."""
    from hyperlora.task import cohort_size

    config = runtime.config
    cohort, rounds = cohort_size(config.data, config.federation.clients_per_round), config.federation.rounds
    found = estimate(runtime, client_ids, samples, cohort)
    asked = min(1.0, (config.federation.evaluate_clients or len(client_ids)) / len(client_ids))
    before_the_last = -(-rounds // config.federation.evaluate_every) - 1
    total = clock(found.total_seconds(rounds, asked * before_the_last + 1))
    yield (
        f"embedding {found.embedding:.0f} s once, a round {found.round_seconds:.1f} s, an evaluation "
        f"{found.evaluation_seconds:.0f} s: {rounds} rounds take about {total} of one core on "
        f"{runtime.model.device}, and the start of Flower"
    )
    yield (
        f"memory: {found.processes} client processes and the server's take about {found.process_bytes / GIB:.1f} GiB "
        f"each, as this one did, with Flower {found.memory_bytes / GIB:.1f} GiB in all"
    )
    yield f"embeddings of all samples: {found.kept_bytes / MIB:.0f} MiB on disk and, in the client processes, in memory"
    each = found.adapter_bytes / KIB
    yield f"an adapter is {each:.0f} KiB; a round sends {2 * cohort * each / KIB:.1f} MiB in all, both ways"
