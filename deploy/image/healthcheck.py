"""Check whether the server in this container is ready: exit code 0 if ``/ready`` has status 200, otherwise 1.

It sends a request as a client does, with the port and keys from the server's variables. It does not know the server's
flags.
"""

import http.client
import os
import sys
from pathlib import Path

TIMEOUT_S = 4
KEYS_FILE = Path("/run/secrets/griffin_api_keys")


def main() -> int:
    # http.client, because urllib would use a proxy that the environment names.
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("GRIFFIN_PORT") or 8000), TIMEOUT_S)
    try:
        connection.request("GET", "/ready", headers=authorization())
        response = connection.getresponse()
        print(response.status, response.read(200).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        return 1
    return 0 if response.status == http.HTTPStatus.OK else 1


def authorization() -> dict[str, str]:
    """A header with the first API key, which ``/ready`` needs if operations are not open."""
    keys = os.environ.get("GRIFFIN_API_KEYS") or (KEYS_FILE.read_text() if KEYS_FILE.is_file() else "")
    key = next(filter(None, map(str.strip, keys.split(","))), "")
    return {"Authorization": f"Bearer {key}"} if key else {}


if __name__ == "__main__":
    sys.exit(main())
