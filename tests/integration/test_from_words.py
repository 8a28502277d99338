"""`hyperlora personalize --words`: adapters from descriptions, on a run of a tiny text model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks import words
from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig
from hyperlora.from_words import Description, personalize_from_words, read
from hyperlora.reporting.run_files import RunFiles
from models.adapters.adapted_model import AdaptedModel
from models.backbones.loading import build_backbone
from server_app.run import run
from tests.tiny_models import write_model


def personalize(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["personalize", *map(str, arguments)])
    assert outcome.exit_code == status, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def reviews_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews of films and of books, which praise in other words."""
    place = tmp_path_factory.mktemp("reviews")
    praise, blame = {"film": "good", "book": "very"}, {"film": "bad", "book": "dull"}
    rows = [
        f"{'a ' * (i % 5)}{(praise if i % 2 else blame)[domain]} {domain} {'of ' * (i % 3)},{i % 2},{domain}"
        for domain in praise
        for i in range(80)
    ]
    (place / "reviews.csv").write_text("\n".join(["text,label,domain", *rows]) + "\n")
    values = {
        "data.name": "csv",
        "data.path": str(place / "reviews.csv"),
        "data.clients-per-domain": 3,
        "data.dirichlet-alpha": 0.0,
        "data.unseen-fraction": 0.34,
        "model.name": write_model("bert", place / "model"),
        "federation.rounds": 2,
        "lora.rank": 2,
        "train.local-steps": 4,
        "hyperlora.probe-clients": 0,
        "run.output-dir": str(place / "run"),
    }
    config = RunConfig.parse(values)
    return run(LocalGrid(client_app, config.flat(), 2), config.flat())


def test_other_words_give_another_adapter_which_loads_with_peft(reviews_run: Path, tmp_path: Path) -> None:
    films, books = (
        json.loads(personalize(reviews_run, "--words", f"a {one}", "--to", tmp_path / one, "--format", "json"))
        for one in ("film", "book")
    )
    assert next(iter(films["domains"])) == "film"
    assert next(iter(books["domains"])) == "book"
    assert films["personal"]
    assert sum(films["domains"].values()) == pytest.approx(1.0)
    config = RunFiles.open(reviews_run).config
    outputs = []
    for made in (films, books):
        backbone = build_backbone(name=config.model.name, weights="", image_size=16, num_classes=2)
        model = PeftModel.from_pretrained(backbone.module, str(Path(made["directory"]) / "generated")).eval()
        with torch.no_grad():
            outputs.append(model(backbone.prepare(["a good film", "a dull book"])))
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-3


def test_class_names_move_the_prior(reviews_run: Path, tmp_path: Path) -> None:
    plain, listed = (
        _bias(Path(personalize_from_words(reviews_run, said, target=tmp_path / str(number)).directory) / "generated")
        for number, said in enumerate([Description("a film"), Description("a film", {"1": 1.0})])
    )
    assert float(listed[1] - listed[0]) > float(plain[1] - plain[0]) + 1.0


def test_the_text_command_says_whom_the_words_are_like(reviews_run: Path, tmp_path: Path) -> None:
    said = personalize(reviews_run, "--words", "very good film", "--classes", "0=1, 1=3", "--to", tmp_path / "a")
    assert "mixture of the run's domains: film" in said
    assert '"very good film"; classes 0=1, 1=3' in (tmp_path / "a" / "generated" / "README.md").read_text()
    assert json.loads((tmp_path / "a" / "description.json").read_text())["classes"] == {"0": 1.0, "1": 3.0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--words", " "), "--words is empty"),
        (("--classes", ","), "--classes is empty"),
        (("--classes", "0=1,1=many"), "the share of '1' must be a number above 0, got 'many'"),
        (("--classes", "0=-1"), "the share of '0' must be a number above 0, got '-1'"),
        (("--words", "a film", "--classes", "2"), "no class of the run: 2; its classes are 0, 1"),
        (("some.csv", "--words", "a film"), "leave DATA, --sample and --steps out"),
        ((), "expected your data"),
        (("--words", "a film", "--name", "film-0"), "choose another name with --name"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    reviews_run: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in personalize(reviews_run, *arguments, "--to", tmp_path / "a", status=1)
    assert not (tmp_path / "a").exists()


def test_newcomers_are_scored_by_what_they_say(
    reviews_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFiles.open(reviews_run)
    (tmp_path / "descriptions.toml").write_text('[tiny]\nfilm = "good film"\nbook = "very dull"\n')
    monkeypatch.setattr(words, "HERE", tmp_path)
    scene = words.open_scene(run, words.Setting("tiny", "none", {}), Path(run.config.data.path))
    assert sorted(one.card.client_id for one in scene.newcomers) == ["book-2", "film-2"]
    assert scene.other_domain("film") == "book"
    parts = scene.accuracies(new_domains=False)
    scores = {(one["client_id"], one["track"]): one["zero_step"] for one in run.scores}
    for name, track in (("class statistics and signature", "start"), (words.NOTHING, "anchor")):
        told = {one["client_id"]: one["zero_step"] for one in parts[name]}
        assert told == pytest.approx({client: scores[client, track] for client in told}, abs=0.06)
    assert scene.accuracies(new_domains=True) == {}


def test_a_backbone_of_images_refuses_words_and_takes_class_names(tmp_path: Path) -> None:
    said = personalize("demo", "--words", "rotated digits", "--to", tmp_path / "a", status=1)
    assert "has no encoder of texts" in said
    made = json.loads(personalize("demo", "--classes", "1,7", "--to", tmp_path / "b", "--format", "json"))
    assert (list(made["classes"]), list(made["temperatures"])) == (["1", "7"], ["classes"])
    bias = _bias(tmp_path / "b" / "generated")
    assert set(bias.argsort(descending=True)[:2].tolist()) == {1, 7}


def test_clip_reads_words_with_its_text_tower(tmp_path: Path) -> None:
    backbone = build_backbone(name=write_model("clip", tmp_path), weights="", image_size=16, num_classes=3)
    model = AdaptedModel(backbone, rank=2, alpha=2.0, last_blocks=1)
    vectors = read(model, ["a photo of a cat", "a film", "a photo of a cat"])
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])


def _bias(directory: Path) -> torch.Tensor:
    tensors = load_file(directory / "adapter_model.safetensors")
    (bias,) = (value for name, value in tensors.items() if name.endswith("bias"))
    return bias
