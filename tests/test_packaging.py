"""The wheel, installed away from the repository, does what the checkout does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# One ridge coefficient: theta = p / (a + e^phi), F = theta, dF/dphi = -e^phi p / (a + e^phi)^2.
# numpy and scipy are hidden from the package: torch is all that it may need.
CALL_FROM_OUTSIDE = """
import json, sys
import torch  # imports numpy where there is one, and warns where there is none
sys.modules["numpy"] = sys.modules["scipy"] = None
import bilevel

phi = torch.tensor(0.0, dtype=torch.float64)
theta = torch.tensor(3.0 / (2.0 + 1.0), dtype=torch.float64)
gradient = bilevel.implicit_grad(
    lambda phi, theta: theta,
    lambda phi, theta: 0.5 * (2.0 + phi.exp()) * theta**2 - 3.0 * theta,
    phi,
    theta,
)
print(json.dumps({"file": bilevel.__file__, "gradient": gradient.item()}))
"""


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, run away from the repository."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without downloading anything."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    _run(sys.executable, "-m", "pip", "wheel", *options, REPOSITORY, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_an_installed_wheel_gives_the_hypergradient_outside_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = environment / scripts / "python"
    options = ("--no-index", "--no-deps", "--quiet")
    _run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path)
    (site_packages,) = environment.rglob("site-packages")
    # torch is large: lend the new environment the one that runs this test. Its own .pth files, and
    # with them an editable install of this checkout, are not read from there.
    (site_packages / "lend_torch.pth").write_text(sysconfig.get_path("platlib") + "\n")

    answer = json.loads(_run(python, "-W", "error", "-c", CALL_FROM_OUTSIDE, cwd=tmp_path))

    assert Path(answer["file"]).is_relative_to(environment)
    assert not Path(answer["file"]).is_relative_to(REPOSITORY)
    assert answer["gradient"] == pytest.approx(-1.0 / 3.0, rel=1e-12)


def test_the_wheel_holds_the_typed_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}
    packages = {top for top in top_level if not top.endswith(".dist-info")}

    assert "bilevel" in packages
    assert packages <= {"bilevel", "structured"}
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    assert all(
        name.endswith((".py", ".tsv", "py.typed")) or ".dist-info/" in name for name in names
    )


def test_the_package_needs_torch_alone() -> None:
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch"]


def test_the_constraints_pin_every_direct_requirement_within_its_range() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    wanted = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, itertools.chain.from_iterable(wanted)):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[requirement.name]), requirement
