# What the demo, the tests and CI need of the host; to be sourced, by bash.
# shellcheck shell=bash

host_say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# The same deadline as everywhere: an engine that accepts and never answers is no engine.
engine_answers() {
    command -v docker >/dev/null && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

no_engine() {
    host_say "no Docker engine answers (DOCKER_HOST=${DOCKER_HOST:-unset})"
    cat >&2 <<'TEXT'
  Debian, Ubuntu:      sudo apt-get install docker.io
  start it:            sudo systemctl start docker      (without systemd: sudo dockerd &)
  without being root:  sudo usermod -aG docker "$USER"  and log in again
  see what is wrong:   docker version
TEXT
}

# Debian packages that are missing for: the image build, Compose, cargo's linker, and asking the stack over HTTP.
missing_packages() {
    command -v mmdebstrap >/dev/null || echo mmdebstrap
    command -v zstd >/dev/null || echo zstd
    command -v curl >/dev/null || echo curl
    command -v cc >/dev/null || echo gcc libc6-dev
    if ! docker compose version >/dev/null 2>&1 && ! command -v docker-compose >/dev/null; then
        echo docker-compose
    fi
}

# What the tests of a remote engine need beyond that: an SSH server, of which they start one of their own.
missing_for_ssh() {
    [ -x /usr/sbin/sshd ] || echo openssh-server
    command -v ssh >/dev/null || echo openssh-client
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        host_say "this needs root, and there is no sudo: $*"
        return 1
    fi
}

# A mirror that is busy for a moment is the commonest reason for a red build.
retry() {
    local try
    for try in 1 2 3 4; do
        if "$@"; then
            return 0
        fi
        host_say "failed (attempt $try of 4): $*"
        [ "$try" = 4 ] || sleep $((try * 5))
    done
    return 1
}

# Installs what is missing and the packages named, and says so first.
install_missing() {
    local -a wanted
    mapfile -t wanted < <({
        missing_packages
        [ $# -eq 0 ] || printf '%s\n' "$@"
    } | tr ' ' '\n' | sort -u)
    if [ ${#wanted[@]} -eq 0 ] || [ -z "${wanted[0]}" ]; then
        return 0
    fi
    if ! command -v apt-get >/dev/null; then
        host_say "missing, and this host has no apt-get to install it: ${wanted[*]}"
        return 1
    fi
    host_say "installing with apt-get: ${wanted[*]}"
    retry as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # Ubuntu's package of the plain name is the old Compose; Debian has but one.
    if apt-cache show docker-compose-v2 >/dev/null 2>&1; then
        mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | sed 's/^docker-compose$/&-v2/')
    fi
    retry as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
}
