"""``scalekv env``: what this installation is made of, and what is broken in it. Works without torch."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib import metadata
from typing import Any

from scalekv._version import __version__
from scalekv.cli.options import Json
from scalekv.cli.output import Output
from scalekv.planning import format_bytes

REQUIRED = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pillow",
    "sentencepiece",
    "protobuf",
    "torchmetrics",
    "typer",
    "rich",
)
OPTIONAL = {
    "matplotlib": ("plot", "there are no pictures of profiles"),
    "numba": ("cpu", "bytewise and codecs take longer on CPUs"),
}
"""Packages of extras: which extra, and what is missed without it."""
PROBED = ("torchvision", "torchaudio", "flash-attn", "xformers", "bitsandbytes")
"""Packages that diffusers or transformers look for by themselves: broken ones break their import."""


def env(json: Json = False) -> None:
    """Show versions, devices and what is broken.

    Please add it to a bug report.
    """
    output = Output(json=json)
    with output.guarded():
        torch, torch_problem = _torch()
        versions = {name: _version(name) for name in (*REQUIRED, *OPTIONAL, *PROBED)}
        problems = [torch_problem] if torch_problem else []
        problems += _missing(versions) + _too_old(versions) + _broken(versions, bool(torch_problem))
        found = {
            "scalekv": __version__,
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "torch": torch,
            "packages": versions,
            "problems": problems,
        }
        _print_text(output, found)
        output.result(found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _problem(package: str, problem: str, mend: str) -> dict[str, str]:
    return {"package": package, "problem": problem, "mend": mend}


def _torch() -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """What torch is built for and the devices it sees, or what is wrong with it."""
    mend = "pip install 'torch>=2.6' (https://pytorch.org/get-started/locally names the right build)"
    try:
        import torch

        return {
            "version": torch.__version__,
            "cuda_build": torch.version.cuda,
            "threads": torch.get_num_threads(),
            "devices": _devices(torch),
        }, None
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return None, _problem("torch", "not installed", mend)
        return None, _problem("torch", _first_line(error), mend)
    except Exception as error:  # a broken build raises whatever its libraries raise
        return None, _problem("torch", _first_line(error), f"{mend}, with --force-reinstall")


def _devices(torch: Any) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [{"name": "cpu", "kind": platform.processor() or platform.machine()}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": f"cuda:{index}", "kind": properties.name, "bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "kind": "Apple GPU"})
    return devices


def _missing(versions: dict[str, str | None]) -> list[dict[str, str]]:
    missing = [name for name in REQUIRED if versions[name] is None and name != "torch"]
    problems = [_problem(name, "not installed, but needed", f"pip install {name}") for name in missing]
    for name, (extra, missed) in OPTIONAL.items():
        if versions[name] is None:
            problems.append(_problem(name, f"not installed, so {missed}", f"pip install 'scalekv[{extra}]'"))
    return problems


def _too_old(versions: dict[str, str | None]) -> list[dict[str, str]]:
    """Packages older than the floors of our own metadata."""
    try:
        from packaging.requirements import Requirement

        needed = metadata.requires("scalekv") or []
    except (ImportError, metadata.PackageNotFoundError):
        return []
    problems = []
    for requirement in map(Requirement, needed):
        found = versions.get(requirement.name)
        if found is not None and not requirement.specifier.contains(found, prereleases=True):
            text = f"version {found} does not meet {requirement.specifier}"
            problems.append(
                _problem(requirement.name, text, f"pip install '{requirement.name}{requirement.specifier}'")
            )
    return problems


def _broken(versions: dict[str, str | None], torch_is_broken: bool) -> list[dict[str, str]]:
    """Installed packages that do not import; pointless to ask while torch itself does not."""
    if torch_is_broken:
        return []
    problems = []
    for name in (*PROBED, *OPTIONAL, "diffusers", "transformers"):
        if versions[name] is None:
            continue
        try:
            importlib.import_module(name.replace("-", "_"))
        except Exception as error:  # as above: anything can come out of a mismatched binary
            mend = f"pip install --force-reinstall {name}"
            if name in PROBED:
                mend = f"pip uninstall {name} (not needed here), or install the build that matches torch"
            problems.append(_problem(name, f"does not import: {_first_line(error)}", mend))
    return problems


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _print_text(output: Output, found: dict[str, Any]) -> None:
    output.say(f"scalekv {found['scalekv']}, Python {found['python']}, {found['platform']}", style="bold")
    torch = found["torch"]
    if torch is None:
        output.say("torch does not work; see below")
    else:
        build = f"CUDA {torch['cuda_build']}" if torch["cuda_build"] else "CPU only"
        output.say(f"torch {torch['version']} ({build}), {torch['threads']} threads")
        for device in torch["devices"]:
            memory = f", {format_bytes(device['bytes'])}" if "bytes" in device else ""
            output.say(f"device {device['name']}: {device['kind']}{memory}")
    output.say()
    installed = {name: version for name, version in found["packages"].items() if version}
    width = max(map(len, installed), default=0)
    for name, version in installed.items():
        output.say(f"{name:<{width}}  {version}")
    output.say()
    for problem in found["problems"]:
        output.say(f"{problem['package']}: {problem['problem']}", style="yellow")
        output.say(f"  mend: {problem['mend']}")
    if not found["problems"]:
        output.say("Nothing is broken.", style="green")
