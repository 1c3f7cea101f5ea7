"""The same result in every thread and process, no memory that grows, faults of the system that leave nothing half done."""

import gc
import hashlib
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import draw_photo, make_features, make_model
from lumiglue import InputError, Pipeline, Sift
from lumiglue.cli import main
from lumiglue.collection.features import extract_in_parts
from lumiglue.collection.hloc import FeaturesFile, MatchesReader, pair_key
from lumiglue.io.atomic import write_whole
from lumiglue.io.hdf5 import GrowingFile
from lumiglue.matcher.inputs import pack
from lumiglue.pipeline.result import MatchResult, save_result
from lumiglue.system.cache import cache_folder

ROOT = Path(__file__).parents[1]
PHOTO, OTHER = draw_photo(0), draw_photo(0)[8:, 12:]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """And PyTorch's own choice of attention kernel, which kornia's LightGlue switches for the whole process."""
    threads, flash = torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(True)
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.enable_flash_sdp(flash)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.pretrained("sift", max_keypoints=200)


@pytest.fixture(scope="module")
def result(pipeline: Pipeline) -> MatchResult:
    return pipeline.match(PHOTO, OTHER)


def bits(result: MatchResult) -> str:
    digest = hashlib.sha256()
    for array in (result.points0, result.points1, result.scores, result.features0.descriptors.numpy()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


SCRIPT = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
from test_reliability import OTHER, PHOTO, bits
from lumiglue import Pipeline

def work(pipeline, found):
    found.put(bits(pipeline.match(PHOTO, OTHER)))

pipeline = Pipeline.pretrained("sift", max_keypoints=200)
result = pipeline.match(PHOTO, OTHER)  # so that this process's OpenMP threads are there when it forks
context = multiprocessing.get_context("fork")
found = context.Queue()
workers = [context.Process(target=work, args=(pipeline, found)) for _ in range(2)]
for worker in workers:
    worker.start()
print(torch.get_num_threads(), bits(result), *[found.get(timeout=100) for _ in workers], flush=True)
np.savez(sys.argv[2], matches=result.matches.pairs.numpy(), scores=result.scores)
for worker in workers:
    worker.join()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_other_processes_and_forked_ones_find_the_same(
    threads: int, pipeline: Pipeline, one_thread: None, tmp_path: Path
) -> None:
    """On one thread bit for bit; on two within 1e-5. Forks of a process with two threads compute on one, and do not hang."""
    here = pipeline.match(PHOTO, OTHER)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), str(tmp_path / "found.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counted, theirs, *forked = done.stdout.split()
    assert int(counted) == threads
    assert forked == [bits(here)] * 2
    if threads == 1:
        assert theirs == bits(here)
    with np.load(tmp_path / "found.npz") as stored:
        assert np.array_equal(stored["matches"], here.matches.pairs.numpy())
        assert np.allclose(stored["scores"], here.scores, atol=1e-5)


def test_one_pipeline_in_eight_threads_and_a_pickled_one(pipeline: Pipeline, one_thread: None) -> None:
    expected = {turns: bits(pipeline.match(np.rot90(PHOTO, turns).copy(), OTHER)) for turns in range(2)}

    def work(turns: int) -> str:
        torch.set_num_threads(1)
        return bits(pipeline.match(np.rot90(PHOTO, turns).copy(), OTHER))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, [0, 1] * 8)) == [expected[0], expected[1]] * 8
    copied = pickle.loads(pickle.dumps(pipeline))  # what a spawned worker gets
    assert bits(copied.match(PHOTO, OTHER)) == expected[0]


