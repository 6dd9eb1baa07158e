#!/bin/sh
# Prepares the installed Hamilton UI to be served: `prepare.sh /opt/venv`.
set -eu
build=$PWD
cd "$1"/lib/python3.*/site-packages/hamilton_ui

# Remove requests to third parties.
PYTHONPATH="$build" "$1/bin/python" -c '
from pathlib import Path
import ui_files
page = Path("build/index.html")
page.write_text(ui_files.clean(page.read_text()))
'
if grep -E '(src|href)="https?:' build/index.html; then
  echo "the UI still loads the above" >&2
  exit 1
fi

# Compress files once, not on each request.
"$1/bin/python" -m whitenoise.compress --quiet build

# The modules of the package are top-level modules: server, trackingserver_base, …
pwd > ../hamilton_ui.pth
