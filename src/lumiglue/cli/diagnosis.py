"""What this installation has and whether it works, for `lumiglue doctor` and bug reports.

Each part is checked on its own, so that a broken one (PyTorch, say) does not hide the others.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lumiglue.errors import LumiglueError
from lumiglue.system.extras import DISTRIBUTIONS, EXTRAS, installed_versions, needed_versions, outdated

# What Lumiglue always needs, by the name that is imported.
NEEDED = ("torch", "numpy", "cv2", "PIL", "poselib", "safetensors", "h5py", "matplotlib", "rich", "tyro")
_CPU_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "bf16", "sve")
# The self-test: enough matches, and nearly all of them right.
MIN_MATCHES, MIN_RIGHT, PIXELS = 100, 0.95, 3.0


def diagnose() -> dict[str, Any]:
    """Checks the installation. Returns JSON values; "problems" lists what is wrong, one sentence each."""
    problems: list[str] = []
    parts: dict[str, Callable[[], Any]] = {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "processor": _processor,
        "gpus": _gpus,
        "products": _products,
        "weights": _weights,
        "self_test": self_test,
    }
    report: dict[str, Any] = {"lumiglue": _own_version()}
    for name, ask in parts.items():
        try:
            report[name] = ask()
        except Exception as error:  # whatever a broken installation raises is what is looked for
            report[name] = {"error": f"{type(error).__name__}: {error}"}
            problems.append(f"{name.replace('_', ' ')}: {_sentence(error)}")
    problems += (
        _missing(report["packages"])
        + _outdated(report["extras"])
        + _damaged(report["weights"])
        + _failed(report["self_test"])
    )
    return {**report, "problems": problems}


def _own_version() -> dict[str, str]:
    import lumiglue

    return {"version": lumiglue.__version__, "folder": str(Path(lumiglue.__file__).parent)}


def _python() -> dict[str, str]:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "system": platform.platform(),
    }


def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in NEEDED}


def _extras() -> list[dict[str, Any]]:
    return [
        {
            "package": name,
            "version": _version(name),
            "needed": str(needed_versions(name)),
            "outdated": outdated(name),
            "extras": list(extras),
        }
        for name, extras in EXTRAS.items()
    ]


def _version(package: str) -> str | None:
    """Version of a package; of all distributions that bring it, if there are several (two builds of OpenCV, say)."""
    if find_spec(package) is None:
        return None
    versions = installed_versions(package)
    named = len(DISTRIBUTIONS.get(package, (package,))) > 1
    return ", ".join(f"{number} ({name})" if named else number for name, number in versions.items()) or "unknown version"


def _processor() -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ask = getattr(torch.cpu, "get_capabilities", None)  # of newer PyTorch
    known = ask() if ask is not None else {}
    return {
        "model": _processor_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name in _CPU_FEATURES if known.get(name)],
    }


def machine_record(packages: tuple[str, ...]) -> dict[str, Any]:
    """The processor, the kernels that run on it, and versions: what a measurement of speed depends on."""
    versions = {name: _version(name) for name in packages}
    return {
        "machine": {**_processor(), **_kernels(), "system": platform.platform(), "cuda": _gpus()["cuda"]},
        "versions": {"lumiglue": _own_version()["version"], "python": platform.python_version(), **versions},
    }


def _kernels() -> dict[str, str]:
    """What computes layers on the CPU, and the precision in which photos are matched there."""
    import torch

    from lumiglue.backends.autotune import default_precision
    from lumiglue.matcher.ops import amx, native

    return {
        "precision": default_precision(torch.device("cpu")),
        "fp32_kernels": found if isinstance(found := native.library(), str) else f"native ({found[0]})",
        "bf16_kernels": found if isinstance(found := amx.library(), str) else "native (amx)",
    }


def _processor_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if lines:
            return lines[0]
    if sys.platform == "darwin":
        brand = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if brand.stdout.strip():
            return brand.stdout.strip()
    return platform.processor() or platform.machine()


def _gpus() -> dict[str, Any]:
    import torch

    cuda = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(number)
        cuda.append(
            {
                "name": device.name,
                "gib": round(device.total_memory / 2**30, 1),
                "capability": f"{device.major}.{device.minor}",
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
        )
    return {
        "cuda": cuda,
        "cuda_build": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
        "default": "cuda" if cuda else "cpu",
    }


def _products() -> dict[str, Any]:
    """Rates of matrix products on the CPU, and the precision in which photos are matched there."""
    import torch

    from lumiglue.matcher.precision import product_rate

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    # Two digits: a processor without bfloat16 may stay below 1.
    rates = {name: float(f"{product_rate(dtype) / 1e9:.2g}") for name, dtype in dtypes.items()}
    return {"gflops": rates, **_kernels()}


def _weights() -> dict[str, Any]:
    from lumiglue.io.download import file_sha256
    from lumiglue.system.cache import cache_folder
    from lumiglue.weights.files import BUILT_IN, built_in_checksums, pretrained_path

    checksums = built_in_checksums()
    built_in = []
    for name in BUILT_IN:
        path = pretrained_path(name)
        state = "missing"
        if path.is_file():
            state = "intact" if file_sha256(path) == checksums.get(path.name) else "damaged"
        built_in.append({"name": name, "file": path.name, "state": state})
    cache = cache_folder()
    files = []
    for path in sorted(cache.iterdir()) if cache.is_dir() else []:
        if path.is_file() and path.suffix in (".safetensors", ".pth", ".onnx"):
            files.append({"file": path.name, "state": _download_state(path, file_sha256(path))})
    return {"built_in": built_in, "cache": {"folder": str(cache), "files": files}, "networks": _networks()}


def _download_state(path: Path, checksum: str) -> str:
    """A download's name begins with its checksum; what was put there by hand has none."""
    first = path.name.split("-", 1)[0]
    if len(first) != 16 or set(first) - set("0123456789abcdef"):
        return "found"
    return "intact" if checksum.startswith(first) else "damaged"


