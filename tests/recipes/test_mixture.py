from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modernbert import config
from modernbert.errors import ConfigError
from modernbert.recipes.mixture import read_with_mixture
from modernbert.recipes.settings import PretrainRun, read_run

ROOT = Path(__file__).parents[2]
ETTIN = ROOT / "runs" / "mixtures" / "ettin.yaml"
MIXTURE = {
    "sources": [
        {"name": "web"},
        {"name": "code", "path": "elsewhere"},
        {"name": "books", "text_key": "body"},
    ],
    "phases": {
        "short": {"web": 3, "code": 1},
        "decay": {"web": 1, "books": 1},
    },
}


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def files(plan: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a run file that names a mixture file beside it, with changes to either."""

    def written(data: dict[str, Any] | None = None, **mixture: Any) -> Path:
        write(tmp_path / "mixtures" / "mixture.yaml", {**MIXTURE, **mixture})
        phases = [{k: v for k, v in phase.items() if k != "mixture"} for phase in plan["phases"]]
        phases[1]["mixture"] = "short"
        given = {"mixture": "mixtures/mixture.yaml", "root": "shards"} if data is None else data
        return write(tmp_path / "run.yaml", {**plan, "folder": "run", "data": given, "phases": phases})

    return written


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_a_phase_gets_the_shares_of_its_name_or_of_the_row_that_it_names(files: Callable[..., Path]) -> None:
    run = read_run(files())
    short = {"web": 3.0, "code": 1.0}
    assert [phase.mixture for phase in run.phases] == [short, short, {"web": 1.0, "books": 1.0}]
    assert [(it.name, it.path) for it in run.data.sources] == [
        ("web", "shards/web"),
        ("code", "elsewhere"),
        ("books", "shards/books"),
    ]
    assert run.data.sources[2].text_key == "body"


def test_what_is_resolved_stands_for_itself(files: Callable[..., Path], tmp_path: Path) -> None:
    run = read_run(files())
    (tmp_path / "mixtures" / "mixture.yaml").unlink()
    again = tmp_path / "again.yaml"
    again.write_text(config.dump(run), encoding="utf-8")
    assert read_run(again) == run
    assert config.build(PretrainRun, config.to_tree(run)) == run


def test_a_source_that_no_phase_reads_is_left_out(files: Callable[..., Path]) -> None:
    run = read_run(files(phases={"short": {"web": 1}, "decay": {"web": 1}}))
    assert [source.name for source in run.data.sources] == ["web"]


def test_overrides_reach_into_what_the_mixture_says(
    files: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files()
    run = read_run(
        path,
        ["data.root=s3://bucket/", "data.sources.code.path=here", "phases.decay.mixture.books=5"],
    )
    assert [it.path for it in run.data.sources] == ["s3://bucket/web", "here", "s3://bucket/books"]
    assert run.phases[2].mixture == {"web": 1.0, "books": 5.0}
    assert read_run(path, ["phases.decay.mixture=short"]).phases[2].mixture == {"web": 3.0, "code": 1.0}
    own = read_run(path, ["phases.decay.mixture={code: 1}"])
    assert own.phases[2].mixture == {"code": 1.0}

    other = {**MIXTURE, "sources": [{"name": "web"}], "phases": {"short": {"web": 1}, "decay": {"web": 2}}}
    write(tmp_path / "below" / "other.yaml", other)
    monkeypatch.chdir(tmp_path / "below")  # an override is meant from where one stands
    assert read_run(path, ["data.mixture=other.yaml"]).phases[2].mixture == {"web": 2.0}


def test_a_root_serves_sources_of_the_run_file_too(files: Callable[..., Path]) -> None:
    data = {
        "root": "/data/",
        "sources": [{"name": "web"}, {"name": "code", "path": "here"}, {"name": "books"}],
    }
    path = files(data)
    run = read_run(path, ["phases.1.mixture=null"])
    assert [it.path for it in run.data.sources] == ["/data/web", "here", "/data/books"]


@pytest.mark.parametrize(
    ("mixture", "overrides", "message"),
    [
        ({"phases": {"shorts": {"web": 1}}}, [], "no shares for phase `short`; did you mean `shorts`"),
        ({}, ["phases.decay.mixture=decade"], "no shares for phase `decade`; did you mean `decay`"),
        (
            {"phases": {"short": {"web": 1}, "decay": {"we": 1}}},
            [],
            "`phases.2.mixture.we` names no source; did",
        ),
        ({"shares": {}}, [], "in the mixture `MIXTURE`: unknown key `shares`"),
        ({"sources": [{"nam": "web"}]}, [], "unknown key `sources.0.nam`; did you mean `sources.0.name`"),
        ({"sources": "web"}, [], "in the mixture `MIXTURE`: `sources` is 'web'; it must be a list"),
        ({}, ["data.root=null"], "in the mixture `MIXTURE`: `sources.0.path` is missing"),
        ({}, ["phases=7"], "`phases` is 7; it must be a list"),
        ({}, ["phases=[7]"], "`phases.0` is 7; it must be a mapping"),
        ({}, ["phases.0.mixture=[7]"], "has no shares for phase `[7]`"),
        ({}, ["data.root=7"], "`data.root` is 7; it must be a path"),
        ({}, ["data.mixture=nowhere.yaml"], "in the mixture `nowhere.yaml`: `nowhere.yaml` does not exist"),
        ({}, ["data.sources=[{name: a, path: b}]"], "`data.sources` stands beside `data.mixture`; only one"),
        ({}, ["data.sources.wep.path=x"], "names item `wep` of a list of 3; did you mean `web`?"),
        (
            {},
            ["phases.decay.mixture.web=0"],
            "`mixture.web` is 0.0; it must be above 0 and finite; leave the",
        ),
        (
            {"phases": {"short": {"web": 0, "code": 0}, "decay": {"web": 1}}},
            [],
            "`mixture.code` is 0.0; it must be above 0 and finite; leave the source out to leave it unread",
        ),
        ({"phases": {"short": {}, "decay": {}}}, [], "`phases.decay` names no source; it must give"),
    ],
)
def test_refuses_what_does_not_fit(
    files: Callable[..., Path], tmp_path: Path, mixture: dict[str, Any], overrides: list[str], message: str
) -> None:
    path = files(**mixture)
    found = refusal(lambda: read_run(path, overrides))
    assert message.replace("MIXTURE", str(tmp_path / "mixtures" / "mixture.yaml")) in found


def test_the_published_mixture_is_as_published(tmp_path: Path, plan: dict[str, Any]) -> None:
    """The shares of the three phases (arXiv 2507.11412), which add up to 100 but for rounding."""
    tree = config.load(ETTIN)
    names = [source["name"] for source in tree["sources"]]
    assert len(names) == len(set(names))
    assert {name for shares in tree["phases"].values() for name in shares} == set(names)
    assert {row: len(shares) for row, shares in tree["phases"].items()} == {
        "pretrain": 13,
        "extend": 10,
        "decay": 9,
    }
    for shares in tree["phases"].values():
        assert sum(shares.values()) == pytest.approx(100, abs=0.25)
    phases = [{**phase, "name": name} for phase, name in zip(plan["phases"], tree["phases"])]
    for phase in phases:
        phase.pop("mixture", None)
    data = {"mixture": str(ETTIN), "root": "shards"}
    run = read_run(write(tmp_path / "run.yaml", {**plan, "folder": "x", "data": data, "phases": phases}))
    assert run.phases[0].mixture is not None
    assert run.phases[0].mixture["dclm"] == 49.1
    assert len(run.data.sources) == 17


def test_a_run_file_without_a_mixture_is_left_as_it_is(run_file: Path) -> None:
    assert read_with_mixture(run_file) == config.load(run_file)
