#!/bin/sh
# Makes /opt/venv with what uv.lock says of some dependency groups: `install.sh --only-group prefect`.
# `uv sync` would fetch from the addresses in the lock; this takes the lock's versions and hashes from any index.
set -eu
uv venv --quiet --python /usr/local/bin/python3 /opt/venv
uv export --quiet --frozen --no-default-groups --no-emit-project --output-file requirements.txt "$@"
VIRTUAL_ENV=/opt/venv uv pip install --quiet --no-config --no-deps --require-hashes --requirements requirements.txt
./slim.sh /opt/venv
# The project's own package is a layer of its own.
echo /opt/prefect-hamilton > "$(echo /opt/venv/lib/python3.*/site-packages)/prefect-hamilton.pth"
