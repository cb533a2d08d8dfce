#!/bin/sh
# python.py, with the same argument.
set -eu
exec python3 "$(dirname "$0")/python.py" "$1"
