#!/usr/bin/env python3
"""Exit code 0 if the address that is given answers with a status below 400: what containers and pods are asked."""

import sys
import urllib.request

try:
    urllib.request.urlopen(sys.argv[1], timeout=8).close()  # noqa: S310 - of the image's own processes
except OSError as error:
    raise SystemExit(f"{sys.argv[1]}: {error}") from None
