#!/bin/sh
# Applies manifests/ to a cluster, sends the requests of checks.tsv by `kubectl exec`, and compares the verdicts.
set -eu

usage() {
    cat <<'TEXT'
usage: deploy/smoke/run.sh [OPTION…]

Tests network policy on a cluster, with kubectl alone. It makes two namespaces with a backend, client pods
on two nodes, and policies by L3, L4 and L7. It sends requests by `kubectl exec`, prints a table of what was
expected and what came, and removes all of it again.

  --image IMAGE      image of all pods: needs sh, sleep, curl and python3   [nicolaka/netshoot]
  --namespace NAME   namespace to make; a second one is NAME-other          [l7proxy-smoke]
  --kubectl COMMAND  such as 'kubectl --context test' or 'k3s kubectl'      [kubectl]
  --timeout SECONDS  for pods to become Ready, then for policies to hold    [120]
  --drop             expect time-outs where policy refuses a connection (the setting `refuse: drop`)
  --one-node         without the clients on another node
  --keep             leave everything in the cluster when done
  --help

Each option is also a variable: IMAGE, NAMESPACE, KUBECTL, TIMEOUT; an option wins.

Exit code: 0 all verdicts are right, 1 some are wrong or a policy's status says that it is not enforced, 2 the
test could not run.

Words of the table: a number is the status of the HTTP response. `reset`: the connection was refused or reset;
`timeout`: no answer; `refused`: either of the two; `closed`: the server closed without a response.

Rights needed: create and delete namespaces; pods, Services, policies and exec in them; list nodes; get the
definition (CRD) of CiliumNetworkPolicy.
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
image=${IMAGE:-nicolaka/netshoot}
namespace=${NAMESPACE:-l7proxy-smoke}
kubectl=${KUBECTL:-kubectl}
timeout=${TIMEOUT:-120}
drop=no
one_node=no
keep=no

while [ $# -gt 0 ]; do
    case $1 in
    --image=* | --namespace=* | --kubectl=* | --timeout=*)
        option=${1%%=*} value=${1#*=} ;;
    --image | --namespace | --kubectl | --timeout)
        [ $# -ge 2 ] || fail "$1 needs a value: see --help"
        option=$1 value=$2
        shift ;;
    --drop | --one-node | --keep)
        option=$1 value=yes ;;
    -h | --help)
        usage
        exit 0 ;;
    *)
        fail "unknown option $1: see --help" ;;
    esac
    case $option in
    --image) image=$value ;;
    --namespace) namespace=$value ;;
    --kubectl) kubectl=$value ;;
    --timeout) timeout=$value ;;
    --drop) drop=yes ;;
    --one-node) one_node=yes ;;
    --keep) keep=yes ;;
    esac
    shift
done

case $timeout in
'' | 0* | *[!0-9]*) fail "--timeout $timeout: must be a number of seconds" ;;
esac
case $namespace in
'' | -* | *- | *[!a-z0-9-]*) fail "--namespace $namespace: must have lower case letters, digits and - only" ;;
esac
case $image in
'' | *[!A-Za-z0-9._/:@-]*) fail "--image $image: is not the name of an image" ;;
esac
command -v "${kubectl%% *}" >/dev/null 2>&1 ||
    fail "${kubectl%% *} is not installed: install kubectl, or name it with --kubectl"

k() {
    # shellcheck disable=SC2086  # a command with arguments
    $kubectl "$@"
}

# In a subshell: ends with it, so a signal to the subshell reaches kubectl.
become_k() {
    # shellcheck disable=SC2086
    exec $kubectl "$@"
}

# In the background: only so are signals handled at once.
waited() {
    "$@" &
    background=$! code=0
    wait "$background" || code=$?
    background=
    return "$code"
}

created=no
background=
work=$(mktemp -d)

cleanup() {
    code=$?
    trap - EXIT INT TERM HUP
    for process in $background; do
        kill "$process" 2>/dev/null || true
    done
    if [ "$created" = yes ] && [ "$keep" = no ]; then
        k delete namespace "$namespace" "$namespace-other" --ignore-not-found --timeout=60s >"$work/deleted" 2>&1 || {
            cat "$work/deleted" >&2
            echo "error: the namespaces are not gone: run $kubectl delete namespace $namespace $namespace-other" >&2
        }
    elif [ "$created" = yes ]; then
        echo "Kept. To remove: $kubectl delete namespace $namespace $namespace-other"
    fi
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

manifests() {
    for file in "$@"; do
        sed -e "s|l7proxy-smoke|$namespace|g" -e "s|nicolaka/netshoot|$image|" "$here/manifests/$file"
        echo ---
    done
}

# The cluster

check_cluster() {
    for each in "$namespace" "$namespace-other"; do
        found=$(k get namespace "$each" --ignore-not-found \
            -o 'jsonpath={.metadata.name}={.metadata.labels.l7proxy\.io/smoke}' 2>"$work/error") || {
            cat "$work/error" >&2
            fail "the cluster cannot be used: check '$kubectl get namespaces', KUBECONFIG and --kubectl"
        }
        case $found in
        '' | "$each=true") ;;
        *) fail "the namespace $each exists and is not of this test: give another one with --namespace" ;;
        esac
    done
    k get customresourcedefinition ciliumnetworkpolicies.cilium.io -o name >/dev/null 2>"$work/error" || {
        cat "$work/error" >&2
        fail "the cluster has no CiliumNetworkPolicy: install l7proxy first (its chart brings the definition)"
    }
    if [ "$one_node" = no ]; then
        nodes=$(usable_nodes)
        if [ "$nodes" -lt 2 ]; then
            one_node=yes
            echo "The cluster has $nodes node that pods may be put on: rows from another node are skipped."
        fi
    fi
}

