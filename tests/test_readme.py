"""What the README and the guides say, runs.

Each fenced `bash` and `python` block of a document runs, in order, in one fresh folder. The Python blocks
share their names, as if typed into one session. Lines that install (`make …`, `pip install …`,
`git clone …`, `cd …`) are passed over; the make targets that they name must exist. A comment on the line
before a block's fence says why it cannot run in a test, or which packages of an extra it needs, without which
it is passed over:

    <!-- not run: needs a GPU -->
    <!-- needs: onnx, onnxruntime -->
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert import cli
from modernbert.data.tokenizer import Tokenizer
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import HEADS
from modernbert.model.init import initialise

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/guides/*.md")))
INSTALLING = re.compile(
    r"\s*(\w+=\S+ +)*(make|pip install|python3? -m (pip|venv)|git clone|cd|source|\.)(\s|$)"
)
COMMENT = re.compile(r"\s*<!-- (?:not run: (\S.*)|needs: ([\w, ]+)) -->\s*")
MISNAMED = {
    "sh": "bash",
    "shell": "bash",
    "console": "bash",
    "zsh": "bash",
    "py": "python",
    "python3": "python",
}
SECONDS_A_BLOCK = 600

MODELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tour/model": ("ModernBertForMaskedLM", ()),
    "models/embedder": ("ModernBertModel", ()),
    "models/classifier": ("ModernBertForSequenceClassification", ("negative", "neutral", "positive")),
    "models/nli": ("ModernBertForSequenceClassification", ("entailment", "neutral", "contradiction")),
    "models/ranker": ("ModernBertForSequenceClassification", ("relevant",)),
    "models/tagger": ("ModernBertForTokenClassification", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "models/reader": ("ModernBertForQuestionAnswering", ()),
    "models/chooser": ("ModernBertForMultipleChoice", ()),
}
"""What the documents load: the folder, its architecture, its labels."""
PROMPTS = {"query": "search_query: ", "document": "search_document: "}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, the line of its first character.

    Attributes:
        not_run: Why it does not run.
        needs: Packages without which it does not run here.
    """

    language: str
    code: str
    line: int
    not_run: str | None = None
    needs: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return self.not_run is None and all(importlib.util.find_spec(name) for name in self.needs)


def read_blocks(markdown: str) -> list[Block]:
    """Find the fenced blocks of a text, indented ones (in a list) too."""
    blocks: list[Block] = []
    lines = markdown.splitlines()
    row = 0
    while row < len(lines):
        fence = re.fullmatch(r"(\s*)(`{3,})\s*(\w*).*", lines[row])
        row += 1
        if not fence:
            continue
        indent, ticks, language = fence.groups()
        start = row
        while row < len(lines) and lines[row].strip() != ticks:
            row += 1
        comment = COMMENT.fullmatch(lines[start - 2]) if start > 1 else None
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[start:row])
        reason, needs = comment.group(1, 2) if comment else (None, None)
        needed = tuple(re.findall(r"\w+", needs or ""))
        blocks.append(Block(language=language, code=code, line=start + 1, not_run=reason, needs=needed))
        row += 1
    return blocks


def run_blocks(blocks: list[Block], name: str, folder: Path) -> None:
    """Run the blocks of the document `name` in `folder`."""
    session: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        if block.language in MISNAMED:
            pytest.fail(f"{name}:{block.line}: write `{MISNAMED[block.language]}`, not `{block.language}`")
        if not block.runs:
            continue
        if block.language == "bash":
            run_bash(block, name, folder)
        elif block.language == "python":
            with warnings.catch_warnings():
                if block.needs:
                    warnings.simplefilter("ignore")  # those of other packages
                # Blank lines in front, so that a traceback shows the document's own line.
                exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), session)


def run_bash(block: Block, name: str, folder: Path) -> None:
    """Run a block: plain `modernbert` commands in this process, which is quicker, the rest by a shell."""
    lines = [line for line in block.code.replace("\\\n", " ").splitlines() if not INSTALLING.match(line)]
    if any(line.startswith("export ") for line in lines):  # which counts for all that follows
        run_script("\n".join(lines), block, name, folder)
        return
    for plain, group in itertools.groupby(lines, is_plain):
        if plain:
            run_here(list(group), block, name, folder)
        else:
            run_script("\n".join(group), block, name, folder)


