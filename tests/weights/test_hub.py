"""The Hugging Face Hub: a real push and a real pull over HTTP, against a server on this machine that speaks its routes."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub as hub
import pytest
import torch
from huggingface_hub import constants

from helpers import make_features, make_model
from lumiglue import InputError, MatchSettings, Pipeline, Sift, WeightsError
from lumiglue.cli import main
from lumiglue.weights.files import load_weights
from lumiglue.weights.folder import read_model_folder, write_model_folder
from lumiglue.weights.registry import resolve

pytestmark = pytest.mark.portable

# The Hub's client hands its upload over git-lfs to httpx in a way that httpx no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
TOKEN = "hf_correct"


@dataclass
class FakeHub:
    """Repositories in memory. `spoil` changes how files are served: a status, "cut" (fewer bytes than announced) or "swap"
    (other bytes of the same length)."""

    url: str = ""
    private: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repository -> commit -> files
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by SHA-256, as git-lfs does
    spoil: dict[str, object] = field(default_factory=dict)  # by file name
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    state = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, value: object, status: int = 200) -> None:
            self.reply(status, json.dumps(value).encode(), Content_Type="application/json")

        def refuse(self, status: int, code: str, text: str) -> None:
            self.reply(status, b"", X_Error_Code=code, X_Error_Message=text)

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        @property
        def known(self) -> bool:
            return self.headers.get("authorization") == f"Bearer {TOKEN}"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            state.requests.append(f"{self.command} {path}")
            route = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
            if not route:
                return self.refuse(404, "NotFound", "no such page")
            repo, revision, name = route.groups()
            if repo not in state.commits or (repo in state.private and not self.known):
                # as the Hub does: without a token nobody learns whether a private repository exists
                return self.refuse(404 if self.known else 401, "RepoNotFound", "Repository not found")
            commit = state.branches.get((repo, revision), revision)
            if commit not in state.commits[repo]:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            content = state.commits[repo][commit].get(name)
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            spoil = state.spoil.get(name)
            if isinstance(spoil, int):
                return self.reply(spoil)
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
            if spoil == "cut" and self.command == "GET":
                return self.reply(200, content[: len(content) // 2], **headers)
            if spoil == "swap":
                content = content[:-4] + bytes(byte ^ 1 for byte in content[-4:])
            return self.reply(200, content, **headers)

        def do_PUT(self) -> None:
            body = self.body()
            state.stored[hashlib.sha256(body).hexdigest()] = body
            self.reply(200)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            state.requests.append(f"POST {path}")
            body = self.body()
            if path == "/api/validate-yaml":
                return self.say({"errors": [], "warnings": []})
            if not self.known:
                return self.refuse(401, "", "Invalid username or password.")
            if isinstance(state.spoil.get("commit"), int):
                return self.reply(int(str(state.spoil["commit"])))
            if path == "/api/repos/create":
                request = json.loads(body)
                repo = f"{request.get('organization') or 'me'}/{request['name']}"
                if request.get("private") or request.get("visibility") == "private":
                    state.private.add(repo)
                state.commits.setdefault(repo, {})
                return self.say({"url": f"{state.url}/{repo}", "name": repo})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**thing, "actions": {"upload": {"href": f"{state.url}/lfs/{thing['oid']}", "header": {}}}}
                    for thing in json.loads(body)["objects"]
                ]
                return self.say({"transfer": "basic", "objects": objects})
            repo, action, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path).groups()  # pyright: ignore
            if action == "preupload":
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.say({"files": files})
            files = {}
            for line in body.decode().splitlines():
                entry = json.loads(line)
                match entry["key"]:
                    case "file":
                        files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    case "lfsFile":
                        files[entry["value"]["path"]] = state.stored[entry["value"]["oid"]]
            commit = hashlib.sha1(body).hexdigest()
            state.commits[repo][commit] = files
            state.branches[repo, revision] = commit
            return self.say({"commitUrl": f"{state.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True})

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    # The client reads its environment once, at import; nothing may leave this machine or wait between tries.
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", state.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def pipeline() -> Pipeline:
    model = make_model(extractor="sift", descriptor_dim=128)
    return Pipeline(Sift(), model, MatchSettings(exit_ratio=0.8, prune_below=0), metadata={"licence": "CC-BY-4.0"})


def same_weights(a: Pipeline, b: Pipeline) -> bool:
    ours, theirs = (p.matcher.state_dict() for p in (a, b))  # pyright: ignore[reportAttributeAccessIssue]
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_pushed_is_what_is_pulled(server: FakeHub, pipeline: Pipeline, tmp_path: Path) -> None:
    address = pipeline.push_to_hub("org/matcher", token=TOKEN, endpoint=server.url, metadata={"training_data": "Drawn."})
    assert address.startswith(f"{server.url}/org/matcher/commit/")
    (files,) = server.commits["org/matcher"].values()
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    again = Pipeline.from_pretrained(
        "org/matcher", cache_dir=tmp_path / "mine", endpoint=server.url, max_keypoints=64, precision="fp32"
    )
    assert same_weights(again, pipeline)
    assert again.settings == pipeline.settings
    assert again.matcher.config == pipeline.matcher.config
    assert again.metadata == {"licence": "CC-BY-4.0", "training_data": "Drawn."}
    assert isinstance(again.extractor, Sift)
    assert again.extractor.max_keypoints == 64
    assert (tmp_path / "mine").is_dir()
    a = make_features(40, 1, dim=128)
    pair = (a, make_features(40, 2, dim=128, like=a))
    (pulled,), (expected,) = again.match_features([pair]), pipeline.match_features([pair])
    assert torch.equal(pulled.pairs, expected.pairs)
    assert torch.equal(pulled.scores, expected.scores)


def test_the_card_says_what_is_known(server: FakeHub, pipeline: Pipeline) -> None:
    pipeline.push_to_hub("org/matcher", token=TOKEN, metadata={"metrics": {"f1": 68.2}, "training_data": "Drawn photos."})
    (files,) = server.commits["org/matcher"].values()
    card = hub.ModelCard(files["README.md"].decode())
    front = card.data.to_dict()
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "lumiglue"
    assert {"feature-matching", "lightglue", "sift"} <= set(front["tags"])
    for words in (
        "from_pretrained('org/matcher')",
        "hub:org/matcher",
        "Drawn photos.",
        "| f1 | 68.2 |",
        "ICCV 2023",
        "5 layers",
    ):
        assert words in card.text


def test_revisions_private_repositories_and_the_cache(
    server: FakeHub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.push_to_hub("org/secret", token=TOKEN, private=True)
    first = server.branches["org/secret", "main"]
    other = Pipeline(Sift(), make_model(seed=1, extractor="sift", descriptor_dim=128))
    other.push_to_hub("org/secret", token=TOKEN)
    assert same_weights(Pipeline.from_pretrained("org/secret", token=TOKEN), other)
    assert same_weights(Pipeline.from_pretrained("org/secret", token=TOKEN, revision=first), pipeline)
    with pytest.raises(WeightsError, match=r"private and the token is missing or wrong \(401\)"):
        Pipeline.from_pretrained("org/secret", token=False, revision="never-fetched")
    with pytest.raises(WeightsError, match="no revision 'v9'"):
        Pipeline.from_pretrained("org/secret", token=TOKEN, revision="v9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what was fetched serves without a connection
    before = len(server.requests)
    assert same_weights(Pipeline.from_pretrained("org/secret"), other)
    assert same_weights(Pipeline.from_pretrained("org/secret", revision=first), pipeline)
    assert len(server.requests) == before


def test_pushes_that_fail_say_so(server: FakeHub, pipeline: Pipeline) -> None:
    for repo, token, message in [
        ("org/a/b", TOKEN, "not the name of a repository"),
        ("org/a b", TOKEN, "not the name of a repository"),
        ("org/matcher", "hf_wrong", r"may not do this \(401\)"),
        ("org/matcher", False, r"\(401\)"),
    ]:
        with pytest.raises(WeightsError, match=message) as caught:
            pipeline.push_to_hub(repo, token=token)
        assert "\n" not in str(caught.value)
    server.spoil["commit"] = 500
    with pytest.raises(WeightsError, match="org/matcher cannot be written: the server answered 500; try again later"):
        pipeline.push_to_hub("org/matcher", token=TOKEN)
    assert server.commits == {}
    coarse = Pipeline(Sift(), make_model(extractor="sift", descriptor_dim=128), precision="bf16")
    coarse.matcher.bfloat16()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="were rounded to bfloat16"):
        coarse.push_to_hub("org/matcher", token=TOKEN)


def test_pulls_that_fail_say_so(server: FakeHub, pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.push_to_hub("org/matcher", token=TOKEN)
    server.commits["org/else"] = {"c" * 40: {"README.md": b"# Something else"}}
    server.branches["org/else", "main"] = "c" * 40
    cases: list[tuple[str, dict[str, object], str]] = [
        ("org/a/b", {}, "not the name of a repository"),
        ("org/none", {}, r"no such repository, or it is private .* \(401\)"),
        ("org/else", {}, "has no config.json, so it was not written by"),
        ("org/matcher", {"config.json": 500}, "the server answered 500; try again later"),
        ("org/matcher", {"model.safetensors": 503}, "the server answered 503"),
        ("org/matcher", {"model.safetensors": 404}, "cannot be downloaded"),
        ("org/matcher", {"model.safetensors": "cut"}, "cannot be downloaded"),
        (
            "org/matcher",
            {"model.safetensors": "swap"},
            "has SHA-256 .*, not .* as in config.json; delete it and download it again",
        ),
        ("org/matcher", {"config.json": "swap"}, "is not one of Lumiglue's"),
    ]
    for number, (repo, spoil, message) in enumerate(cases):
        server.spoil = spoil
        with pytest.raises(WeightsError, match=message) as caught:
            Pipeline.from_pretrained(repo, token=False, cache_dir=tmp_path / str(number))
        assert "\n" not in str(caught.value)
        assert (
            not list((tmp_path / str(number)).rglob("model.safetensors"))
            or spoil.get("model.safetensors") == "swap"
            or ("config.json" in spoil)
        )
    with pytest.raises(WeightsError, match=r"no such repository \(404\)"):
        Pipeline.from_pretrained("org/none", token=TOKEN)
    with pytest.raises(WeightsError, match="the server cannot be reached, and it is not in the cache"):
        Pipeline.from_pretrained("org/matcher", endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "off")


def test_the_command_line_takes_weights_of_the_hub(
    server: FakeHub, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.push_to_hub("org/matcher", token=TOKEN)
    commit = server.branches["org/matcher", "main"]
    for name in ("hub:org/matcher", f"hub:org/matcher@{commit}"):
        assert load_weights(resolve(name)).config == pipeline.matcher.config
    assert main(["weights", "show", "hub:org/matcher"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "CC-BY-4.0"
    assert main(["weights", "show", "hub:org/none"]) == 2
    assert "error: org/none cannot be downloaded" in capsys.readouterr().err


def test_a_folder_will_do(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "m", name="mine")
    assert same_weights(Pipeline.from_pretrained(tmp_path / "m"), pipeline)
    assert same_weights(Pipeline.from_pretrained(str(tmp_path / "m")), pipeline)
    assert "# mine" in (tmp_path / "m" / "README.md").read_text()
    built_in = Pipeline.pretrained("sift")
    built_in.save_pretrained(tmp_path / "sift")
    assert same_weights(Pipeline.from_pretrained(tmp_path / "sift"), built_in)
    rough = Pipeline.from_pretrained(tmp_path / "m", precision="bf16")  # what it rounds is not what it writes
    rough.save_pretrained(tmp_path / "again", name="mine")
    written = load_weights(tmp_path / "again" / "model.safetensors").state_dict()
    exact = pipeline.matcher.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(written[name], exact[name]) for name in exact)
    assert 'license: "apache-2.0"' in (tmp_path / "sift" / "README.md").read_text()
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        Pipeline.from_pretrained(tmp_path / "m")


def test_a_repository_cannot_name_code_to_run(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    for name in (f"{tmp_path}/trap.py:Trap", "os:system", "orb", ""):
        model = make_model(extractor=name, descriptor_dim=128)
        write_model_folder(tmp_path / "m", model, MatchSettings(), {}, "m")
        assert read_model_folder(tmp_path / "m").features == name
        with pytest.raises(InputError, match="name an extractor for them with features="):
            Pipeline.from_pretrained(tmp_path / "m")
    assert not (tmp_path / "sprung").exists()
    assert isinstance(Pipeline.from_pretrained(tmp_path / "m", features="sift").extractor, Sift)  # the last takes any
