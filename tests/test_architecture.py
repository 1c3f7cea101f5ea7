"""Imports flow one way, and importing the package does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.portable

SOURCE = Path(__file__).parents[1] / "src" / "lumiglue"

# From the ground up: a room may import those of the lines above its own, and nothing of its own line.
FLOORS = """
errors
system types samples
io geometry matcher
images weights onnx
extractors visualization pictures backends compat
pipeline
collection
evaluation training demo
"""
CLIENTS = {"cli", "__init__", "__main__"}  # may import all


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lumiglue"):
            rooms.add([*node.module.split("."), "__init__"][1])
        elif isinstance(node, ast.Import):
            rooms |= {[*name.name.split("."), "__init__"][1] for name in node.names if name.name.startswith("lumiglue")}
    return rooms


def test_imports_flow_one_way() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 15
    floors = [line.split() for line in FLOORS.split("\n") if line]
    floor = {room: height for height, rooms in enumerate(floors) for room in rooms}
    for file in files:
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room not in CLIENTS:
            assert room in floor, f"{file.name} is a new room: say on which floor"
            upward = {other for other in imported_rooms(file) - {room, "__init__"} if floor.get(other, 99) >= floor[room]}
            assert not upward, f"{file.relative_to(SOURCE)} must not import {sorted(upward)}"


def test_only_the_command_line_prints() -> None:
    for file in SOURCE.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), file.name


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    """No file read or written beyond modules, no socket, no thread setting, no random state, no log handler touched."""
    script = """
import builtins, logging, os, random, socket, sys
import cv2, h5py, matplotlib, numpy, poselib, PIL.Image, rich.progress, safetensors.torch, torch, tyro, jaxtyping
import matplotlib.figure, matplotlib.backends.backend_agg, matplotlib.collections
before = (torch.get_num_threads(), cv2.getNumThreads(), torch.random.get_rng_state().sum().item(), random.getstate(),
          torch.get_default_dtype(), logging.getLogger().handlers[:], dict(os.environ), numpy.geterr(),
          torch.is_grad_enabled())
opened = []
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        opened.append((event, args))
    if event == "open" and "lumiglue" in str(args[0]) and not str(args[0]).endswith((".py", ".pyc")):
        if "__pycache__" not in str(args[0]):
            opened.append((event, args))
sys.addaudithook(watch)
import lumiglue, lumiglue.cli, lumiglue.pipeline.pipeline, lumiglue.training.loop, lumiglue.evaluation.pairs
import lumiglue.visualization
after = (torch.get_num_threads(), cv2.getNumThreads(), torch.random.get_rng_state().sum().item(), random.getstate(),
         torch.get_default_dtype(), logging.getLogger().handlers[:], dict(os.environ), numpy.geterr(),
         torch.is_grad_enabled())
assert before == after, (before, after)
assert not opened, opened
assert "kornia" not in sys.modules and "skimage" not in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_explains_itself_without_pytorch() -> None:
    """Help, a mistyped flag and completion answer at once: no command imports what it does not print with."""
    script = """
import sys
from lumiglue.cli import main
for words in (["--help"], ["match", "--help"], ["train", "--nonsense"], ["matc"]):
    try:
        main(words)
    except SystemExit:
        pass
slow = {"torch", "numpy", "cv2", "PIL", "h5py", "jaxtyping", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    import lumiglue

    assert {name for name in lumiglue.__all__ if getattr(lumiglue, name, None) is None} == set()
    assert set(lumiglue.__all__) <= set(dir(lumiglue))
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        lumiglue.Pipelin  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