def is_plain(line: str) -> bool:
    """Whether a line is a `modernbert` command and no more than `< FILE`, `> FILE` and `*` for a shell."""
    unquoted = re.sub(r'"[^"$`\\]*"', "", line)
    unquoted = re.sub(r" [<>] [\w./-]+(?= |$)", "", unquoted)
    return line.startswith("modernbert ") and not re.search(r"[|<>;&$?`~#\\'\"{}\[\]()]", unquoted)


def run_here(lines: list[str], block: Block, name: str, folder: Path) -> None:
    """Run plain commands in this process, which is in `folder`."""
    for line in lines:
        words, stdin, stdout = iter(shlex.split(line)[1:]), sys.stdin, sys.stdout
        arguments: list[str] = []
        with contextlib.ExitStack() as stack:
            for word in words:
                if word == "<":
                    stdin = stack.enter_context((folder / next(words)).open(encoding="utf-8"))
                elif word == ">":
                    stdout = stack.enter_context((folder / next(words)).open("w", encoding="utf-8"))
                else:
                    arguments += map(str, sorted(folder.glob(word))) if "*" in word else [word]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdin", stdin)
                patch.setattr(sys, "stdout", stdout)
                code = cli.main(arguments)
        if code:
            pytest.fail(f"{name}:{block.line}: exit code {code}: {line}")


def run_script(script: str, block: Block, name: str, folder: Path) -> None:
    commands = folder / ".commands"
    if not commands.exists():
        commands.mkdir()
        for command, call in {"python": "", "modernbert": " -m modernbert"}.items():
            (commands / command).write_text(f'#!/bin/sh\nexec "{sys.executable}"{call} "$@"\n')
            (commands / command).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_A_BLOCK,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"{name}:{block.line}: the block ended with exit code {done.returncode}\n"
            f"{block.code}\n{done.stdout}\n{done.stderr}"
        )


def make_targets(markdown: str) -> set[str]:
    """The targets of each `make target` in the text's code, inline or in a block."""
    inline = re.findall(r"`make ([a-z][\w-]*)", markdown)
    listed = [
        target
        for block in read_blocks(markdown)
        if block.language == "bash"
        for target in re.findall(r"^\s*(?:\w+=\S+ +)*make ([a-z][\w-]*)", block.code, re.MULTILINE)
    ]
    return {*inline, *listed}


def known_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def write_text(folder: Path) -> None:
    """Make a folder of text: a few hundred lines over a small vocabulary."""
    draw = random.Random(0)
    words = ["return", "the", "list", "of", "a", "text", "model", "another", "length", "short", "one"]
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 40))).capitalize() + "." for _ in range(400)]
    folder.mkdir()
    (folder / "lines.txt").write_text("\n".join(lines))


def write_glue(folder: Path) -> None:
    """Make two tasks of GLUE, tiny."""
    tasks = {
        "RTE": ("label", ("entailment", "not_entailment"), ("train", "dev")),
        "MNLI": ("gold_label", ("entailment", "neutral", "contradiction"), ("train", "dev_matched")),
    }
    for task, (column, labels, splits) in tasks.items():
        (folder / task).mkdir(parents=True)
        rows = [f"the list of a text\tthe {label}\t{label}" for label in labels] * 4
        for split in splits:
            lines = [f"sentence1\tsentence2\t{column}", *rows]
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def write_models(folder: Path, text: Path) -> None:
    """Make what the tour leaves, and a model with each head, all with random weights."""
    tokenizer = Tokenizer.train(text.read_text().splitlines(), vocab_size=384)
    for place, (architecture, labels) in MODELS.items():
        model = HEADS[architecture](EncoderConfig.preset("tiny", head=HeadConfig(labels=labels)))
        initialise(model, seed=0)
        model.save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    config = EmbeddingConfig(width=64, pooling=("cls",), normalize=True, prompts=PROMPTS)
    sentence_folder.write(folder / "models" / "embedder", EmbeddingHead(config))


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after `make tour`, only tiny, with some text and more models."""
    folder = tmp_path_factory.mktemp("clone") / "clone"
    shutil.copytree(ROOT / "runs", folder / "runs")
    shutil.copy(ROOT / "README.md", folder)
    write_text(folder / "text")
    write_models(folder, folder / "text" / "lines.txt")
    write_glue(folder / "glue")
    return folder


@pytest.fixture
def readme_workspace(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a document's blocks run, a copy of the clone."""
    shutil.copytree(clone, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # for processes that a block starts
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_the_document_says_runs(name: str, readme_workspace: Path) -> None:
    run_blocks(read_blocks((ROOT / name).read_text(encoding="utf-8")), name, readme_workspace)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *DOCUMENTS[1:]])
