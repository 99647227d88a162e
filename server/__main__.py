"""``python -m server``."""

import gc


def serve() -> None:
    """Import everything, then serve until the process is told to stop."""
    # Imported objects stay alive. Collecting garbage among them takes a fifth of the import time.
    gc.disable()
    from server.process import leave, main

    gc.freeze()
    gc.enable()
    leave(main())


if __name__ == "__main__":
    serve()
