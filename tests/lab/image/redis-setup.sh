#!/bin/sh
# Run in the root file system before it becomes the Redis image. Both official images give their service uid 999;
# here they share a root file system, so PostgreSQL's user goes.
set -eu
userdel postgres
groupmod -g 999 redis
usermod -u 999 -g 999 -d /data redis
install -d -o redis -g redis -m 755 /data