def test_data_loader_workers_match(pipeline: Pipeline, one_thread: None) -> None:
    class Pairs(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> str:
            return bits(pipeline.match(PHOTO, OTHER))

    loader = torch.utils.data.DataLoader(
        Pairs(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=200
    )
    assert list(loader) == [bits(pipeline.match(PHOTO, OTHER))] * 4


def test_memory_does_not_grow_with_pairs() -> None:
    """benchmarks/speed/memory.py does so for 10,000 pairs; 100 kB a pair would show here."""
    model = make_model()
    images = [make_features(20 + k, k) for k in range(12)]

    def run(pairs: int) -> None:
        for k in range(pairs):
            model.match(pack([(images[k % 12], images[(k * 5 + 1) % 12])], model.config))
        gc.collect()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    run(40)
    before = resident()
    run(100)
    assert resident() - before < 10


# --- faults -------------------------------------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_file_that_was_there(
    result: MatchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("m.npz", "m.json"):
        (tmp_path / name).write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for name in ("m.npz", "m.json"):
            with pytest.raises(InputError, match=r"the disk of .*m\.\w+ is full; make room and run the same command again"):
                save_result(tmp_path / name, result)
            assert (tmp_path / name).read_text() == "before"
    for name in ("a.png", "b.png"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    monkeypatch.setattr("lumiglue.io.atomic.shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    (tmp_path / "pairs.txt").write_text("a.png b.png\n")
    arguments = ["match", str(tmp_path / "pairs.txt"), "--root", str(tmp_path), "--out", str(tmp_path / "out.h5")]
    assert main([*arguments, "--max-keypoints", "64"]) == 2
    assert "out.h5 is full; make room and run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "out.h5").exists()
    assert main(["features", str(tmp_path), "-o", str(tmp_path / "f.h5"), "--max-keypoints", "64"]) == 2
    assert "f.h5 is full; make room and run the same command again to continue" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--max-keypoints", "64"]) == 0
    assert [path.name for path in tmp_path.glob("out.h5*")] == ["out.h5"]
    assert main(["features", str(tmp_path), "-o", str(tmp_path / "f.h5"), "--max-keypoints", "64"]) == 0
    with FeaturesFile(tmp_path / "f.h5") as file:
        assert file.names() == ["a.png", "b.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX alone has permissions of this kind")
def test_folders_that_cannot_be_written_are_named(result: MatchResult, tmp_path: Path) -> None:
    """In a process without root's rights, where this one has them."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)

    def work() -> None:
        if os.geteuid() == 0:
            for above in (tmp_path, *tmp_path.parents[:2]):
                above.chmod(0o755)
            os.seteuid(65534)
        messages = []
        for write in (lambda: save_result(folder / "m.npz", result), lambda: GrowingFile(folder / "m.h5", "record")):
            try:
                write()
            except (InputError, OSError) as error:
                messages.append(f"{type(error).__name__} {error}")
        ok = (
            len(messages) == 2
            and "m.npz" in messages[0]
            and all(part in messages[1] for part in ("m.h5", "Permission denied"))
        )
        os._exit(0 if ok else 3)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_a_photo_that_vanishes_midway_stops_nothing_else(tmp_path: Path) -> None:
    for k in range(3):
        Image.fromarray(draw_photo(k, 80, 60)).save(tmp_path / f"{k}.png")
    names = ["0.png", "1.png", "2.png", "\udcff.png"]  # and one whose name no text can hold
    steps = extract_in_parts(tmp_path, names, Sift(max_keypoints=20), tmp_path / "f.h5", workers=1)
    next(steps)
    (tmp_path / "1.png").unlink()
    failed = [name for step in steps for name, _ in step.failed]
    assert failed == ["1.png"]
    with FeaturesFile(tmp_path / "f.h5") as file:
        assert file.names() == ["0.png", "2.png"]
    first = next(iter(extract_in_parts(tmp_path, names, Sift(max_keypoints=20), tmp_path / "f.h5", workers=1)))
    assert (first.done, first.total) == (3, 4)
    assert first.failed == (("\\udcff.png", "its name is not in UTF-8; rename the file"),)


def test_without_a_home_folder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LUMIGLUE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does without a home folder
    with pytest.raises(InputError, match="no home folder; set LUMIGLUE_CACHE"):
        cache_folder()


def lumiglue(*words: object, folder: Path, **options: object) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "LANG": "C"}  # no HOME, no PATH
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # jobs of a shell ignore it
    start += "; from lumiglue.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, *map(str, words)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_without_home_locale_or_stdin_and_into_a_closed_pipe(tmp_path: Path) -> None:
    names = ("ü b\nc.png", "x y.png")
    for name, photo in zip(names, (PHOTO, OTHER), strict=True):
        Image.fromarray(photo).save(tmp_path / name)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = lumiglue("match", *names, "--out", "m.json", "--max-keypoints", 100, folder=tmp_path, **pipes)
    assert process.stdout is not None
    process.stdout.close()  # as `| head -0` does
    assert process.stderr is not None
    printed = process.stderr.read()
    process.wait(120)
    process.stderr.close()
    assert "Traceback" not in printed
    assert (tmp_path / "m.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -9)])
def test_a_signal_leaves_no_file_that_looks_whole(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same command goes on with the finished pairs."""
    names = [f"{k}.png" for k in range(24)]
    for k, name in enumerate(names):
        Image.fromarray(draw_photo(k, 80, 60)).save(tmp_path / name)
    pairs = list(itertools.combinations(names, 2))  # more than two parts
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    command = ("match", "pairs.txt", "--out", "m.h5", "--max-keypoints", 100)
    first_part = tmp_path / "m.h5.parts" / "part-000000.h5"
    with lumiglue(*command, folder=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not first_part.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        assert process.stderr is not None
        printed = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in printed
    assert ("interrupted" in printed) == (number == signal.SIGINT)
    assert not (tmp_path / "m.h5").exists()
    finished = first_part.stat().st_mtime_ns
    with GrowingFile(tmp_path / "m.h5", (first_part.parent / "record.json").read_text()) as growing:
        assert len(growing.missing([pair_key(*pair) for pair in pairs])) < len(pairs)
    assert first_part.stat().st_mtime_ns == finished
    monkeypatch.chdir(tmp_path)
    assert main([str(word) for word in command]) == 0
    with MatchesReader(tmp_path / "m.h5") as file:
        assert sorted(file.pairs(names)) == sorted(pairs)
    assert not first_part.parent.exists()


def test_whole_files_replace_others(tmp_path: Path) -> None:
    write_whole(tmp_path / "f", b"1")
    write_whole(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
