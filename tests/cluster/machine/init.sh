#!/bin/bash
# Process 1 of one machine of a cluster. It makes the machine's own root and then only
# reaps what its daemons leave behind; when it ends the kernel ends all the rest.
#
#   NAME    host name
#   HOME_   the machine's folder: root/ (mount point), var/ (the disk)
#   BINDS   folders of the host that are seen at their own path, one a line, read-only
set -euo pipefail

# Nothing happens before the harness has written down which process this is.
read -r word && [ "$word" = go ] || exit 0

root=$HOME_/root
echo "$NAME" >/proc/sys/kernel/hostname

# A root without any of the host's mounts: a copy of one of them would keep file systems
# and loop devices of others busy for as long as this machine lives.
mount -t tmpfs -o mode=755,size=256m larder-root "$root"
cd "$root"
mkdir -p dev etc/cni/net.d old opt proc root run/lock srv sys tmp usr var mnt
chmod 1777 tmp
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then
        cp -P "/$name" .
    elif [ -d "/$name" ]; then
        mkdir "$name"
        mount --bind "/$name" "$name"
        mount -o remount,bind,ro "$name"
    fi
done
for name in alternatives group ld.so.cache mke2fs.conf nsswitch.conf passwd protocols services; do
    [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$NAME" >etc/hosts
: >etc/resolv.conf
: >etc/machine-id
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id

mount --bind "$HOME_/var" var
mkdir -p var/lib/kubelet var/log var/tmp
ln -sfn /run var/run
while read -r path; do
    [ -n "$path" ] || continue
    mkdir -p ".$path"
    mount --bind "$path" ".$path"
    mount -o remount,bind,ro ".$path"
done <<<"$BINDS"

mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sysfs sys
if [ -d sys/fs/cgroup ] && [ -d /sys/fs/cgroup ]; then
    mount --rbind /sys/fs/cgroup sys/fs/cgroup
fi

pivot_root . old
cd /
umount -l /old
rmdir /old
# Mounts that pods make in shared folders are seen by the other pods, as on a host under systemd.
mount --make-rshared /

echo ready >/run/larder-machine
exec </dev/null
# A wait of bash collects every child, also those that it did not start.
while :; do
    sleep 100000 &
    wait $! || true
done
