"""configs/accelerate: accelerate reads these files, and what docs/many-gpus.md tells to type starts such runs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from forked_runs import LIMIT
from run_files import metrics
from tiny_run import flags, tiny_config, tiny_shards

import mdsc
from mdsc.errors import UserError
from mdsc.training.sharding import make_accelerator

ROOT = Path(mdsc.__file__).parent.parent
CONFIGS = ROOT / "configs" / "accelerate"


def test_accelerate_reads_them():
    ddp, fsdp = (load_config_from_file(str(CONFIGS / name)) for name in ("ddp.yaml", "fsdp2.yaml"))
    assert (ddp.distributed_type, fsdp.distributed_type) == (DistributedType.MULTI_GPU, DistributedType.FSDP)
    assert ddp.mixed_precision == fsdp.mixed_precision == "no"
    assert fsdp.fsdp_config["fsdp_version"] == 2
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert fsdp.fsdp_config.keys() <= known.keys(), "accelerate passes over what it does not know"


def launched(folder: Path, name: str, machines: int) -> str:
    """What a short run in two processes says; with two `machines`, each is one launcher with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = tiny_config(folder, max_steps=4, pathway_steps=2)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launchers = []
    for machine in range(machines):
        line = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        line += ["--config_file", str(CONFIGS / name), "--num_processes", "2", "--main_process_port", port]
        if machines > 1:
            line += ["--num_machines", str(machines), "--machine_rank", str(machine), "--main_process_ip", "127.0.0.1"]
        line += [str(ROOT / "train.py"), *flags(config)]
        launchers.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = "".join(launcher.communicate(timeout=2 * LIMIT)[0] for launcher in launchers)
    assert not any(launcher.returncode for launcher in launchers), said
    return said


@pytest.mark.slow
def test_two_processes_on_one_and_on_two_machines(tmp_path: Path):
    tiny_shards(tmp_path)
    found = []
    for name, machines in (("ddp.yaml", 1), ("fsdp2.yaml", 1), ("fsdp2.yaml", 2)):
        said = launched(tmp_path, name, machines)
        assert f"2 x cpu{' (weights sharded)' if name == 'fsdp2.yaml' else ''}, " in said
        assert said.count("step 4/4") == 1
        assert "Warning" not in said
        found.append(metrics(tmp_path / "run"))
    assert found[1] == found[2]
    for mine, theirs in zip(found[0], found[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)  # computed in bf16, where the CPU does


def test_more_processes_than_gpus_are_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"more processes than this machine has GPUs \(4\): .* --num_processes 4"):
        make_accelerator()
