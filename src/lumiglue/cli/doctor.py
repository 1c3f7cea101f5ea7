"""`lumiglue doctor`."""

from pathlib import Path
from typing import Any

from lumiglue.cli.terminal import err, say


def doctor(json: bool = False) -> int:
    """Report what this installation has, and test it. The exit code is 1 if something is wrong.

    Args:
        json: Print JSON for a bug report; your home folder is replaced by ~.
    """
    from lumiglue.cli.diagnosis import as_json, diagnose

    report = diagnose()
    if json:
        say(_without_home(as_json(report)))
    else:
        for title, lines in _sections(report):
            say(title)
            for line in lines:
                say(f"  {line}")
        for problem in report["problems"]:
            err.print(f"error: {problem}", markup=False)
        if not report["problems"]:
            say("all is well")
    return 1 if report["problems"] else 0


def _sections(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    python, own = report["python"], report["lumiglue"]
    here = [f"lumiglue {own['version']} in {own['folder']}"]
    here.append(_or_error(python, lambda p: f"Python {p['version']} ({p['executable']}), {p['system']}"))
    return [
        ("installed", here + _packages(report["packages"])),
        ("optional", _extras(report["extras"])),
        ("processors", _processors(report)),
        ("weights", _weights(report["weights"])),
        ("self-test: a drawn picture and its view under a known homography", [_or_error(report["self_test"], _self_test)]),
    ]


def _or_error(part: Any, text: Any) -> str:
    return f"failed: {part['error']}" if isinstance(part, dict) and "error" in part else text(part)


def _packages(packages: Any) -> list[str]:
    return [_or_error(packages, lambda versions: ", ".join(f"{name} {v or 'MISSING'}" for name, v in versions.items()))]


def _extras(extras: Any) -> list[str]:
    if isinstance(extras, dict):
        return [f"failed: {extras['error']}"]
    lines = []
    for entry in extras:
        extra = f"lumiglue[{entry['extras'][0]}]"
        status = f"no; pip install '{extra}'"
        if entry["version"]:
            status = f"{entry['version']} (extra {', '.join(entry['extras'])})"
        if entry["outdated"]:
            status += f", needs {entry['needed']}"
        lines.append(f"{entry['package']:<16}{status}")
    return lines


def _processors(report: dict[str, Any]) -> list[str]:
    def processor(p: Any) -> str:
        cores = f"{p['usable_cores']} of {p['cores']} cores" if p["usable_cores"] != p["cores"] else f"{p['cores']} cores"
        features = ", ".join(p["features"]) or "no features known"
        return f"{p['model']}: {cores}, {p['threads']} threads in use, {p['kernels']} kernels ({features})"

    def kernels(state: str) -> str:
        return f"our kernels, {state[8:-1]}" if state.startswith("native (") else f"PyTorch ({state})"

    def products(p: Any) -> str:
        rates = p["gflops"]
        return (
            f"matrix products: {rates['fp32']:g} GFLOP/s in fp32, {rates['bf16']:g} in bf16; photos are matched in "
            f"{p['precision']}; layers in fp32 by {kernels(p['fp32_kernels'])}, in bf16 by {kernels(p['bf16_kernels'])}"
        )

    def gpus(p: Any) -> str:
        cards = [
            f"{c['name']}, {c['gib']} GiB, compute capability {c['capability']}, {'bf16' if c['bf16'] else 'no bf16'}"
            for c in p["cuda"]
        ]
        build = f"CUDA {p['cuda_build']}" if p["cuda_build"] else "this PyTorch was built without CUDA"
        lines = [f"{'; '.join(cards) or 'no CUDA device'} ({build})"]
        if p["mps"]:
            lines.append("Apple's MPS: choose it with --device mps")
        return f"{'; '.join(lines)}; matchers run on {p['default']}"

    parts = (("processor", processor), ("products", products), ("gpus", gpus))
    return [_or_error(report[name], text) for name, text in parts]


def _weights(weights: Any) -> list[str]:
    if "error" in weights:
        return [f"failed: {weights['error']}"]
    lines = [f"{entry['name']:<16}{entry['file']}, {entry['state']}" for entry in weights["built_in"]]
    cache = weights["cache"]
    downloads = ", ".join(f"{entry['file']} ({entry['state']})" for entry in cache["files"]) or "nothing"
    lines.append(f"{'downloads':<16}{cache['folder']}: {downloads}")
    networks = weights["networks"]
    named = "".join(f"{variable['name']}={variable['value']}; " for variable in networks["variables"])
    here = ", ".join(networks["here"]) or "none; they are downloaded when first used"
    lines.append(f"{'networks':<16}{named}{here}")
    return lines


def _self_test(test: Any) -> str:
    return (
        f"{test['matches']} matches, {test['right']} right, {test['inliers']} inliers, "
        f"stopped after layer {test['stop_layer']}, {test['seconds']:.1f} s"
    )


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
