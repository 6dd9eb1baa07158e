# Both servers; the pod ends when SSH does.
set -eu
lighttpd -D -f /srv/lighttpd.conf &
exec /usr/sbin/sshd -D -e -p 2222 -h /srv/git/host_key -o AuthorizedKeysFile=/srv/git/client_key.pub \
  -o StrictModes=no -o UsePAM=no -o PidFile=none
