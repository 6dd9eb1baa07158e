# Both servers; the pod ends when HTTPS does, which answers last.
set -eu
/usr/sbin/sshd -e -p 2222 -h /srv/git/host_key -o AuthorizedKeysFile=/srv/git/client_key.pub \
  -o StrictModes=no -o UsePAM=no -o PidFile=none
exec lighttpd -D -f /srv/lighttpd.conf
