#!/bin/sh
# Removes files that are not needed at run time, and compiles the rest: `slim.sh /opt/venv/lib/python3.13/site-packages`.
set -eu
site=$1

# Test suites, C headers and sources, and source maps of web UIs.
find "$site" -type d -name tests -prune -exec rm -rf {} +
rm -rf "$site/pyarrow/include" "$site/pyarrow/src" "$site/numpy/_core/include"
# Arrow's network server: 32 MB that are not needed to read and write files.
rm -f "$site"/pyarrow/libarrow_flight.so* "$site"/pyarrow/_flight*.so "$site"/pyarrow/flight.py
# Projects that the command line of Hamilton's SDK creates.
rm -rf "$site/hamilton_sdk/cli/templates"
find "$site" -type f \( -name '*.map' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.cpp' \
  -o -name '*.h' -o -name '*.hpp' \) -delete

# botocore describes every AWS service in 25 MB; object storage needs only S3 and authentication.
if [ -d "$site/botocore/data" ]; then
  find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +
fi

# Django's translations, which are not used.
find "$site" -path '*/django/*/locale/*' \( -name '*.po' -o -name '*.mo' \) ! -path '*/locale/en/*' -delete

# Bytecode that is not checked against its source, since files in an image do not change.
find "$site" -type d -name __pycache__ -prune -exec rm -rf {} +
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"
