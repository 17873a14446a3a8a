"""python -m studio [--port 7860] [--share]"""

import sys

import tyro

from studio import launch

if __name__ == "__main__":
    try:
        tyro.cli(launch, prog="python -m studio")
    except (ImportError, ValueError, OSError) as error:
        print(f"studio: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