# Nodes that are not cordoned and have no taint that keeps pods away.
usable_nodes() {
    k get nodes -o 'jsonpath={range .items[*]}{.metadata.name}:{.spec.unschedulable}:{.spec.taints[*].effect}{"\n"}{end}' |
        grep -v -e ':true:' -e 'NoSchedule' -e 'NoExecute' | grep -c . || true
}

apply() {
    manifests "$@" >"$work/manifests.yaml"
    k apply -f "$work/manifests.yaml" >"$work/applied" 2>"$work/error" || {
        cat "$work/error" >&2
        fail "the manifests cannot be applied: see the message above"
    }
}

start() {
    created=yes
    apply 1-namespaces.yaml
    apply 2-policies.yaml 3-pods.yaml
    [ "$one_node" = yes ] || apply 4-pods-on-another-node.yaml
    for each in "$namespace" "$namespace-other"; do
        waited become_k -n "$each" wait --for=condition=Ready pod -l l7proxy.io/smoke --timeout="${timeout}s" \
            >"$work/waited" 2>"$work/error" || {
            cat "$work/error" >&2
            k -n "$each" get pods -o wide >&2 || true
            k -n "$each" get events --field-selector type=Warning | tail -n 10 >&2 || true
            fail "the pods are not Ready: see above (image $image: choose with --image; a pod that is Pending: --one-node)"
        }
    done
    k -n "$namespace" get pods -o 'jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}' >"$work/pods"
    k -n "$namespace" get services -o 'jsonpath={range .items[*]}{.metadata.name} {.spec.clusterIP}{"\n"}{end}' >"$work/services"
    k -n "$namespace-other" get pods -o 'jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}' |
        sed 's|^|other/|' >>"$work/pods"
    find_names
}

# Sets `dns`: whether pods can resolve the name of a Service. Whatever becomes of the connection: curl says how long
# the name took, 0 when it was not found.
find_names() {
    dns=no
    for _ in 1 2 3; do
        took=$(k -n "$namespace" exec frontend -- curl -s -o /dev/null -m 6 --noproxy '*' -w '%{time_namelookup}' \
            "http://backend.$namespace:80/" 2>"$work/error") || true
        case $took in
        *[1-9]*)
            dns=yes
            return ;;
        esac
        waited sleep 1
    done
    echo "The cluster has no DNS: Services are reached by their address, headless ones are skipped."
}

# The requests

tab=$(printf '\t')

second() {
    sed -n "s|^$2 \([^ ]*\).*|\1|p" "$1"
}

bracketed() {
    case $1 in
    *:*) echo "[$1]" ;;
    *) echo "$1" ;;
    esac
}

