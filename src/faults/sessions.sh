# shellcheck shell=sh disable=SC2097,SC2098
# Holds the connection slots of a server. $1: how; $2: seconds; $3: table, for locks.
#
# Every session waits for the same input, which never comes. New ones are opened until no more
# are given. `again` opens new ones for the whole time; for the others the role is forbidden to
# log in once all is full, and what is lost then stays lost.
how=$1
end=$(($(date +%s) + $2))
table=$3
dir=$(mktemp -d)
mkfifo "$dir/pipe"
exec 9<>"$dir/pipe"

hold() {
  case $how in
  in-transaction) psql -X -q -c 'begin' -c 'select 1' -f - ;;
  busy) psql -X -q -c "select pg_sleep($2)" ;;
  pile-up | queue) psql -X -q -c "select 1 from $table limit 1" ;;
  *) psql -X -q ;;
  esac <&9 >/dev/null 2>>"$dir/said"
}

# The one that the others wait for.
case $how in
pile-up) psql -X -q -c 'begin' -c "lock table $table in access exclusive mode" -f - <&9 >/dev/null 2>&1 & ;;
queue)
  psql -X -q -c 'begin' -c "lock table $table in access share mode" -f - <&9 >/dev/null 2>&1 &
  sleep 1
  PGAPPNAME=drctl-fault-migration psql -X -q -c 'begin' -c "lock table $table in access exclusive mode" >/dev/null 2>&1 &
  ;;
esac
case $how in pile-up | queue) sleep 1 ;; esac

held=''
admins=''
more=8
rounds=0
while [ "$(date +%s)" -lt "$end" ]; do
  i=0
  while [ "$i" -lt "$more" ]; do
    hold "$@" &
    held="$held $!"
    i=$((i + 1))
  done
  sleep 0.5
  left=''
  [ "$more" -eq 0 ] || more=8
  for pid in $held; do
    if kill -0 "$pid" 2>/dev/null; then left="$left $pid"
    else
      [ "$more" -eq 0 ] || more=1
      wait "$pid" || :
    fi
  done
  held=$left
  # Full once: what is lost from here on stays lost.
  if [ "$more" -gt 0 ] && grep -q 'not permitted to log in' "$dir/said" 2>/dev/null; then more=0; fi
  : > "$dir/said"
  # The superusers' slots after those of everybody else, for six seconds.
  if [ "$how" = reserved ] && [ "$more" -ne 8 ] && [ "$rounds" -lt 12 ]; then
    rounds=$((rounds + 1))
    [ "$rounds" -lt 12 ] || more=0
    PGUSER=$ADMIN_USER PGPASSWORD=$ADMIN_PASSWORD psql -X -q <&9 >/dev/null 2>&1 &
    admins="$admins $!"
  fi
done
for pid in $held $admins; do kill "$pid" 2>/dev/null || :; done
for pid in $(jobs -p); do kill "$pid" 2>/dev/null || :; done
wait
sleep 1
PGUSER=$ADMIN_USER PGPASSWORD=$ADMIN_PASSWORD psql -X -q \
  -c "drop owned by \"$PGUSER\"" -c "drop role if exists \"$PGUSER\""