def test_make_targets_exist(name: str) -> None:
    assert make_targets((ROOT / name).read_text(encoding="utf-8")) <= known_targets()


def test_readme_opens_with_the_two_commands() -> None:
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert {"tour", "test"} <= make_targets(opening)


MADE_UP = """\
# A made-up document

Run `make nothing`.

```bash
git clone https://example.org/house && cd house
OMP_NUM_THREADS=1 make tour
echo "one \\
two" > said.txt
python -c "print('three')" >> said.txt
```

1. In a list:

   ```python
   from pathlib import Path

   said = Path("said.txt").read_text().split()
   ```

```yaml
not: [run
```

<!-- not run: it would fail -->
```bash
false
```

```python
Path("count.txt").write_text(str(len(said)))
```
"""


def test_blocks_are_found_with_language_line_and_mark() -> None:
    blocks = read_blocks(MADE_UP)
    assert [(block.language, block.line, block.not_run) for block in blocks] == [
        ("bash", 6, None),
        ("python", 16, None),
        ("yaml", 22, None),
        ("bash", 27, "it would fail"),
        ("python", 31, None),
    ]
    assert blocks[1].code.startswith("from pathlib import Path\n\nsaid")


def test_blocks_run_in_order_in_one_folder_and_one_session(readme_workspace: Path) -> None:
    run_blocks(read_blocks(MADE_UP), "made-up.md", readme_workspace)
    assert (readme_workspace / "count.txt").read_text() == "3"


def test_make_targets_are_found() -> None:
    assert make_targets(MADE_UP) == {"nothing", "tour"}
    assert "nothing" not in known_targets()
    assert {"help", "tour", "test", "check", "bench", "docs"} <= known_targets()


def test_plain_commands_run_in_this_process(readme_workspace: Path) -> None:
    assert is_plain('modernbert inspect "a b; c?" -m x/y --json')
    assert is_plain("modernbert classify -m x --json < lines.txt > labels.jsonl")
    other = (
        "modernbert a >> b",
        "modernbert a | b",
        "  modernbert a",
        "echo",
        "modernbert $A",
        "modernbert '*'",
        'modernbert "$A"',
    )
    assert not any(map(is_plain, other))
    with pytest.raises(pytest.fail.Exception, match=r"made-up.md:2: exit code 1: modernbert inspect none"):
        run_blocks(read_blocks("```bash\nmodernbert inspect none\n```\n"), "made-up.md", readme_workspace)


def test_a_failing_command_is_named_with_its_line(readme_workspace: Path) -> None:
    blocks = read_blocks("\n```bash\necho fine\necho no >&2; exit 3\necho later\n```\n")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)made-up.md:3: .* exit code 3.*fine\n\nno"):
        run_blocks(blocks, "made-up.md", readme_workspace)


def test_failing_python_shows_the_line_of_the_document(readme_workspace: Path) -> None:
    blocks = read_blocks("text\n\n```python\nfine = 1\nfine / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(blocks, "made-up.md", readme_workspace)
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("made-up.md", 5)


def test_a_block_in_a_language_that_would_not_run_is_refused(readme_workspace: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="write `bash`, not `console`"):
        run_blocks(read_blocks("```console\n$ true\n```\n"), "made-up.md", readme_workspace)


def test_a_block_that_needs_what_is_not_there_is_passed_over(readme_workspace: Path) -> None:
    text = "<!-- needs: {} -->\n```python\nopen('{}', 'w').close()\n```\n"
    blocks = read_blocks(text.format("sys, no_such_package", "one") + text.format("sys", "two"))
    assert [(block.needs, block.runs) for block in blocks] == [
        (("sys", "no_such_package"), False),
        (("sys",), True),
    ]
    run_blocks(blocks, "made-up.md", readme_workspace)
    assert not (readme_workspace / "one").exists()
    assert (readme_workspace / "two").exists()


def test_a_mark_without_a_reason_does_not_count() -> None:
    (block,) = read_blocks("<!-- not run: -->\n```bash\ntrue\n```\n")
    assert block.not_run is None
