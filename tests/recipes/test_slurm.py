"""The SLURM script starts `torchrun` on each machine with the run that it was given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "runs" / "slurm.sh"


def write_command(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_it_starts_one_torchrun_a_machine(tmp_path: Path) -> None:
    write_command(tmp_path, "scontrol", "echo node7; seq -f node%g 8 20000")
    write_command(tmp_path, "srun", '"$@"')
    write_command(tmp_path, "torchrun", 'printf "%s\\n" "$@" "grace $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"')
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "42"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "runs/base.yaml", "folder=a b"],
        env={**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "8"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    options = dict(zip(said[:12:2], said[1:12:2], strict=True))
    assert options == {
        "--nnodes": "2",
        "--nproc-per-node": "8",
        "--rdzv-id": "42",
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": "node7:29500",
        "--max-restarts": "10",
    }
    assert said[12:] == ["-m", "modernbert", "pretrain", "runs/base.yaml", "folder=a b", "grace 150"]