def _networks() -> dict[str, Any]:
    """Networks of features that need no download, and the variables that say where their files are."""
    from lumiglue.weights.registry import NETWORKS

    names = sorted({f"LUMIGLUE_{name.partition('-')[0].upper()}" for name in NETWORKS})
    variables = [{"name": n, "value": v, "exists": Path(v).exists()} for n in names if (v := os.environ.get(n))]
    missing = {entry["name"] for entry in variables if not entry["exists"]}
    here = [
        name
        for name, file in NETWORKS.items()
        if f"LUMIGLUE_{name.partition('-')[0].upper()}" not in missing and file.is_here()
    ]
    return {"variables": variables, "here": here}


def self_test() -> dict[str, Any]:
    """Matches a drawn picture with its view under a known homography, by the default weights. Nothing is read from disk but
    the weights, nothing is downloaded."""
    import numpy as np

    from lumiglue.pipeline.pipeline import Pipeline

    start = time.perf_counter()
    image0, image1, image1_from_image0 = _drawn_pair()
    pipeline = Pipeline.pretrained("sift", max_keypoints=1024)
    result = pipeline.match(image0, image1)
    true1 = np.column_stack([result.points0, np.ones(len(result))]) @ image1_from_image0.T
    error = np.linalg.norm(true1[:, :2] / true1[:, 2:] - result.points1, axis=1)
    geometry = result.geometry("homography")
    return {
        "matches": len(result),
        "right": int((error <= PIXELS).sum()),
        "inliers": int(geometry.inliers.sum()),
        "stop_layer": result.matches.stop_layer,
        "match_ms": round(1000 * result.seconds["match"], 1),
        "seconds": round(time.perf_counter() - start, 2),
    }


def _drawn_pair() -> Any:
    """A picture of overlapping shapes, h x w x 3, the same turned by 20 degrees, smaller, tilted and darker, and the
    homography between them."""
    import cv2
    import numpy as np

    width, height = 480, 360
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(260):
        colour = random.integers(0, 256, 3).tolist()
        x, y = int(random.integers(width)), int(random.integers(height))
        a, b = (int(size) for size in random.integers(4, 34, 2))
        if random.integers(2):
            cv2.rectangle(image, (x, y), (x + a, y + b), colour, -1)
        else:
            cv2.ellipse(image, (x, y), (a, b), float(random.integers(180)), 0, 360, colour, -1)
    image = cv2.GaussianBlur(image, (0, 0), 0.8)
    turn = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), 20.0, 0.85), [0.0, 0.0, 1.0]])
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2e-4, -1e-4, 1.0]])
    homography = turn @ tilt
    other = cv2.warpPerspective(image, homography, (width, height), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    return image, (other * 0.8).astype(np.uint8), homography


def _missing(packages: Any) -> list[str]:
    names = [name for name, installed in packages.items() if name != "error" and installed is None]
    old = [message for name in NEEDED if name not in names and (message := outdated(name))]
    return [f"the package {name} is missing; reinstall Lumiglue" for name in names] + old


def _outdated(extras: Any) -> list[str]:
    """Optional packages that are installed in a version that would fail."""
    return [entry["outdated"] for entry in extras if entry["outdated"]] if isinstance(extras, list) else []


def _damaged(weights: Any) -> list[str]:
    if "error" in weights:
        return []
    problems = []
    for entry in weights["built_in"]:
        if entry["state"] != "intact":
            problems.append(
                f"the built-in weights {entry['name']} ({entry['file']}) are {entry['state']}; reinstall Lumiglue"
            )
    for entry in weights["cache"]["files"]:
        if entry["state"] == "damaged":
            problems.append(f"{entry['file']} in {weights['cache']['folder']} is damaged; delete it to download it again")
    problems += [
        f"{variable['name']} names {variable['value']}, which does not exist; correct or unset it"
        for variable in weights["networks"]["variables"]
        if not variable["exists"]
    ]
    return problems


def _failed(test: Any) -> list[str]:
    if "error" in test:
        return []
    if test["matches"] >= MIN_MATCHES and test["right"] >= MIN_RIGHT * test["matches"]:
        return []
    return [
        f"the self-test found {test['matches']} matches, {test['right']} of them right, where at least {MIN_MATCHES} and "
        f"{MIN_RIGHT:.0%} are expected; please report it with the output of `lumiglue doctor --json`"
    ]


def _sentence(error: Exception) -> str:
    if isinstance(error, LumiglueError):
        return str(error)
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def as_json(report: dict[str, Any]) -> str:
    """Formats a report for a bug report."""
    return json.dumps(report, indent=2)
