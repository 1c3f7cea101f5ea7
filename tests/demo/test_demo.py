"""The demo as its users meet it: in a browser and over HTTP, one server for all of it."""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from helpers import draw_photo
from lumiglue import InputError, MatchResult, Pipeline
from lumiglue.cli import main
from lumiglue.demo.limits import Limits

UPLOAD_MB, MEGAPIXELS, KEYPOINTS = 1.0, 2.0, 256
PATIENCE = 180_000  # ms that a browser or a client waits: machines that test are busy ones
Photos = tuple[Path, Path]


@lru_cache(maxsize=1)
def bomb(side: int = 20_000) -> bytes:
    """A PNG of 400 megapixels in 50 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def bad_exif(photo: Path) -> bytes:
    """A JPEG on its side, with a part of its EXIF of a wrong type."""
    entries = ((0x0112, 3, 1, b"\0\x06\0\0"), (0xA005, 2, 4, b"\xff\xff\xff\xff"))
    table = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + table + bytes(4)
    image = cv2.imread(str(photo))
    assert image is not None
    whole = cv2.imencode(".jpg", image)[1].tobytes()
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photos]:
    """Two pairs: each a drawn photo and its view through a homography."""
    folder = tmp_path_factory.mktemp("photos")
    pairs = []
    for seed in (1, 2):
        image = draw_photo(seed, 400, 300)
        turned = cv2.warpPerspective(image, np.array([[0.9, -0.2, 50], [0.2, 0.9, -20], [1e-4, 0, 1]]), (400, 300))
        paths = folder / f"{seed}a.png", folder / f"{seed}b.png"
        for path, pixels in zip(paths, (image, turned), strict=True):
            cv2.imwrite(str(path), pixels[..., ::-1])
        pairs.append(paths)
    return pairs


@pytest.fixture(scope="module")
def expected(photos: list[Photos]) -> list[MatchResult]:
    pipeline = Pipeline.pretrained("sift", max_keypoints=KEYPOINTS, device="cpu")
    return [pipeline.match(*pair) for pair in photos]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server runs."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of `lumiglue demo`, run as users run it."""
    (folder / "secret.txt").write_text("secret")
    flags = ["--port", "0", "--max-upload-mb", str(UPLOAD_MB), "--max-megapixels", str(MEGAPIXELS), "--workers", "2"]
    (folder / "tmp").mkdir()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "lumiglue", "demo", *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)
    if address:
        yield address[0]
    process.terminate()
    process.stdout.close()
    process.wait(30)
    log.close()
    assert address, line + (folder / "log.txt").read_text()
    assert not list((folder / "tmp").glob("lumiglue-demo-*")), "what users sent goes with the server"
    assert "Traceback" not in (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[Any]:
    with httpx.Client(base_url=server, timeout=PATIENCE / 1000) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("Debian's chromium is not installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


def post(client: Any, a: bytes | Path, b: bytes | Path, **form: object) -> Any:
    files = {f"image{k}": ("x.png", data if isinstance(data, bytes) else data.read_bytes()) for k, data in enumerate((a, b))}
    return client.post("/api/match", files=files, data={"max_keypoints": KEYPOINTS, **form})


# Over HTTP.


def test_api_gives_what_the_pipeline_gives(client: Any, photos: list[Photos], expected: list[MatchResult]) -> None:
    reply = post(client, *photos[0], estimator="homography")
    assert reply.status_code == 200, reply.text
    answer, mine = reply.json(), expected[0]
    assert answer["matches"] == mine.matches.pairs.tolist()
    np.testing.assert_array_equal(np.array(answer["points0"], np.float32), mine.points0)
    np.testing.assert_array_equal(np.array(answer["keypoints1"], np.float32), mine.features1.keypoints)
    np.testing.assert_allclose(answer["scores"], mine.scores, atol=1e-5)
    assert answer["stop_layer"] == mine.matches.stop_layer == answer["layers"][-1]["layer"]
    assert answer["layers"][-1]["matches"] == len(mine) > 20
    assert sum(answer["inliers"]) > 0.8 * len(mine)
    assert answer["fundamental"] is None
    assert np.shape(answer["homography"]) == (3, 3)
    full = post(client, *photos[0], estimator="none", exit_ratio=0, prune_below=0, score_threshold=0.5).json()
    assert full["stop_layer"] == full["n_layers"] == len(full["layers"])
    assert {layer["pruned"] for layer in full["layers"]} == {0}
    assert min(full["scores"]) > 0.5
    assert full["inliers"] is None


def test_api_has_a_schema(client: Any) -> None:
    schema = client.get("/openapi.json").json()
    route = schema["paths"]["/api/match"]["post"]
    assert set(route["responses"]) >= {"200", "400", "413", "503", "504"}
    reply = schema["components"]["schemas"]["MatchReply"]["properties"]
    assert {"points0", "points1", "scores", "stop_layer", "layers"} <= set(reply)


def test_api_refuses_in_one_sentence(client: Any, photos: list[Photos]) -> None:
    good = photos[0][0]
    wide = cv2.imencode(".png", np.zeros((1500, 1500, 3), np.uint8))[1].tobytes()
    for status, words, sent, form in [
        (400, "photo B is not an image", (good, b"no image at all"), {}),
        (400, "photo A is damaged", (good.read_bytes()[:3000], good), {}),
        (400, "photo A is empty", (b"", good), {}),
        (400, "photo A is not an image", (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", good), {}),
        (413, "photo B has 1500 x 1500 pixels, above the limit of 2 megapixels", (good, wide), {}),
        (413, "above the limit of 2 megapixels", (bomb(), good), {}),
        (413, "photo A has 1.1 MB, above the limit of 1 MB", (bytes(1_100_000), good), {}),
        (413, "larger than two photos of 1 MB", (bytes(3_000_000), good), {}),
        (400, "unknown weights", (good, good), {"weights": "/etc/passwd"}),
        (400, "estimator", (good, good), {"estimator": "magic"}),
        (400, "max_keypoints is 99999; give at most 4096", (good, good), {"max_keypoints": 99999}),
        (400, "max_keypoints is 0", (good, good), {"max_keypoints": 0}),
        (400, "exit_ratio is 2.0", (good, good), {"exit_ratio": 2}),
        (400, "exit_ratio", (good, good), {"exit_ratio": "nan"}),
    ]:
        reply = post(client, *sent, **form)
        assert reply.status_code == status, (words, reply.text)
        error = reply.json()["error"]
        assert words in error
        assert "Traceback" not in error
        assert "\n" not in error
    assert post(client, bad_exif(good), good).status_code == 200  # its orientation and pixels are whole
    assert client.post("/api/match").status_code == 400
    chunked = client.post(
        "/api/match",
        content=chain(
            [b'--x\r\nContent-Disposition: form-data; name="image0"; filename="a.png"\r\n\r\n'],
            (bytes(100_000) for _ in range(40)),
        ),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert chunked.status_code == 413
    assert "larger than two photos" in chunked.json()["error"]
    assert post(client, good, good).status_code == 200  # the server goes on


def test_no_file_of_the_server_can_be_read(client: Any, folder: Path, photos: list[Photos]) -> None:
    here = str(Path(__file__).resolve())
    for path in (
        f"/gradio_api/file={here}", "/gradio_api/file=/etc/passwd", "/gradio_api/file=secret.txt",
        "/gradio_api/file=../secret.txt",
        "/gradio_api/file=/tmp/../etc/passwd", "/gradio_api/file=/%2e%2e/%2e%2e/etc/passwd", "/gradio_api/file/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://127.0.0.1:1/", "/static/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/api.py", "/assets/%2e%2e/index.html", "/static//etc/passwd", "/result/../secret.txt",
        "/result/x/..%2f..%2fsecret.txt", "/result/guessed/matches.npz", "/monitoring", "/gradio_api/vibe-code/", "/docs",
        "/runs",
        "/gradio_api/dev/reload", "/gradio_api/deep_link", "/gradio_api/stream/a/b/c/playlist.m3u8",
    ):  # fmt: skip
        reply = client.get(path)
        assert reply.status_code in (400, 403, 404), path
        assert "root:" not in reply.text
        assert "secret" not in reply.text.replace("secret.txt", "")
    photo = str(photos[0][0])  # lies on the server's disk, and was not sent
    config = client.get("/config").json()
    usual: list[Any] = [None, None, "sift-deep", "none", 128, 0.1, 0.95, 0.01, "score"]
    click = next(d for d in config["dependencies"] if len(d["inputs"]) == len(usual))
    for number, (place, path) in enumerate(
        [
            (0, photo),
            (0, "/etc/passwd"),
            (1, "secret.txt"),
            (0, "http://127.0.0.1:1/x.png"),
            (2, photo),
            (5, photo),
            (8, here),
        ]
    ):
        claimed = {"path": path, "url": None, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        data = [claimed if k == place else value for k, value in enumerate(usual)]
        session = f"s{number}"
        joined = client.post("/gradio_api/queue/join", json={"data": data, "fn_index": click["id"], "session_hash": session})
        answers = joined.text + client.get("/gradio_api/queue/data", params={"session_hash": session}).text
        assert "send the photo itself" in answers, (path, answers)
        assert '"success":false' in answers
        assert "Traceback" not in answers
    copies = [
        file
        for file in (folder / "tmp").rglob("*")
        if file.is_file() and file.name in ("passwd", "secret.txt", Path(photo).name)
    ]
    assert not copies


# In a browser.


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(PATIENCE)
    outside: list[str] = []
    messages: list[str] = []
    page.on(
        "request",
        lambda request: outside.append(request.url) if not request.url.startswith((server, "data:", "blob:")) else None,
    )
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.goto(server)
    page.wait_for_selector("#photo-a input[type=file]", state="attached")
    yield page
    page.close()
    assert outside == [], "the page loads nothing from elsewhere"
    assert [text for text in messages if "413" not in text] == []


def send(page: Any, a: object, b: object) -> None:
    for name, photo in (("#photo-a", a), ("#photo-b", b)):
        page.set_input_files(f"{name} input[type=file]", photo)
        page.wait_for_selector(f"{name} button[aria-label='Clear'], {name} button[aria-label='Remove Image']")


def keypoints(page: Any, number: int = KEYPOINTS) -> None:
    box = page.get_by_label("number input for Keypoints")
    box.fill(str(number))
    box.press("Tab")


def shown(page: Any, picture: str) -> None:
    page.wait_for_function(f"(document.querySelector('{picture} img') || {{}}).naturalWidth > 300")


def numbers(page: Any) -> dict[str, str]:
    rows = page.locator("#numbers tr").all_inner_texts()
    return {row.split("\t")[0]: row.split("\t")[-1] for row in rows}


def downloaded(page: Any, suffix: str) -> bytes:
    with page.expect_download() as download:
        page.click(f"#files a[download='matches.{suffix}']")
    return Path(download.value.path()).read_bytes()


def check(npz: bytes, mine: MatchResult) -> None:
    with np.load(io.BytesIO(npz)) as file:
        np.testing.assert_array_equal(file["matches"], mine.matches.pairs)
        np.testing.assert_array_equal(file["points0"], mine.points0)
        np.testing.assert_array_equal(file["points1"], mine.points1)
        np.testing.assert_allclose(file["scores"], mine.scores, atol=1e-5)
        assert file["stop_layer"] == mine.matches.stop_layer
        assert file["fundamental"].shape == (3, 3)
        assert len(file["inliers"]) == len(mine)


def test_page_matches_draws_and_hands_out(page: Any, photos: list[Photos], expected: list[MatchResult]) -> None:
    mine = expected[0]
    send(page, *photos[0])
    keypoints(page)
    page.click("#match")
    shown(page, "#picture")
    assert f"{len(mine)} matches" in page.inner_text("#message")
    assert numbers(page)["matches"] == str(len(mine))
    assert numbers(page)["layers run"].startswith(f"{mine.matches.stop_layer} of")
    check(downloaded(page, "npz"), mine)
    assert json.loads(downloaded(page, "json"))["matches"] == mine.matches.pairs.tolist()
    assert downloaded(page, "jpg")[:2] == b"\xff\xd8"
    before = page.get_attribute("#picture img", "src")
    page.get_by_label("inlier or outlier").check()
    page.wait_for_function(f"document.querySelector('#picture img').getAttribute('src') != '{before}'")
    shown(page, "#picture")

    page.get_by_role("tab", name="Layer by layer").click()
    shown(page, "#layer-picture")  # of the last layer; on a busy machine the tab takes input before it has its own
    assert page.get_by_label("number input for Layer").input_value() == str(mine.matches.stop_layer)
    page.get_by_label("number input for Layer").fill("1")
    page.get_by_label("number input for Layer").press("Tab")
    page.wait_for_selector("#layer-picture img[src*='layer-1.jpg']")
    shown(page, "#layer-picture")
    rows = page.locator("#layer-numbers tbody tr").all_inner_texts()
    assert len(rows) == 9
    last = rows[mine.matches.stop_layer - 1].split("\t")
    assert (last[1], last[-1]) == (str(len(mine)), "done")
    assert all("did not run" in row for row in rows[mine.matches.stop_layer :])

    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.wait_for_function("document.querySelector('#layer-picture img').currentSrc.endsWith('stacked=true')")
    page.wait_for_function(
        "(i => i.complete && i.naturalHeight > i.naturalWidth)(document.querySelector('#layer-picture img'))"
    )


def test_page_says_what_is_wrong(page: Any, photos: list[Photos]) -> None:
    def answer(words: str) -> None:
        page.click("#match")
        page.wait_for_function(f"document.querySelector('#message').innerText.includes({json.dumps(words)})")
        assert "Traceback" not in page.inner_text("body")
        assert not page.is_visible("#picture")

    answer("photo A is missing")
    good = {"name": "good.png", "mimeType": "image/png", "buffer": photos[0][0].read_bytes()}
    send(page, good, good | {"buffer": b"this is text"})
    answer("photo B is not an image; give a JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, AVIF or HEIC file")
    page.locator("#photo-b").get_by_role("button", name=re.compile("Clear|Remove")).click()
    page.set_input_files("#photo-b input[type=file]", good | {"buffer": bomb()})
    page.wait_for_selector("#photo-b img")
    answer("above the limit of 2 megapixels")
    page.locator("#photo-b").get_by_role("button", name=re.compile("Clear|Remove")).click()
    page.set_input_files("#photo-b input[type=file]", good | {"buffer": bytes(1_500_000)})
    page.wait_for_selector("text=/exceeds|too large|maximum/i")
    answer("photo B is missing")


def test_two_users_get_their_own(browser: Any, server: str, photos: list[Photos], expected: list[MatchResult]) -> None:
    pages = [browser.new_context().new_page() for _ in photos]
    for page, pair in zip(pages, photos, strict=True):
        page.set_default_timeout(PATIENCE)
        page.goto(server)
        page.wait_for_selector("#photo-a input[type=file]", state="attached")
        send(page, *pair)
        keypoints(page)
    for page in pages:
        page.click("#match")
    for page, mine in zip(pages, expected, strict=True):
        shown(page, "#picture")
        check(downloaded(page, "npz"), mine)
        page.context.close()
    assert not np.array_equal(expected[0].points0, expected[1].points0)


def test_samples_are_one_click_away(page: Any) -> None:
    page.click("#samples")
    page.wait_for_selector("#photo-b img")
    keypoints(page)
    page.click("#match")
    shown(page, "#picture")
    assert int(numbers(page)["matches"]) > 50


# Inside.


def test_a_request_ends_by_its_time_and_the_server_goes_on() -> None:
    from lumiglue.demo.service import BusyError, Service, TimeLimitError

    async def run() -> None:
        service = Service(Limits(workers=1, max_seconds=1.5, max_queue=0))
        try:
            endless = asyncio.create_task(service._run(time.sleep, 60))  # pyright: ignore[reportArgumentType]
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="0 requests are waiting"):
                await service._run(os.urandom, 3)
            with pytest.raises(TimeLimitError, match=r"longer than the limit of 1\.5 s"):
                await endless
            assert len(await service._run(os.urandom, 3)) == 3
            worker = await service._run(os.getpid)  # pyright: ignore[reportArgumentType]
            os.kill(worker, signal.SIGKILL)  # pyright: ignore[reportArgumentType]  # idle, as when memory runs out
            await asyncio.sleep(1)
            assert len(await service._run(os.urandom, 3)) == 3
        finally:
            service.close()

    with ThreadPoolExecutor(1) as thread:  # the browser's loop runs in this one
        thread.submit(asyncio.run, run()).result()


def test_the_page_of_the_documentation_says_how(
    server: str, photos: list[Photos], expected: list[MatchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its Python line, with the sample photos and this server's address."""
    for name, path in zip(("a.jpg", "b.jpg"), photos[0], strict=True):
        shutil.copy(path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code.replace("http://127.0.0.1:7860", server), {})
    matches, inliers, stop_layer, layers = map(int, re.findall(r"\d+", capsys.readouterr().out))
    assert matches >= inliers > 10
    assert stop_layer == layers == 9


def test_the_sliders_start_at_the_thresholds_of_the_weights() -> None:
    from lumiglue.demo.matching import own_thresholds

    own = Pipeline.pretrained("sift").settings
    assert own_thresholds("sift-deep") == (own.exit_ratio, own.prune_below) != (0.95, 0.01)
    assert own_thresholds("aliked-n16-deep") == (0.98, 0.02)


def test_flags_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="workers is 0; give at least 1"):
        Limits(workers=0)
    assert main(["demo", "--host", "203.0.113.7", "--port", "1"]) == 2
    assert "203.0.113.7 port 1 cannot be used" in capsys.readouterr().err
