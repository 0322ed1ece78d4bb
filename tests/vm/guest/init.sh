#!/bin/busybox sh
# First process of the guest: mounts the read-only root image with a writable
# layer in memory over it, and hands over to the script that this run's host side
# wrote (guest/run.sh, on the 9p share `ctl`).
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module"; done < /modules/list
$b mount -t erofs -o ro /dev/vda /ro || $b poweroff -f
$b mount -t tmpfs -o size=75% rw /rw
$b mkdir /rw/upper /rw/work
# index and nfs_export: without them knfsd cannot export a folder of the root.
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work,index=on,nfs_export=on root /new
for dir in proc sys dev; do $b mount --move /$dir /new/$dir; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536 ctl /new/ctl || $b poweroff -f
exec $b switch_root /new /bin/bash /ctl/run.sh
