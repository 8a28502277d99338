"""A run as others may have it: what `personalize` needs, a model card, and a statement of what the files tell.

Left out are paths, machines, times, who was asked when, every client's accuracy and its adapter's own directory. What
the server keeps between rounds is in it, for that is what generates adapters: signatures of clients and, for a method
that remembers them, their deviations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from hyperlora.config.schema import RunConfig
from hyperlora.reporting.model_card import accuracy_of_anchor, accuracy_of_federation, write_card
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory, require_new
from hyperlora.reporting.state_view import open_checkpoint
from hyperlora.storage.files import write_bytes, write_json, write_text
from hyperlora.storage.run_names import BACKBONE, CLIENTS, CONFIG, ENVIRONMENT, METRICS, SHARED_STATE, STATEMENT
from models.backbones.weights import weights_bytes
from models.personalization.class_statistics import ClassStatistics
from strategies.engine.checkpoint import Checkpoint, share
from strategies.engine.records import RoundRecord
from strategies.methods.base.server import Method

KEPT_OF_ROUND = ("server_round", "training", "evaluation", "method", "privacy")
ANCHOR = "anchor"
USE = """
# on the command line: hyperlora personalize {directory} my-data
from pathlib import Path

from hyperlora import personalize

personalize(Path("{directory}"), Path("my-data"))  # my-data/<class>/*.jpg, or a csv of texts
"""
TEXT = """# What these files tell of the clients

Written by `hyperlora publish`. No sample, path or machine of a client is in it. In it are, for each of {clients}
clients:

- its name, its domain, its number of samples and its signature: means and standard deviations of the frozen
  backbone's features, and the frequencies of its classes ({noise});
{statistics}- what the method `{method}` remembers of its trained adapter, in `state.safetensors` ({adapters}).

All of it says something of the client's data: whoever has the same backbone can compare a sample with it. Noise at the
client (`privacy.signature-noise`, `privacy.adapter-noise`) bounds what they tell; without it there is no bound. Ask
the clients before you hand this on.
"""

TEXT_OF_STATISTICS = """\
- its class statistics, in `state.safetensors`: for each class the number of its samples and the sum of their
  features, and the scatter within classes (without noise); of a class with one sample that is the sample's features;
"""

TEXT_OF_SUMS = """# What these files tell of the clients

Written by `hyperlora publish`. The run was one of sums (`privacy.mode`), and no number of a single client is in the
files. In them are, for each of {clusters} clusters of at least {least} clients:

- the mean of its clients' features under the frozen backbone, and how many samples of each class they have together;
- sums over its clients of features by class, and their scatter within classes, in `state.safetensors`.

A class that one client of a cluster alone has is that client's. Ask the clients before you hand this on.
"""


def publish_run(run: RunFiles, target: Path, license_name: str, *, with_backbone: bool = False) -> Path:
    """Write what others need of a run into the new directory ``target`` and return that.

    Args:
        run: a run with a checkpoint.
        target: where to.
        license_name: of the files, as the hub names it, for the card; for example ``apache-2.0``.
        with_backbone: put the frozen backbone's weights in as well, so that nobody has to make or fetch them; not for
            models of transformers, which are directories.

    Raises:
        RunFilesError: the run has no checkpoint or no list of clients, something is at ``target``, or the backbone
            is wanted and is no single file or not here.
        StateError, StorageError: it cannot be read or written.
    """
    require_new(target)
    clients = run.require_clients()
    method, found = open_checkpoint(run)
    if found is None:
        raise RunFilesError(f"the run in '{run.path}' has no checkpoint: run it with run.checkpoint-every above 0")
    weights = _backbone(run) if with_backbone else None
    with new_directory(target) as made:
        if weights is not None:
            write_bytes(made / BACKBONE, weights)
        _write_files(run, made, method, found)
        _write_texts(run, made, len(clients.cards), license_name, tells=_has_statistics(found.state))
    return made


def _write_files(run: RunFiles, target: Path, method: Method, found: Checkpoint) -> None:
    bare = Checkpoint(found.server_round, found.state, found.cards)
    share(bare, target / SHARED_STATE, method.state_classes)
    records = [RoundRecord(**{key: record[key] for key in KEPT_OF_ROUND}).as_json() for record in run.records]
    write_text(target / METRICS, "".join(_json_line(record) for record in records))
    write_json(target / CONFIG, run.config.public())
    write_json(target / CLIENTS, run.require_clients().as_json())
    kept = {name: run.environment[name] for name in ("seed", "backbone_fingerprint", "packages", "python")}
    write_json(target / ENVIRONMENT, kept)


def _backbone(run: RunFiles) -> bytes:
    name = run.config.model.name
    if name.startswith("hf:"):
        raise RunFilesError(f"'{name}' is a directory of transformers, which is not published with a run; name its hub")
    return weights_bytes(run.rebuild_model().peft_model.unload())


def _write_texts(run: RunFiles, target: Path, clients: int, license_name: str, *, tells: bool) -> None:
    figures = accuracy_of_federation(run)
    title = f"federation of {clients} clients"
    write_card(
        run, target, title, figures=figures, loading=USE.format(directory=target.name), license_name=license_name
    )
    write_text(target / STATEMENT, _statement(run.config, clients, tells_statistics=tells))
    anchor = run.path / "adapters" / ANCHOR
    if anchor.is_dir():
        (target / ANCHOR).mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(anchor / name, target / ANCHOR / name)
        write_card(run, target / ANCHOR, ANCHOR, figures=accuracy_of_anchor(run), license_name=license_name)


def _statement(config: RunConfig, clients: int, *, tells_statistics: bool) -> str:
    if config.privacy.mode == "sums":
        return TEXT_OF_SUMS.format(clusters=clients, least=config.privacy.least_clients)
    noise = config.privacy.signature_noise, config.privacy.adapter_noise
    words = [f"with noise of {amount:g} times its sensitivity" if amount else "without noise" for amount in noise]
    told = TEXT_OF_STATISTICS if tells_statistics else ""
    return TEXT.format(clients=clients, method=config.method, noise=words[0], adapters=words[1], statistics=told)


def _has_statistics(state: object) -> bool:
    """Tell whether a method's state holds class statistics of clients."""
    maps = [part.values() for part in vars(state).values() if isinstance(part, Mapping)]
    return any(isinstance(one, ClassStatistics) for values in maps for one in values)


def _json_line(record: dict[str, object]) -> str:
    return json.dumps(record) + "\n"
