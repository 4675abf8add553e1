"""Build the wheel, install it beside its required packages alone, and run README's example there.

The environment is new and empty. Links to this environment's torch, NumPy, safetensors and what
they require stand in for their installation, so that torch is not downloaded again.
"""

import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CORE = ("torch", "numpy", "safetensors")


def required(name: str, found: dict[str, set[Path]]) -> dict[str, set[Path]]:
    """Collect the folders and files of a package, and of all packages that it requires."""
    if name not in found:
        package = distribution(name)
        tops = {Path(file.parts[0]) for file in package.files or () if file.parts[0] != ".."}
        found[name] = {Path(str(package.locate_file(top))) for top in tops}
        for line in package.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                try:
                    required(requirement.name, found)
                except PackageNotFoundError:
                    sys.exit(f"{name} lacks {requirement.name}; run: make setup")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="delaygrad-package-") as temporary:
        folder = Path(temporary)
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "empty", symlinks=True)
        python = folder / "empty" / "bin" / "python"
        (site,) = (folder / "empty").glob("lib/python*/site-packages")
        found: dict[str, set[Path]] = {}
        for name in CORE:
            required(name, found)
        for path in set().union(*found.values()):
            if path.name != "__pycache__":
                (site / path.name).symlink_to(path)
        install = ["--python", python, "install", "--no-index", wheel]
        subprocess.run([*pip, *install], check=True)
        (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        command = [python, "-I", "-W", "error", "-c", example]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        command = [folder / "empty" / "bin" / "delaygrad", "--version"]
        refusal = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if "pip install 'delaygrad[cli]'" not in refusal.stderr:
            sys.exit(f"the command does not name its extra: {refusal.stdout}{refusal.stderr}")
        print(f"{wheel.name} runs beside {', '.join(sorted(found))}; {refusal.stderr.strip()}")


if __name__ == "__main__":
    main()
