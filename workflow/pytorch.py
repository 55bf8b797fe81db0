"""``python workflow/pytorch.py [--cpu | REQUIREMENT ...]``: install PyTorch into this environment.

On Linux, pip's default PyTorch brings CUDA's libraries. A machine without a GPU has no use for them, so there (and with
``--cpu``) the newest build without them is installed, if pip can find one. Anything else is left to pip: a requirement
of your own, a machine with a GPU, another operating system. A PyTorch that is already installed stays.
"""

import re
import subprocess
import sys
from importlib.util import find_spec

INDEX = "https://download.pytorch.org/whl/cpu"  # every release, built without CUDA
# An index that cannot be reached is a warning for pip, not an error. One retry, so that the warning comes in seconds.
WITH_INDEX = ("--extra-index-url", INDEX, "--retries", "1")


def pip(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], text=True, check=False, **options)


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return listed.stdout.startswith("GPU 0")


def newest_cpu_build() -> str | None:
    """The newest version that pip finds without CUDA's libraries, such as ``2.13.0+cpu``."""
    found = pip("index", "versions", "torch", *WITH_INDEX, capture_output=True)
    listed = re.search(r"^Available versions: (.*)$", found.stdout, re.MULTILINE)
    versions = listed[1].split(", ") if listed else []  # newest first
    return next((version for version in versions if version.endswith("+cpu")), None)


def install_without_cuda(reason: str) -> bool:
    """Install the newest build without CUDA's libraries; False if there is none or it cannot be installed.

    What it requires is installed with ragkv's own requirements, so that only PyTorch is looked for in that index.
    """
    version = newest_cpu_build()
    if version is None:
        problem = f"{INDEX} cannot be reached or has none for this machine"
    elif pip("install", "--quiet", "--no-deps", f"torch=={version}", *WITH_INDEX).returncode:
        problem = f"PyTorch {version} could not be installed"
    else:
        print(f"PyTorch {version}, without CUDA's libraries: {reason}. For a GPU: make setup TORCH=torch")
        return True
    print(f"No PyTorch without CUDA's libraries: {problem}. Installing the default one: about 3 GB instead of 0.2 GB")
    return False


def main(arguments: list[str]) -> int:
    requirement = [argument for argument in arguments if argument != "--cpu"]
    if not requirement and find_spec("torch"):
        return 0
    if not requirement and sys.platform == "linux":
        if "--cpu" in arguments:
            reason = "CPU=1"
        elif not has_gpu():
            reason = "nvidia-smi finds no GPU here"
        else:
            reason = ""
        if reason and install_without_cuda(reason):
            return 0
    return pip("install", "--quiet", *(requirement or ["torch"])).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
