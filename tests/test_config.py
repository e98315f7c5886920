"""Strict settings: every wrong key and value is named by its path, and what is written is read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modernbert import config
from modernbert.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    tokens: int
    rate: float = 0.5
    shape: Literal["flat", "falling"] = "flat"
    mixture: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Optim:
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.98)
    is_fused: bool = False


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Builds itself, from a preset."""

    width: int

    @classmethod
    def from_tree(cls, tree: dict[str, Any], where: str) -> Shape:
        return config.build(cls, {"width": 4} if tree.get("preset") else tree, where)


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: str
    stages: tuple[Stage, ...] = ()
    optim: Optim = field(default_factory=Optim)
    by_name: dict[str, Stage] = field(default_factory=dict)
    shape: Shape | None = None
    limit: int | bool | None = None


TREE: dict[str, Any] = {
    "folder": "out",
    "stages": [{"name": "a", "tokens": 1}, {"name": "b", "tokens": 2, "shape": "falling"}],
    "optim": {"weight_decay": 0.1},
    "by_name": {"x": {"name": "c", "tokens": 3}},
}


def run(*assignments: str) -> Run:
    return config.build(Run, config.override(TREE, assignments))


def test_a_tree_becomes_objects() -> None:
    assert run() == Run(
        folder="out",
        stages=(Stage(name="a", tokens=1), Stage(name="b", tokens=2, shape="falling")),
        optim=Optim(weight_decay=0.1),
        by_name={"x": Stage(name="c", tokens=3)},
    )


def test_a_schema_may_build_itself() -> None:
    assert run("shape.preset=small").shape == Shape(width=4)
    assert run("shape=null").shape is None
    with pytest.raises(ConfigError, match=r"unknown key `shape\.widht`; did you mean `shape\.width`"):
        run("shape.widht=4")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("foldr=x", "unknown key `foldr`; did you mean `folder`?"),
        ("optim.weight_deacy=1", "unknown key `optim.weight_deacy`; did you mean `optim.weight_decay`?"),
        ("optim.qqq=1", "unknown key `optim.qqq`; it must be one of: betas, is_fused, weight_decay"),
        ("stages.1.tokns=1", "unknown key `stages.1.tokns`; did you mean `stages.1.tokens`?"),
        ("by_name.x.tokns=1", "unknown key `by_name.x.tokns`; did you mean `by_name.x.tokens`?"),
        ("optim={1: 2}", "unknown key `optim.1`; it must be one of: betas, is_fused, weight_decay"),
        ("stages.1={name: b}", "`stages.1.tokens` is missing; it must be an integer"),
        ("folder=3", "`folder` is 3; it must be a string"),
        ("folder=no", "`folder` is False; it must be a string"),
        ("folder=", "`folder` is None; it must be a string"),
        ("folder=2024-12-18", "`folder` is datetime.date(2024, 12, 18); it must be a string"),
        ("optim=3", "`optim` is 3; it must be a mapping"),
        ("optim=[1]", "`optim` is a list; it must be a mapping"),
        ("stages=abc", "`stages` is 'abc'; it must be a list, each item a mapping"),
        ("stages={a: 1}", "`stages` is a mapping; it must be a list, each item a mapping"),
        ("stages.0=5", "`stages.0` is 5; it must be a mapping"),
        ("stages.1.tokens=many", "`stages.1.tokens` is 'many'; it must be an integer"),
        ("stages.1.tokens=null", "`stages.1.tokens` is None; it must be an integer"),
        ("stages.1.tokens=[1]", "`stages.1.tokens` is a list; it must be an integer"),
        ("stages.1.tokens=1.5", "`stages.1.tokens` is 1.5; it must be an integer"),
        ("stages.1.tokens=1.5e0", "`stages.1.tokens` is '1.5e0'; it must be an integer"),
        ("stages.1.tokens=yes", "`stages.1.tokens` is True; it must be an integer"),
        ("stages.1.rate=true", "`stages.1.rate` is True; it must be a number"),
        ("stages.1.rate=fast", "`stages.1.rate` is 'fast'; it must be a number"),
        ("stages.1.rate={}", "`stages.1.rate` is a mapping; it must be a number"),
        ("stages.1.rate=.nan", "`stages.1.rate` is nan; it must be a number"),
        ("stages.1.rate=nan", "`stages.1.rate` is 'nan'; it must be a number"),
        ("stages.1.rate=-.inf", "`stages.1.rate` is -inf; it must be a number"),
        ("stages.1.tokens=.inf", "`stages.1.tokens` is inf; it must be an integer"),
        ("stages.1.rate=1e999", "`stages.1.rate` is '1e999'; it must be a number"),
        (f"stages.1.rate=1{'0' * 400}", "it must be a number"),
        ("stages.1.shape=faling", "`stages.1.shape` is 'faling'; did you mean `falling`?"),
        ("stages.1.shape=off", "`stages.1.shape` is False; it must be one of: falling, flat"),
        ("stages.1.shape=[flat]", "`stages.1.shape` is ['flat']"),
        ("stages.0.mixture=5", "`stages.0.mixture` is 5; it must be a mapping"),
        ("stages.0.mixture.web=much", "`stages.0.mixture.web` is 'much'; it must be a number"),
        ("optim.betas.1=x", "`optim.betas.1` is 'x'; it must be a number"),
        ("optim.betas=0.9", "`optim.betas` is 0.9; it must be a list, each item a number"),
        ("optim.is_fused=1", "`optim.is_fused` is 1; it must be true or false"),
        ("optim.is_fused='yes'", "`optim.is_fused` is 'yes'; it must be true or false"),
        ("limit=some", "`limit` is 'some'; it must be an integer or true or false"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(assignment: str, message: str) -> None:
    tree = config.override({**TREE, "optim": {"betas": [0.9, 0.98]}}, [assignment])
    with pytest.raises(ConfigError) as caught:
        config.build(Run, tree)
    assert message in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^`folder` is missing; it must be a string$"):
        config.build(Run, {})
    with pytest.raises(ConfigError, match=r"^`run.folder` is missing; it must be a string$"):
        config.build(Run, {}, "run")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("2_000", 2000),
        ("1.0", 1),
        ("1e3", 1000),
        ("5e9", 5_000_000_000),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_integers(text: str, value: int) -> None:
    tokens = run(f"stages.0.tokens={text}").stages[0].tokens
    assert tokens == value
    assert type(tokens) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("5e9", 5e9), ("1", 1.0), ("2_000", 2000.0), (".5", 0.5), ("-1E3", -1e3)],
)
def test_numbers(text: str, value: float) -> None:
    rate = run(f"stages.0.rate={text}").stages[0].rate
    assert rate == value
    assert type(rate) is float


