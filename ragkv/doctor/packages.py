"""Are the packages installed that ragkv and its extras require?"""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

EXTRAS = ("evaluation", "rag", "notebooks", "hub", "s3", "gpu", "slurm")  # those for users, not for development


def missing(extra: str = "") -> list[str]:
    """Packages that ragkv requires, or that only an extra of it requires, and that are not installed.

    Raises
    ------
    PackageNotFoundError
        ragkv itself is not installed.
    """
    return [requirement.name for requirement in _required(extra) if _installed(requirement) is None]


def outdated(extra: str = "") -> list[str]:
    """Those in a version that does not fit, such as ``"torch is 2.0.1, needs >=2.11"``; errors as in `missing`."""
    installed = [(requirement, _installed(requirement)) for requirement in _required(extra)]
    return [
        f"{requirement.name} is {found}, needs {requirement.specifier}"
        for requirement, found in installed
        if found is not None and not requirement.specifier.contains(found, prereleases=True)
    ]


def _required(extra: str) -> list[Requirement]:
    """What the core requires; of an extra what it requires beyond that, other extras of ragkv included."""
    found = []
    for requirement in map(Requirement, requires("ragkv") or []):
        marker = requirement.marker
        in_core = marker is None or marker.evaluate({"extra": ""})
        in_extra = bool(extra) and marker is not None and marker.evaluate({"extra": extra}) and not in_core
        if not (in_extra if extra else in_core):
            continue
        if requirement.name == "ragkv":
            found += [further for other in sorted(requirement.extras) for further in _required(other)]
        else:
            found.append(requirement)
    return found


def _installed(requirement: Requirement) -> str | None:
    """The version of its distribution, which need not be the module's: torch calls itself ``2.13.0+cu130``."""
    try:
        return version(requirement.name)
    except PackageNotFoundError:
        return None
