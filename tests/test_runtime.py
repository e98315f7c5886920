"""Devices by name, precision on request, signals that ask, and facts that a file can hold."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

import modernbert
from modernbert import process, runtime
from modernbert.errors import BackendError, ConfigError

CPU = torch.device("cpu")


class TestChooseDevice:
    @pytest.mark.parametrize("name", [None, "auto"])
    def test_takes_the_best_there_is(self, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert runtime.choose_device(name) == CPU
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert runtime.choose_device(name) == torch.device("mps")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        assert runtime.choose_device(name) == torch.device("cuda:3")

    def test_takes_the_named_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [str(runtime.choose_device(name)) for name in ("cpu", "cuda", "cuda:1")] == [
            "cpu",
            "cuda",
            "cuda:1",
        ]

    @pytest.mark.parametrize("name", ["tpu", "", "0", "cuda:", "cuda:-1", "cuda:x", "xpu", "meta", "CPU"])
    def test_refuses_what_is_no_device(self, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            runtime.choose_device(name)
        assert str(caught.value).startswith(f"`{name}` is not a device; it must be `auto`, `cpu`, ")

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
    def test_refuses_one_that_is_not_here(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(BackendError) as caught:
            runtime.choose_device(name)
        assert str(caught.value) == f"device `{name}` is not available here; use `auto` or `cpu`"

    def test_counts_the_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(BackendError, match="device `cuda:2` is not available here"):
            runtime.choose_device("cuda:2")


class TestAutocast:
    def product(self, precision: runtime.Precision) -> torch.dtype:
        ones = torch.ones(2, 2)
        with runtime.autocast(CPU, precision):
            return (ones @ ones).dtype

    def test_a_cpu_takes_bf16_on_request_only(self) -> None:
        assert self.product("auto") == torch.float32
        assert self.product("fp32") == torch.float32
        assert self.product("bf16") == torch.bfloat16
        assert self.product("auto") == torch.float32

    @pytest.mark.parametrize(("is_native", "enabled"), [(True, True), (False, False)])
    def test_a_gpu_takes_bf16_where_it_is_native(
        self, is_native: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str, torch.dtype]] = []
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_native)
        monkeypatch.setattr(torch, "autocast", lambda kind, dtype: asked.append((kind, dtype)))
        runtime.autocast(torch.device("cuda"), "auto")
        runtime.autocast(torch.device("cuda"), "fp32")
        assert asked == [("cuda", torch.bfloat16)] * enabled


def test_only_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, mps = torch.device("cuda:1"), torch.device("mps")
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(mps))
    for device in (CPU, gpu, mps):
        runtime.synchronize(device)
    assert waited == [gpu, mps]


class TestStopSignals:
    def handlers(self) -> list[object]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_asks(self, number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
        before = self.handlers()
        with caplog.at_level(logging.WARNING, "modernbert"), runtime.stop_signals() as stop:
            assert stop.name is None
            os.kill(os.getpid(), number)
            assert stop.name == number.name
        assert self.handlers() == before
        assert [record.getMessage() for record in caplog.records] == [
            f"{number.name}: saving after this step, then stopping; a second one stops at once"
        ]

    @pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_one_of_either_kind_acts_at_once(self, first: signal.Signals) -> None:
        # A shell lets what it starts in the background ignore Ctrl-C, the tests too.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with runtime.stop_signals() as stop:
                os.kill(os.getpid(), first)
                assert stop.name == first.name
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            assert stop.name == first.name
        finally:
            signal.signal(signal.SIGINT, before)

    def test_one_of_several_processes_may_be_told_twice(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """By the launcher and by the system."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert process.is_launched()
        with caplog.at_level(logging.WARNING, "modernbert"), runtime.stop_signals() as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name == "SIGTERM"
        assert {record.getMessage() for record in caplog.records} == {
            "SIGTERM: saving after this step, then stopping"
        }

    def test_the_handlers_come_back_after_an_error(self) -> None:
        before = self.handlers()
        with pytest.raises(RuntimeError, match="broken"), runtime.stop_signals():
            raise RuntimeError("broken")
        assert self.handlers() == before

    def test_another_thread_catches_none(self) -> None:
        before, seen = self.handlers(), []

        def work() -> None:
            with runtime.stop_signals() as stop:
                seen.extend([stop.name, self.handlers()])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [None, before]


class TestMachineFacts:
    def test_json_can_hold_them(self) -> None:
        facts = runtime.machine_facts(CPU)
        assert json.loads(json.dumps(facts)) == facts
        expected = {
            "modernbert",
            "commit",
            "python",
            "torch",
            "system",
            "cpu",
            "cpu_count",
            "threads",
            "device",
        }
        assert expected <= set(facts)
        assert facts["device"] == "cpu"
        assert facts["modernbert"] == modernbert.__version__
        assert "device" not in runtime.machine_facts()
        found = runtime.machine_facts(packages=("numpy", "no-such-package"))
        assert found.keys() - facts.keys() == {"numpy"}

    def test_a_gpu_is_among_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
        facts = runtime.machine_facts()
        assert (facts["gpu"], facts["gpu_count"]) == ("H200", 2)
        assert "cuda" in facts


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class TestCommit:
    @pytest.fixture(autouse=True)
    def unnamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MODERNBERT_COMMIT", raising=False)

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The runtime module as if it lay in a repository of its own."""
        git(tmp_path, "init", "--quiet")
        path = tmp_path / "runtime.py"
        path.write_text("first")
        monkeypatch.setattr(runtime, "__file__", str(path))
        return path

    def test_says_which_and_whether_files_differ(self, module: Path) -> None:
        git(module.parent, "add", module.name)
        git(module.parent, "commit", "--quiet", "--message", "first")
        commit = git(module.parent, "rev-parse", "HEAD")
        assert runtime._commit() == commit[:12]
        module.write_text("second")
        assert runtime._commit() == f"{commit[:12]}+"

    def test_is_not_that_of_a_repository_around_an_installed_package(self, module: Path) -> None:
        (module.parent / "other").write_text("x")
        git(module.parent, "add", "other")
        git(module.parent, "commit", "--quiet", "--message", "first")
        assert runtime._commit() is None

    def test_is_none_without_a_repository_or_git(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        monkeypatch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
        assert runtime._commit() is None
        monkeypatch.setenv("PATH", str(tmp_path))
        assert runtime._commit() is None

    def test_of_a_copy_without_its_repository_is_what_the_environment_says(
        self, module: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODERNBERT_COMMIT", "0123456789ab")
        assert runtime._commit() == "0123456789ab"  # the module is not of the repository around it
        git(module.parent, "add", module.name)
        git(module.parent, "commit", "--quiet", "--message", "first")
        assert runtime._commit() == git(module.parent, "rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("is_wanted", [False, True])
def test_deterministic_algorithms_for_a_while(is_wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with runtime.deterministic(is_wanted):
        assert torch.are_deterministic_algorithms_enabled() == is_wanted
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == is_wanted
    assert not torch.are_deterministic_algorithms_enabled()


def test_work_is_timed_in_turn_and_each_first_turn_left_out() -> None:
    times = iter(range(6))
    turns: list[str] = []
    runs = {name: functools.partial(turns.append, name) for name in "AB"}
    found = runtime.time_in_turn(runs, 2, CPU, clock=lambda run, device: run() or float(next(times)))
    assert turns == ["A", "B"] * 3
    assert found == {"A": [2, 4], "B": [3, 5]}
