# Arguments: the directory with the rules, the unit that takes them back, the unit that loads them at boot, the connection by which they were loaded (empty:
# it was none by SSH).
process=$$ connection=
while [ "$process" -gt 1 ] && [ -z "$connection" ]; do
    connection=$(tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | sed -n 's/^SSH_CONNECTION=//p')
    process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status")
done
if [ -n "$4" ] && [ "$connection" = "$4" ]; then
    echo "this is the connection from before ($4); Ansible could not open another one" >&2
    exit 1
fi
if ! systemctl stop "$2.timer" || ! nft list table inet quintet_firewall >/dev/null 2>&1; then
    echo "the host has taken them back already: the new connection took too long" >&2
    exit 1
fi
cp "$1/wanted.nft" "$1/.rules.nft"
mv "$1/.rules.nft" "$1/rules.nft"
systemctl daemon-reload
systemctl enable --quiet "$3"
systemctl start "$3"
