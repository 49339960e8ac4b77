# shellcheck shell=sh
# Changes what keeps a sound PostgreSQL server from running, and puts it back. `$D` is the data directory, `$W` the
# run's directory in it, `$RUN` the run (`prelude.sh`, which stands before it). Each can be cut off anywhere and run again.
#
#   set-aside FILE LINE BEGINNING …    makes comments of lines
#   put-lines-back                     makes lines of those comments again
#   fix-permissions UID:GID            gives files back to their server
#   restore-permissions                gives them the owner and mode that they had
#   make-missing UID:GID VERSION DIR …  makes directories, and PG_VERSION where VERSION is not empty
#   move-aside FILE …                  moves files out of the data directory
#   move-back FILE …
cd "$D" || exit
mark="# drctl $RUN set this aside: "

# The server must be able to remove what lies in its directory, and a base backup to read it.
make_dir() {
    mkdir -p "$W/$1"
    [ "$(id -u)" != 0 ] || chown "$(stat -c %u:%g .)" .drctl "$W" "$W/$1"
    chmod 700 .drctl "$W" "$W/$1"
}

# Takes the place of file $1 at once, with its owner and mode; the new text is on standard input.
replace() {
    rm -f "$1.drctl-new"
    cp -p "$1" "$1.drctl-new"
    cat >"$1.drctl-new"
    sync
    mv "$1.drctl-new" "$1"
    sync
}

keep() {
    [ ! -e "$W/config/$1" ] || return 0
    cp -p "$1" "$W/config/$1.new"
    sync
    mv "$W/config/$1.new" "$W/config/$1"
}

set_aside() {
    make_dir config
    while [ $# -gt 0 ]; do
        file=$1 number=$2 begins=$3
        shift 3
        now=$(sed -n "${number}p" "$file")
        case $now in "$mark"*) continue ;; esac
        # The server's own program reads a line without what stands before it.
        case $(printf '%s\n' "$now" | sed 's/^[[:space:]]*//') in
        "$begins"*) ;;
        *) fail "line $number of $file is not what it was: nothing of it was changed" ;;
        esac
        keep "$file"
        # awk and not sed: the mark may hold anything.
        awk -v n="$number" -v mark="$mark" 'NR == n { $0 = mark $0 } { print }' "$file" | replace "$file"
        echo "aside $file $number"
    done
}

put_lines_back() {
    for kept in "$W"/config/*; do
        file=${kept##*/}
        case $file in *.new) continue ;; esac
        [ -e "$kept" ] && [ -e "$file" ] || continue
        if grep -qF "$mark" "$file"; then
            awk -v mark="$mark" 'index($0, mark) == 1 { $0 = substr($0, length(mark) + 1) } { print }' "$file" |
                replace "$file"
            echo "back $file"
        elif ! cmp -s "$kept" "$file"; then
            # ALTER SYSTEM writes its file anew, without comments.
            echo "rewritten $file"
        fi
    done
}

fix_permissions() {
    owner=$1 uid=${1%%:*}
    mkdir -p "$W"
    if [ ! -e "$W/permissions" ]; then
        paths=.
        # A link leads to another file system, which `find .` does not enter.
        [ ! -L pg_wal ] || paths='. pg_wal/'
        # shellcheck disable=SC2086
        find $paths -path ./.drctl -prune -o \
            \( ! -user "$uid" -o -type d ! -perm -700 -o -type f ! -perm -600 \) -print |
            while IFS= read -r name; do stat -c '%u:%g %a %n' -- "$name"; done >"$W/permissions.new"
        # A server refuses a directory that others may write or look into (manual, 19.2).
        case $(stat -c %a .) in 700 | 750) ;; *)
            grep -q ' \.$' "$W/permissions.new" || stat -c '%u:%g %a %n' . >>"$W/permissions.new"
            ;;
        esac
        sync
        mv "$W/permissions.new" "$W/permissions"
        sync
    fi
    while IFS= read -r entry; do
        was=${entry%% *} name=${entry#* }
        name=${name#* }
        [ -e "$name" ] || [ -L "$name" ] || continue
        [ "${was%%:*}" = "$uid" ] || chown -h "$owner" "$name"
        if [ -L "$name" ]; then :
        elif [ "$name" = . ]; then
            case $(stat -c %a .) in 700 | 750) ;; *) chmod 700 . ;; esac
        elif [ -d "$name" ]; then chmod u+rwx "$name"
        else chmod u+rw "$name"; fi
    done <"$W/permissions"
    chown "$owner" .drctl "$W" "$W/permissions"
    chmod 700 .drctl "$W"
    sync
    echo "files $(wc -l <"$W/permissions")"
}

restore_permissions() {
    [ -e "$W/permissions" ] || return 0
    while IFS= read -r entry; do
        was=${entry%% *} name=${entry#* }
        mode=${name%% *} name=${name#* }
        [ -e "$name" ] || [ -L "$name" ] || continue
        chown -h "$was" "$name"
        [ -L "$name" ] || chmod "$mode" "$name"
    done <"$W/permissions"
    sync
    echo "files $(wc -l <"$W/permissions")"
}

make_missing() {
    owner=$1 version=$2
    shift 2
    for name; do
        [ ! -d "$name" ] || continue
        mkdir -m 700 "$name"
        chown "$owner" "$name"
        echo "made $name"
    done
    if [ -n "$version" ] && [ ! -s PG_VERSION ]; then
        echo "$version" >PG_VERSION.drctl-new
        chown "$owner" PG_VERSION.drctl-new
        chmod 600 PG_VERSION.drctl-new
        mv PG_VERSION.drctl-new PG_VERSION
        echo 'made PG_VERSION'
    fi
    sync
}

move_aside() {
    make_dir aside
    for name; do
        [ -e "$name" ] || continue
        mv "$name" "$W/aside/$name"
        echo "moved $name"
    done
    sync
}

move_back() {
    for name; do
        if [ -e "$W/aside/$name" ] && [ ! -e "$name" ]; then
            mv "$W/aside/$name" "$name"
            echo "moved $name"
        fi
    done
    sync
}

verb=$1
shift
case $verb in
set-aside) set_aside "$@" ;;
put-lines-back) put_lines_back ;;
fix-permissions) fix_permissions "$@" ;;
restore-permissions) restore_permissions ;;
make-missing) make_missing "$@" ;;
move-aside) move_aside "$@" ;;
move-back) move_back "$@" ;;
*) fail "unknown verb $verb" ;;
esac
