# shellcheck shell=sh
# Damages the files of a PostgreSQL cluster on purpose, and puts them right again.
#
#   damage DIR KIND [ARGUMENTS]    saves the original in DIR, then damages
#   state DIR KIND [ARGUMENTS]     prints `damaged`, `intact`, or `replaced` and the reason
#   restore DIR KIND [ARGUMENTS]   as `state`, and puts the original back where that says `damaged`
#   forget DIR                     removes DIR
#
# Runs in a helper of the server's own image with the server's mounts. Plain POSIX shell: some images have only
# busybox. Everything is known from what stands in DIR, so that it makes no difference where a run was killed:
# `inode` is written last before the damage, and without it nothing was damaged.
set -eu
umask 077
block_size=8192
cd "$PGDATA"

fail() { echo "$*" >&2; exit 1; }
# shellcheck disable=SC2046,SC2012
inode() { set -- $(ls -di "$1"); echo "$1"; }
# shellcheck disable=SC2046,SC2012
size() { set -- $(ls -dn "$1"); echo "$5"; }
# shellcheck disable=SC2046,SC2012
owner() { set -- $(ls -dn "$1"); echo "$3:$4"; }
page() { dd if="$path" bs=$block_size skip="$block" count=1 2>/dev/null; }
put_page() { dd if="$1" of="$path" bs=$block_size seek="$block" conv=notrunc 2>/dev/null; }
# The server must be able to read (a base backup copies it) and remove what lies in its directory.
give_away() { chown "$(owner .)" "${dir%/*}"; chown -R "$(owner .)" "$dir"; sync; }

# From here on the fault counts as begun.
begin() {
    inode "$1" >"$dir/inode.new"
    give_away
    mv "$dir/inode.new" "$dir/inode"
    sync
}

scramble() {
    page >"$dir/saved"
    [ "$(size "$dir/saved")" = $block_size ] || fail "$path has no whole block $block"
    cp "$dir/saved" "$dir/left"
    dd if=/dev/urandom of="$dir/left" bs=1 seek="$1" count="$2" conv=notrunc 2>/dev/null
    begin "$path"
    put_page "$dir/left"
}

# The record that replay begins at: where it stands is in pg_control (PostgreSQL manual, pg_controldata).
find_checkpoint() {
    control=$(LC_ALL=C pg_controldata "$PGDATA")
    lsn=$(echo "$control" | sed -n 's/^Latest checkpoint location: *//p')
    segment=$(echo "$control" | sed -n 's/^Bytes per WAL segment: *//p')
    timeline=$(echo "$control" | sed -n "s/^Latest checkpoint's TimeLineID: *//p")
    [ -n "$lsn" ] && [ -n "$segment" ] && [ -n "$timeline" ] || fail "pg_controldata does not tell the checkpoint"
    high=$((0x${lsn%/*})) low=$((0x${lsn#*/}))
    path=$(printf 'pg_wal/%08X%08X%08X' "$timeline" "$high" $((low / segment)))
    block=$((low % segment / block_size))
    offset=$((low % block_size))
    length=$((block_size - offset))
    [ "$length" -le 64 ] || length=64
    echo "$path" >"$dir/path"
    echo "$block" >"$dir/block"
}

damage() {
    mkdir -p "$dir"
    case $kind in
    scramble) scramble "$1" "$2" ;;
    zero)
        page >"$dir/saved"
        [ "$(size "$dir/saved")" = $block_size ] || fail "$path has no whole block $block"
        dd if=/dev/zero of="$dir/left" bs=$block_size count=1 2>/dev/null
        begin "$path"
        put_page "$dir/left"
        ;;
    checkpoint)
        find_checkpoint
        scramble "$offset" "$length"
        ;;
    truncate)
        dd if="$path" of="$dir/saved" bs=$block_size skip="$1" 2>/dev/null
        size "$path" >"$dir/size"
        begin "$path"
        # POSIX: without notrunc the output file ends where writing began.
        dd if=/dev/null of="$path" bs=$block_size seek="$1" 2>/dev/null
        ;;
    remove)
        inode "${path%/*}" >"$dir/parent"
        begin "$path"
        mv "$path" "$dir/saved"
        ;;
    config)
        begin "$path"
        printf '%s # %s\n' "$1" "${dir##*/}" >>"$path"
        ;;
    version)
        cat "$path" >"$dir/saved"
        begin "$path"
        echo "$1" >"$path"
        ;;
    owner)
        begin "$path"
        chown -R 0:0 "$path"
        ;;
    mode)
        stat -c %a "$path" >"$dir/mode"
        begin "$path"
        chmod "$1" "$path"
        ;;
    plant)
        [ ! -e "$path" ] || fail "$path is there already"
        : >"$dir/plant"
        begin "$dir/plant"
        mv "$dir/plant" "$path"
        ;;
    *) fail "unknown damage $kind" ;;
    esac
    sync
    echo damaged
}

