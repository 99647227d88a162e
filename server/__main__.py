"""``python -m server``."""

import gc


def serve() -> None:
    """Import everything, and serve until told to stop."""
    # All that imports make stays. Looking for garbage in it again and again takes a fifth of their time.
    gc.disable()
    from server.process import leave, main

    gc.freeze()
    gc.enable()
    leave(main())


if __name__ == "__main__":
    serve()
