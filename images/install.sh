#!/bin/sh
# Makes /opt/venv with what uv.lock says of some dependency groups: `install.sh --only-group prefect`.
# With TARGET=/opt/base the packages go there, for the interpreter itself, and the environment on top of it stays empty.
# `uv sync` would fetch from the addresses in the lock; this takes the lock's versions and hashes from any index.
set -eu
target=${TARGET:-}
uv venv --quiet --python /usr/local/bin/python3 ${target:+--system-site-packages} /opt/venv
site=$(echo /opt/venv/lib/python3.*/site-packages)
uv export --quiet --frozen --no-default-groups --no-emit-project --output-file requirements.txt "$@"
VIRTUAL_ENV=/opt/venv uv pip install --quiet --no-config --no-deps --require-hashes --requirements requirements.txt \
  ${target:+--target "$target"}
./slim.sh "${target:-$site}"
# The project's own package is a layer of its own.
echo /opt/prefect-hamilton > "$site/prefect-hamilton.pth"
