# shellcheck shell=sh
# Damages on purpose what a Redis server loads at its start, and puts it right again. The server does not run meanwhile.
# $DIR is the data directory, $SNAPSHOT and $ENTRY the names of its snapshot and of its append-only file (a directory),
# $NAME what the files of that are called, $SAVED where the originals are.
#
#   damage KIND    saves the originals, then damages
#   state          prints `damaged`, or `replaced` where the damaged file is there no more
#   restore        puts the originals back where that says `damaged`; removes what was saved
set -eu
export LC_ALL=C
cd "$DIR"
fail() { echo "$*" >&2; exit 1; }
# shellcheck disable=SC2046,SC2012
inode() { set -- $(ls -di "$1" 2>/dev/null); echo "${1:-none}"; }

part() {
    for file in "$ENTRY/$NAME".*."$1"; do
        [ -f "$file" ] && { echo "$file"; return; }
    done
    fail "there is no $ENTRY/$NAME.*.$1"
}

damage() {
    mkdir -p "$SAVED"
    chmod 700 "$SAVED"
    case $1 in
    rdb-*) kept=$SNAPSHOT ;;
    *) kept=$ENTRY ;;
    esac
    [ -e "$kept" ] || fail "there is no $kept in $DIR"
    cp -a "$kept" "$SAVED/original"
    echo "$kept" >"$SAVED/kept"
    case $1 in
    rdb-checksum)
        hit=$SNAPSHOT
        size=$(stat -c %s "$hit")
        head -c 4 /dev/urandom | dd of="$hit" bs=1 seek=$((size - 6)) conv=notrunc 2>/dev/null
        ;;
    rdb-damaged)
        hit=$SNAPSHOT
        size=$(stat -c %s "$hit")
        dd if=/dev/null of="$hit" bs=1 seek=$((size / 2)) 2>/dev/null
        ;;
    aof-damaged)
        hit=$(part incr.aof)
        # In front of commands that are sound: what comes behind it is lost with it.
        printf 'no command\r\n' >>"$hit"
        for n in 1 2 3 4 5; do printf '*3\r\n$3\r\nSET\r\n$6\r\nlost:%d\r\n$1\r\n%d\r\n' "$n" "$n" >>"$hit"; done
        ;;
    aof-base)
        hit=$(part base.rdb)
        size=$(stat -c %s "$hit")
        dd if=/dev/null of="$hit" bs=1 seek=$((size / 2)) 2>/dev/null
        ;;
    rdb-version)
        # The version is looked at before all else, the checksum last.
        hit=$SNAPSHOT
        printf REDIS0099 | dd of="$hit" conv=notrunc 2>/dev/null
        ;;
    aof-version)
        hit=$(part base.rdb)
        printf REDIS0099 | dd of="$hit" conv=notrunc 2>/dev/null
        ;;
    aof-manifest)
        hit=$ENTRY/$NAME.manifest
        printf 'no manifest\n' >"$hit"
        ;;
    *) fail "no such kind: $1" ;;
    esac
    echo "$hit" >"$SAVED/hit"
    inode "$hit" >"$SAVED/inode"
    sync
}

state() {
    if [ -e "$SAVED/inode" ] && [ "$(inode "$(cat "$SAVED/hit")")" = "$(cat "$SAVED/inode")" ]; then
        echo damaged
    else
        echo replaced
    fi
}

case $1 in
damage) damage "$2" ;;
state) state ;;
restore)
    if [ "$(state)" = damaged ] && [ -e "$SAVED/original" ]; then
        kept=$(cat "$SAVED/kept")
        rm -rf "$kept"
        mv "$SAVED/original" "$kept"
    fi
    rm -rf "$SAVED"
    sync
    ;;
esac
