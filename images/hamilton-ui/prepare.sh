#!/bin/sh
# Makes the installed Hamilton UI ready to serve: `prepare.sh /opt/venv`. Used by the image's build stage.
set -eu
build=$PWD
cd "$1"/lib/python3.*/site-packages/hamilton_ui

# The page without its calls to third parties.
PYTHONPATH="$build" "$1/bin/python" -c '
from pathlib import Path
import ui_files
page = Path("build/index.html")
page.write_text(ui_files.clean(page.read_text()))
'
if grep -E '(src|href)="https?:' build/index.html; then
  echo "the page still loads the above" >&2
  exit 1
fi

# Compressed once, not at each request.
"$1/bin/python" -m whitenoise.compress --quiet build

# The package's own modules are top-level ones: server, trackingserver_base, ...
pwd > ../hamilton_ui.pth
