# Arguments: the unit that loads the rules, the directory with them. Prints, a line each: `controller ADDRESS PORT ADDRESS PORT` of the SSH connection by
# which this runs, client first; `port N` of SSH; `pending` where the rules on disk are not all that holds, now and at boot.
process=$$
while [ "${process:-0}" -gt 1 ]; do
    connection=$(tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | sed -n 's/^SSH_CONNECTION=//p')
    [ -z "$connection" ] || { echo "controller $connection"; break; }
    process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status")
done

sshd=$(command -v sshd || echo /usr/sbin/sshd)
# What is to be, and what is: also by systemd's socket. The former needs the directory that the service makes.
if [ -x "$sshd" ]; then
    "$sshd" -T 2>/dev/null | sed -n 's/^port \([0-9]*\)$/port \1/p'
fi
ss --no-header --listening --tcp --numeric --processes 2>/dev/null | awk '/"sshd"/ { sub(/.*:/, "", $4); print "port " $4 }'
systemctl show --property=Listen --value ssh.socket 2>/dev/null | sed -n 's/^.*:\([0-9]*\) (Stream)$/port \1/p'

# As nft shows them: loaded where nobody is.
shown() {
    unshare --net sh -c 'nft --file "$1" && nft list table inet quintet_firewall' sh "$1" 2>/dev/null
}
if cmp --silent "$2/rules.nft" "$2/wanted.nft" &&
    [ "$(shown "$2/wanted.nft")" = "$(nft list table inet quintet_firewall 2>/dev/null)" ] &&
    systemctl is-enabled --quiet "$1" && systemctl is-active --quiet "$1" &&
    [ "$(systemctl show --value --property=NeedDaemonReload "$1")" = no ]; then
    :
else
    echo pending
fi
