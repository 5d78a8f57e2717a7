#!/bin/sh
# A web server, an application and a database, each in a sandbox of its own, on two networks, as a compose file would
# have them:
#
#     127.0.0.1:8080 ---- web (nginx) ====shop-front==== app (python) ====shop-back==== db (redis)
#
# web is published; app is on both networks; shop-back is internal: the database reaches the application and nothing
# else, and web does not reach the database. They find each other by name. Ctrl-C ends it and takes all of it away.
#
#     examples/shop.sh [PORT]        (needs Debian's nginx-light, redis-server and python3)
set -eu

port=${1:-8080}
tapline=${TAPLINE:-tapline}
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
running=
PATH=$PATH:/usr/sbin

# The sandboxes end when their tapline is told to; a network can go when nobody is on it any more.
down() {
    trap - EXIT
    for sandbox in $running; do
        kill "$sandbox" 2>/dev/null || :
    done
    wait
    "$tapline" network rm shop-front shop-back >/dev/null || :
    rm -r "$work"
}
trap 'exit 130' INT
trap 'exit 143' TERM
trap down EXIT

# Wait until a sandbox can be entered; whoever ends before has said why.
ready() {
    until "$tapline" exec "$1" -- true 2>/dev/null; do
        kill -0 "$2" || exit 1
        sleep 0.1
    done
}

"$tapline" network create shop-front >/dev/null
"$tapline" network create --internal shop-back >/dev/null

# Nothing is kept, nobody is asked for a password: the network says who may come.
"$tapline" run --name shop-db --net shop-back --network-alias db -- \
    redis-server --bind '*' '-::*' --protected-mode no --save '' --loglevel warning --dir "$work" &
db=$! running=$!

"$tapline" run --name shop-app --net shop-front --net shop-back --network-alias app -- \
    python3 "$here/shop/app.py" &
app=$! running="$running $!"
ready shop-db "$db"
ready shop-app "$app"

# nginx looks `app` up when it starts.
sed "s|WORK|$work|g" "$here/shop/nginx.conf" > "$work/nginx.conf"
"$tapline" run --name shop-web --net shop-front -p "127.0.0.1:$port:80" -- nginx -c "$work/nginx.conf" &
web=$! running="$running $!"
ready shop-web "$web"

"$tapline" ps
echo "open: http://127.0.0.1:$port/"
wait "$web"
