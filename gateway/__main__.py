"""``python -m gateway`` is ``hyperleap-gateway``."""

from gateway.cli import main

if __name__ == "__main__":
    main(prog_name="hyperleap-gateway")
