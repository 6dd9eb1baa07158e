#!/bin/sh
# Creates /opt/venv with the locked packages of dependency groups: `install.sh --only-group prefect`.
# With TARGET=/opt/base, the packages are installed there, for the interpreter itself, and /opt/venv stays empty.
# `uv sync` would download from the addresses in uv.lock; this installs the locked versions and hashes from any index.
set -eu
target=${TARGET:-}
uv venv --quiet --python /usr/local/bin/python3 ${target:+--system-site-packages} /opt/venv
site=$(echo /opt/venv/lib/python3.*/site-packages)
uv export --quiet --frozen --no-default-groups --no-emit-project --output-file requirements.txt "$@"
VIRTUAL_ENV=/opt/venv uv pip install --quiet --no-config --no-deps --require-hashes --requirements requirements.txt \
  ${target:+--target "$target"}
# Symbols for debuggers: 14 MB of `flows`.
find "${target:-$site}" -type f -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
./slim.sh "${target:-$site}"
# The package of this project is in a separate layer.
echo /opt/prefect-hamilton > "$site/prefect-hamilton.pth"
