# Arguments: the directory with the rules, the unit that takes them back, after how many seconds it does.
systemctl stop "$2.timer" 2>/dev/null || true
systemctl reset-failed "$2.timer" "$2.service" 2>/dev/null || true
# The rules that held last, or none.
if [ -e "$1/rules.nft" ]; then
    set -- "$1" "$2" "$3" nft --file "$1/rules.nft"
else
    set -- "$1" "$2" "$3" nft delete table inet quintet_firewall
fi
directory=$1 undo=$2 seconds=$3
shift 3
systemd-run --quiet --collect --unit="$undo" --on-active="$seconds" --timer-property=AccuracySec=1s "$@"
nft --file "$directory/wanted.nft"