def test_a_union_takes_the_first_that_fits() -> None:
    assert run("limit=true").limit is True
    assert run("limit=3").limit == 3
    assert run("limit=null").limit is None


class TestOverride:
    def test_reaches_into_mappings_and_lists(self) -> None:
        assert config.override(TREE, ["stages.1.tokens=7"])["stages"][1] == {**TREE["stages"][1], "tokens": 7}
        assert config.override(TREE, ["stages.0={}", "optim.betas=[1, 2]"]) == {
            **TREE,
            "stages": [{}, TREE["stages"][1]],
            "optim": {"weight_decay": 0.1, "betas": [1, 2]},
        }

    def test_makes_mappings_on_the_way(self) -> None:
        assert config.override({"b": None}, ["a.b.c=1", "b.c=2"]) == {"a": {"b": {"c": 1}}, "b": {"c": 2}}

    def test_the_value_is_yaml_and_the_last_one_holds(self) -> None:
        assignments = ["a=x=y", "b=[1, {c: d}]", "c=", "d='5'", "e=1", "e=2"]
        expected = {"a": "x=y", "b": [1, {"c": "d"}], "c": None, "d": "5", "e": 2}
        assert config.override({}, assignments) == expected

    def test_leaves_the_given_tree_alone(self) -> None:
        tree = {"a": {"b": [1, {"c": 2}]}}
        config.override(tree, ["a.b.1.c=3", "a.b.0=4", "a.d=5"])
        assert tree == {"a": {"b": [1, {"c": 2}]}}

    @pytest.mark.parametrize("assignment", ["a", "", "=1", "a..b=1", ".a=1", "a.=1"])
    def test_refuses_what_is_no_assignment(self, assignment: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config.override({}, [assignment])
        assert str(caught.value) == f"`{assignment}` is not an override; it must read `path.to.key=value`"

    @pytest.mark.parametrize(
        "text", ["[1", "a: b: c", "{a: 1, a: 2}", "2024-13-45", "=", "!!python/name:os.x"]
    )
    def test_refuses_a_value_that_is_no_yaml(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config.override({}, [f"a.b={text}"])
        assert str(caught.value) == f"`{text}`, the value of `a.b`, is not valid YAML; quote it"

    def test_an_item_of_a_list_may_be_meant_by_its_name(self) -> None:
        names = [stage["name"] for stage in TREE["stages"]]
        changed = config.override(TREE, [f"stages.{names[1]}.tokens=7"])
        assert changed == config.override(TREE, ["stages.1.tokens=7"])
        numbered = {"stages": [{"name": "1"}, {"name": "0"}]}
        assert config.override(numbered, ["stages.1.tokens=7"])["stages"][0] == {"name": "1", "tokens": 7}

    @pytest.mark.parametrize(
        ("item", "hint"),
        [
            ("2", "; count from 0"),
            ("-1", "; it must be one of: a, b"),
            ("last", "; it must be one of: a, b"),
            ("²", "; it must be one of: a, b"),
        ],
    )
    def test_refuses_an_item_that_is_not_there(self, item: str, hint: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config.override(TREE, [f"stages.{item}.tokens=1"])
        assert str(caught.value) == f"`stages.{item}.tokens` names item `{item}` of a list of 2{hint}"

    def test_refuses_an_item_of_a_list_without_names(self) -> None:
        with pytest.raises(ConfigError, match="names item `x` of a list of 2; count from 0"):
            config.override({"betas": [1, 2]}, ["betas.x=1"])

    def test_refuses_to_go_below_a_plain_value(self) -> None:
        with pytest.raises(ConfigError) as caught:
            config.override(TREE, ["stages.0.name.first=x"])
        assert str(caught.value) == (
            "`stages.0.name.first` goes below `stages.0.name`, which is 'a'; it must be a mapping; "
            "override it as a whole"
        )


class TestLoad:
    def test_reads_what_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(
            "folder: größer\nbase: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n", encoding="utf-8"
        )
        base = {"a": 1, "b": 2}
        assert config.load(path) == {"folder": "größer", "base": base, "more": {"a": 1, "b": 3}}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds None; it must hold a mapping of settings"),
            (b"- 1", "holds a list; it must hold a mapping of settings"),
            (b"just words", "holds 'just words'; it must hold a mapping of settings"),
            (b"a: [1", "is not valid YAML: while parsing a flow sequence"),
            (b"a: \xff", "is not valid YAML: 'utf-8' codec"),
            (b"a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
            (b"a: !!python/object:os.system {}", "is not valid YAML: could not determine a constructor"),
            (b"a: {b: 1,\n  b: 2}", "is not valid YAML: the key `b` stands twice in one mapping"),
            (b"tokens: 1\nname: x\ntokens: 2\n", "the key `tokens` stands twice"),
        ],
    )
    def test_refuses_what_is_no_mapping(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        assert f"`{path}` " in str(caught.value)
        assert message in str(caught.value)

    def test_the_line_of_a_mistake_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text("tokens: 1\nname: x\ntokens: 2\n")
        with pytest.raises(ConfigError, match="line 3, column 1"):
            config.load(path)

    def test_refuses_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no\.yaml` does not exist; give the path of a YAML run file"):
            config.load(tmp_path / "no.yaml")
        with pytest.raises(ConfigError, match=r"could not be read \(Is a directory\); give the path"):
            config.load(tmp_path)


# PyYAML turns the line ends that only Unicode knows into spaces.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
STAGES = st.builds(
    Stage,
    name=NAMES,
    tokens=st.integers(),
    rate=FLOATS,
    shape=st.sampled_from(["flat", "falling"]),
    mixture=st.none() | st.dictionaries(NAMES, FLOATS, max_size=3),
)
RUNS = st.builds(
    Run,
    folder=NAMES,
    stages=st.lists(STAGES, max_size=3).map(tuple),
    optim=st.builds(Optim, weight_decay=FLOATS, betas=st.lists(FLOATS).map(tuple), is_fused=st.booleans()),
    by_name=st.dictionaries(NAMES, STAGES, max_size=2),
    shape=st.none() | st.builds(Shape, width=st.integers()),
    limit=st.none() | st.integers() | st.booleans(),
)


@given(RUNS)
def test_what_is_dumped_builds_the_same_object(original: Run) -> None:
    tree = yaml.safe_load(config.dump(original))
    assert tree == config.to_tree(original)
    assert config.build(Run, tree) == original
    assert config.differences(tree, config.to_tree(config.build(Run, tree))) == []


def test_the_dump_is_for_people() -> None:
    text = config.dump(Optim(weight_decay=1e-5))
    assert text == "weight_decay: 1.0e-05\nbetas:\n- 0.9\n- 0.98\nis_fused: false\n"
    assert "größer" in config.dump(Stage(name="größer", tokens=1))


class TestDifferences:
    def test_equal_trees_have_none(self) -> None:
        assert config.differences(TREE, config.override(TREE, [])) == []
        assert config.differences({"a": None}, {}) == []

    def test_each_is_named_by_its_path(self) -> None:
        new = config.override(TREE, ["stages.1.tokens=5", "optim.weight_decay=null", "more=x"])
        assert config.differences(TREE, new) == [
            "`stages.1.tokens`: 2 → 5",
            "`optim.weight_decay`: 0.1 → None",
            "`more`: None → 'x'",
        ]

    def test_lists_of_other_lengths_are_shown_whole(self) -> None:
        assert config.differences({"a": [1, 2]}, {"a": [1]}) == ["`a`: [1, 2] → [1]"]
        assert config.differences({"a": [1]}, {"a": {"b": 1}}) == ["`a`: [1] → {'b': 1}"]
