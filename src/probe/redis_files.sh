# shellcheck shell=sh
# What a Redis server would load at its start, looked at by its own check tools. It changes nothing; runs in a helper of the
# server's image that sees the server's mounts. One `key=value` line per fact.
#
# From the command line, or empty: $CONF the configuration file, $ARG_DIR, $ARG_SNAPSHOT, $ARG_APPENDONLY, $ARG_LOGS,
# $ARG_NAME. $WORKDIR is the directory that the server starts in.
export LC_ALL=C
configured() {
    [ -n "$CONF" ] && [ -r "$CONF" ] || return 0
    awk -v key="$1" 'tolower($1) == key { value = $2; gsub(/["\047]/, "", value); found = value } END { print found }' "$CONF"
}
# The command line counts, then the file, then what the server takes by itself.
setting() {
    value=$1
    [ -n "$value" ] || value=$(configured "$2")
    echo "${value:-$3}"
}
cd "$WORKDIR" 2>/dev/null || cd /
dir=$(setting "$ARG_DIR" dir "$WORKDIR")
cd "$dir" || { echo "error=there is no directory $dir"; exit 0; }
snapshot=$(setting "$ARG_SNAPSHOT" dbfilename dump.rdb)
logs=$(setting "$ARG_LOGS" appenddirname appendonlydir)
name=$(setting "$ARG_NAME" appendfilename appendonly.aof)
echo "directory=$(pwd)"
echo "snapshot-name=$snapshot"
echo "append-only=$(setting "$ARG_APPENDONLY" appendonly no)"
echo "append-name=$name"
echo "owner=$(stat -c %u:%g .)"
df -Pk . | tail -n 1 | { read -r _ _ _ free _; echo "free=$free"; }
command -v redis-check-rdb >/dev/null && command -v redis-check-aof >/dev/null || echo 'error=the image has no redis-check-rdb and redis-check-aof'

# Which program wrote a file stands in its first bytes.
header() { head -c 9 "$1" | tr -cd 'A-Za-z0-9'; }

if [ -f "$snapshot" ]; then
    stat -c 'snapshot=%s %Y' -- "$snapshot"
    echo "snapshot-header=$(header "$snapshot")"
    redis-check-rdb "$snapshot" 2>&1 | sed 's/^/check-snapshot=/'
fi

# Since version 7 a directory with a manifest, before that one file.
said=$(mktemp)
if [ -d "$logs" ]; then
    echo "append-entry=$logs"
    for file in "$logs"/*; do [ -f "$file" ] && stat -c 'append-file=%s %n' -- "$file"; done
    for base in "$logs/$name".*.base.rdb; do [ -f "$base" ] && echo "base-header=$(header "$base")"; done
    if [ -f "$logs/$name.manifest" ]; then
        sed 's/^/manifest=/' "$logs/$name.manifest"
        redis-check-aof "$logs/$name.manifest" >"$said" 2>&1 </dev/null
    fi
    within=$logs/
elif [ -f "$name" ]; then
    echo "append-entry=$name"
    stat -c 'append-file=%s %n' -- "$name"
    redis-check-aof "$name" >"$said" 2>&1 </dev/null
    within=''
fi
sed 's/^/check-append=/' "$said"
# Commands behind the damage: each begins with the number of its words.
sed -n 's/^AOF analyzed: \(filename=\(.*\), \)\{0,1\}size=[0-9]*, ok_up_to=\([0-9]*\),.* diff=[1-9][0-9]*$/\3 \2/p' "$said" |
    while read -r at file; do
        [ -n "$file" ] || file=$name
        echo "behind=$(tail -c "+$((at + 1))" "$within$(basename "$file")" | grep -ac '^\*[0-9]')"
    done
rm -f "$said"
