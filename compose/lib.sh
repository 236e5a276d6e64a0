# What the scripts beside this file share. They run with bash 3.2, too.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")"
state=$PWD/.state
mkdir -p "$state"

while IFS='=' read -r name value; do
    case $name in
    JOBS_*) [ -n "${!name:-}" ] || export "$name=$value" ;;
    esac
done <images.env

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# The drivers named on a command line, or all.
drivers() {
    local driver
    for driver; do broker "$driver" >/dev/null; done
    echo "${*:-amqp kafka sqs beanstalk}"
}

# The broker of a driver: the folder of its image, in capitals a part of its variables.
broker() {
    case $1 in
    amqp) echo rabbitmq ;;
    kafka) echo kafka ;;
    sqs) echo elasticmq ;;
    beanstalk) echo beanstalkd ;;
    *) die "There is no broker for '$1', only for amqp, kafka, sqs and beanstalk." ;;
    esac
}

# One line per step: its name, what became of it, the seconds since `$3`.
report() {
    printf '%-24s %-10s %4d s\n' "$1" "$2" "$((SECONDS - $3))"
}

# step NAME RESULT COMMAND…: runs the command with its output in a log, which is shown if it fails.
# Not to be called as a condition: that would let the command run on after an error in it.
step() {
    local name=$1 result=$2 log="$state/${1// /-}.log" start=$SECONDS status
    shift 2
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" != 0 ]; then
        report "$name" failed "$start"
        tail -n 40 "$log" >&2
        die "All of it: $log"
    fi
    report "$name" "$result" "$start"
}

# Networks fail for a moment: three attempts.
retry() {
    "$@" || { sleep 2 && "$@"; } || { sleep 5 && "$@"; }
}

may_install() {
    [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]
}

# need COMMAND PACKAGE: installs the package if the command is missing.
need() {
    command -v "$1" >/dev/null && return
    may_install || die "$1 is missing: install it, or run this as root on Debian."
    step "$2 package" installed install_package "$2"
}

install_package() {
    export DEBIAN_FRONTEND=noninteractive
    # A source that is unreachable matters only if the package comes from there.
    retry apt-get update -q || true
    retry apt-get install -q -y --no-install-recommends "$1"
}

# The engine that compose/images started, if it still runs: its command line names our file.
engine_pid() {
    local pid
    pid=$(cat "$state/engine.pid" 2>/dev/null) || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -e "--pidfile $state/engine.pid" || return 1
    echo "$pid"
}
