"""``delaygrad`` and ``python -m delaygrad``: the command line, if its packages are installed."""

import sys
from importlib.util import find_spec

from delaygrad.errors import lacks

PACKAGES = {
    "docstring_parser": "docstring-parser",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "msgspec": "msgspec",
    "pooch": "pooch",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "tyro": "tyro",
}
"""What the extra ``cli`` installs: modules and their packages."""


def main() -> None:
    """Run the command line; exits with 1 if a package is missing."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        sys.exit(f"delaygrad: {lacks(', '.join(missing), 'the command line')}")
    from delaygrad.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
