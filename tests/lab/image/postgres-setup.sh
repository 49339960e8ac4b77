#!/bin/sh
# Run in the root file system before it becomes the PostgreSQL image. The socket's directory lies under /run, which
# mmdebstrap leaves empty, and to which a path from the outside would lead to the host's.
set -eu
install -d -o postgres -g postgres -m 3777 /var/run/postgresql