# One row as the words of a curl command; nothing where this cluster cannot have it.
request() {
    target=${to#*/} name=${to#*/}
    name=${name%:*} port=${target##*:}
    case $to in
    pod/*) url="http://$(bracketed "$(second "$work/pods" "$name")"):$port$path" connect= ;;
    headless/*)
        [ "$dns" = yes ] || return 0
        url="http://$name.$namespace:$port$path" connect= ;;
    service/*)
        url="http://$name.$namespace:$port$path" connect=
        [ "$dns" = yes ] || connect=" --connect-to '::$(bracketed "$(second "$work/services" "$name")"):$port'" ;;
    esac
    case $method in
    HEAD) how=-I ;;
    POST) how="-X POST -d {}" ;;
    *) how="-X $method" ;;
    esac
    [ "$header" = - ] || how="$how -H '$header'"
    echo "row $number $how$connect '$url'"
}

prepare() {
    cat >"$work/prologue" <<'TEXT'
row() {
    number=$1
    shift
    code=$(curl -s -o /dev/null -w '%{http_code}' --noproxy '*' --connect-timeout 3 -m 6 "$@")
    echo "$number $? $code"
}
TEXT
    number=0 rows=0
    mkdir "$work/clients"
    while IFS=$tab read -r from to method path header expected why; do
        case $from in '#'*) continue ;; esac
        number=$((number + 1))
        [ -n "$(second "$work/pods" "$from")" ] || continue
        line=$(request)
        [ -n "$line" ] || continue
        rows=$((rows + 1))
        client=$work/clients/$(echo "$from" | tr / +)
        [ -f "$client" ] || cp "$work/prologue" "$client"
        echo "$line" >>"$client"
        [ "$drop" = no ] || [ "$expected" != reset ] || expected=timeout
        printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$number" "$from" "$to" "$method" "$path" "$header" "$expected" "$why"
    done <"$here/checks.tsv" >"$work/rows"
    rows=$(grep -c . "$work/rows")
    skipped=$(($(grep -vc '^#' "$here/checks.tsv") - rows))
}

# Sends every request once, each client's one after the other; the answers are in $work/answers.
send() {
    background=
    for client in "$work"/clients/*; do
        name=${client##*/} in=$namespace
        case $name in other+*) name=${name#other+} in=$namespace-other ;; esac
        become_k -n "$in" exec -i "$name" -- sh <"$client" >"$work/out.${client##*/}" 2>"$work/err.${client##*/}" &
        background="$background $!"
    done
    for process in $background; do
        wait "$process" || true
    done
    background=
    cat "$work"/out.* >"$work/answers"
    judge >"$work/judged"
    wrong=$(grep -c "${tab}WRONG\$" "$work/judged" || true)
}

word() {
    case $1 in
    '') echo 'no answer' ;;
    '0 '*) echo "${1#* }" ;;
    '6 '*) echo 'no such name' ;;
    '7 '* | '35 '* | '56 '*) echo reset ;;
    '28 '*) echo timeout ;;
    '52 '*) echo closed ;;
    *) echo "curl exit ${1%% *}" ;;
    esac
}

judge() {
    while IFS=$tab read -r number from to method path header expected why; do
        got=$(word "$(sed -n "s/^$number \(.*\)/\1/p" "$work/answers")")
        verdict=WRONG
        case $expected/$got in
        refused/reset | refused/timeout) verdict=ok ;;
        "$got/$got") verdict=ok ;;
        esac
        [ "$header" = - ] && shown="$method $path" || shown="$method $path $header"
        printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$from" "$to" "$shown" "$expected" "$got" "$why" "$verdict"
    done <"$work/rows"
}

# What the status of each policy says, where the cluster writes one; `denied` counts those that are not enforced.
ask_policies() {
    k -n "$namespace" get ciliumnetworkpolicies \
        -o 'jsonpath={range .items[*]}{.metadata.name}{"\t"}{.status.conditions[?(@.type=="l7proxy.io/Enforced")].status}{"\t"}{.status.conditions[?(@.type=="l7proxy.io/Enforced")].message}{"\n"}{end}' \
        >"$work/policies" 2>"$work/error" || true
    denied=$(awk -F '\t' '$2 != "" && $2 != "True"' "$work/policies" | grep -c . || true)
}

# Repeats all requests until the policies hold, and their status says so; the last pass here is not judged.
settle() {
    began=$(date +%s)
    while :; do
        send
        ask_policies
        took=$(($(date +%s) - began))
        if [ "$wrong" -eq 0 ] && [ "$denied" -eq 0 ]; then
            echo "The policies hold, $took s after the pods were Ready."
            return 0
        fi
        [ "$took" -lt "$timeout" ] || break
        waited sleep 1
    done
    echo "After $took s, $wrong of $rows verdicts are still not as expected, and $denied policies say that they are not enforced."
    return 1
}

table() {
    format='%-14s %-31s %-31s %-9s %-13s %s\n'
    # shellcheck disable=SC2059  # a constant
    printf "$format" FROM TO REQUEST EXPECTED GOT ''
    while IFS=$tab read -r from to shown expected got why verdict; do
        # shellcheck disable=SC2059
        printf "$format" "$from" "$to" "$shown" "$expected" "$got" "$verdict: $why"
    done <"$work/judged"
}

advise() {
    cat "$work"/err.* | sort -u | head -n 5 >&2
    echo
    echo "Next: --keep leaves the pods; on each node, 'l7proxy status' and 'l7proxy observe --verdict DROPPED'."
}

check_cluster
echo "Starting pods in $namespace and $namespace-other, image $image."
start
echo "The backend is on $(sed -n 's/^backend [^ ]* //p' "$work/pods")$(sed -n 's/^frontend-far [^ ]* /, clients there and on /p' "$work/pods")."
prepare
if settle; then
    send
    ask_policies
fi
table
echo
awk -F '\t' '$3 != "" { print "Policy " $1 ": " $3 }' "$work/policies"
[ "$skipped" -eq 0 ] || echo "$skipped rows were skipped."
if [ "$wrong" -ne 0 ]; then
    advise
    echo "$wrong of $rows verdicts are wrong."
    exit 1
fi
echo "All $rows verdicts are right."
if [ "$denied" -ne 0 ]; then
    echo "But $denied policies say that they are not enforced: see above."
    exit 1
fi
