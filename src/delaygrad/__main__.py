"""``python -m delaygrad`` is the ``delaygrad`` command; torchrun's ``-m`` needs it."""

from delaygrad.cli.main import main

if __name__ == "__main__":
    main()