state() {
    if [ ! -d "$dir" ]; then
        echo "replaced: the saved original is gone, and the data directory around it"
    elif [ ! -e "$dir/inode" ]; then
        echo intact
    elif [ "$kind" = remove ]; then
        if [ ! -d "${path%/*}" ] || [ "$(inode "${path%/*}")" != "$(cat "$dir/parent")" ]; then
            echo "replaced: its directory is another one"
        elif [ ! -e "$path" ]; then
            if [ -e "$dir/saved" ]; then echo damaged; else echo "replaced: the saved original is gone"; fi
        elif [ "$(inode "$path")" = "$(cat "$dir/inode")" ]; then
            echo intact
        else
            echo "replaced: another file stands in its place"
        fi
    elif [ "$kind" = plant ] && [ ! -e "$path" ]; then
        echo intact
    elif [ ! -e "$path" ]; then
        echo "replaced: $path no longer exists"
    elif [ "$kind" != config ] && [ "$kind" != version ] && [ "$(inode "$path")" != "$(cat "$dir/inode")" ]; then
        echo "replaced: another file stands in its place"
    else
        case $kind in
        scramble | zero | checkpoint)
            if page | cmp -s - "$dir/left"; then echo damaged
            elif page | cmp -s - "$dir/saved"; then echo intact
            else echo "replaced: the block has been written to since"; fi
            ;;
        truncate)
            now=$(size "$path")
            if [ -e "$dir/restoring" ] || [ "$now" = $(($1 * block_size)) ]; then echo damaged
            elif [ "$now" = "$(cat "$dir/size")" ]; then echo intact
            else echo "replaced: it has been written to since"; fi
            ;;
        # A line that has become a comment does no harm any more.
        config) if grep -q "^[^#].*# ${dir##*/}\$" "$path"; then echo damaged; else echo intact; fi ;;
        version) if [ "$(cat "$path")" = "$1" ]; then echo damaged; else echo intact; fi ;;
        owner) if [ "$(owner "$path")" = 0:0 ]; then echo damaged; else echo intact; fi ;;
        mode) if [ "$(stat -c %a "$path")" = "$1" ]; then echo damaged; else echo intact; fi ;;
        plant) echo damaged ;;
        esac
    fi
}

# A whole small file at once, with the owner that the directory has.
replace() {
    chown "$(owner .)" "$1"
    sync
    mv "$1" "$path"
}

put_back() {
    case $kind in
    scramble | zero | checkpoint) put_page "$dir/saved" ;;
    truncate)
        : >"$dir/restoring"
        dd if="$dir/saved" of="$path" bs=$block_size seek="$1" conv=notrunc 2>/dev/null
        rm "$dir/restoring"
        ;;
    remove) mv "$dir/saved" "$path" ;;
    config)
        grep -v "# ${dir##*/}\$" "$path" >"$path.new" || [ $? = 1 ]
        replace "$path.new"
        ;;
    version)
        cat "$dir/saved" >"$path.new"
        replace "$path.new"
        ;;
    owner) chown -R "$(owner .)" "$path" ;;
    mode) chmod "$(cat "$dir/mode")" "$path" ;;
    plant) rm -f "$path" ;;
    esac
    sync
}

forget() {
    rm -rf "$dir"
    rmdir "${dir%/*}" 2>/dev/null || :
}

action=$1 dir=$2
case $dir in
"$PGDATA"/.drctl/fault-*) ;;
*) fail "$dir is no directory of a fault" ;;
esac
shift 2
if [ "$action" = forget ]; then
    forget
    exit
fi
kind=$1
shift
path='' block=''
case $kind in
checkpoint)
    [ ! -e "$dir/path" ] || path=$(cat "$dir/path")
    [ ! -e "$dir/block" ] || block=$(cat "$dir/block")
    ;;
scramble | zero)
    path=$1 block=$2
    shift 2
    ;;
*)
    path=$1
    shift
    ;;
esac
case $action in
damage) damage "$@" ;;
state) state "$@" ;;
restore)
    found=$(state "$@")
    if [ "$found" = damaged ]; then
        put_back "$@"
    fi
    echo "$found"
    ;;
*) fail "unknown action $action" ;;
esac
