# Second stage of the guest, process 1: sets up what a Debian machine has, runs
# /ctl/cmd and powers off. The host writes /ctl/env and /ctl/cmd before boot;
# the guest answers with /ctl/uptime (when the command began) and /ctl/status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
. /ctl/env
# Starting a program is what takes time under emulation: busybox is static, and one
# of it does the work of several.
b=/bin/busybox
$b mount -t tmpfs run /run
$b mkdir -p /dev/pts /dev/shm /dev/larder /run/lock
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
$b mount -t tmpfs tmp /tmp
$b chmod 1777 /tmp /dev/shm
$b mount -t cgroup2 cgroup /sys/fs/cgroup
echo '+cpu +io +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
$b cp -a /etc/larder-dev/. /dev/
# Opening these loads their modules.
$b mkdir /dev/mapper
$b mknod /dev/loop-control c 10 237
$b mknod /dev/btrfs-control c 10 234
$b mknod /dev/fuse c 10 229
$b mknod /dev/mapper/control c 10 236
echo vm > /proc/sys/kernel/hostname
$b ip link set lo up

# Shared host folders stand at their own host path, so that a path printed by a
# build on the host is good in here.
for i in ${!VM_SHARES[@]}; do
    $b mkdir -p "${VM_SHARES[$i]}"
    $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose "share$i" "${VM_SHARES[$i]}"
done
[ ${#VM_SHARES[@]} = 0 ] || $b ln -s "${VM_SHARES[0]}" /share

# Disks are found by their serial, whatever letter they got.
for disk in /sys/block/vd*; do
    read -r serial < "$disk/serial"
    [ -z "$serial" ] || $b ln -s "../${disk##*/}" "/dev/larder/$serial"
done
[ -z "$VM_SCRATCH" ] || mount -t ext4 -o discard /dev/larder/scratch /scratch
if [ -n "$VM_UDEV" ]; then
    /lib/systemd/systemd-udevd --daemon
    udevadm trigger --type=devices --action=add --subsystem-match=block
    udevadm settle
fi

# A virtio port can be opened once, but commands open /dev/stderr again: hence the
# pipes between.
for port in /sys/class/virtio-ports/*; do
    read -r name < "$port/name"
    declare "port_$name=/dev/${port##*/}"
done
$b mkfifo /run/vm-in /run/vm-out /run/vm-err
cat < "$port_in" > /run/vm-in &
cat < /run/vm-out > "$port_out" &
copy_out=$!
cat < /run/vm-err > "$port_err" &
copy_err=$!

read -r uptime _ < /proc/uptime
echo "$uptime" > /ctl/uptime
cd "$VM_CWD" 2>/dev/null || cd /
bash /ctl/cmd < /run/vm-in > /run/vm-out 2> /run/vm-err
status=$?
# A process that the command left behind may hold the pipes for ever.
for _ in {1..20}; do
    kill -0 $copy_out 2>/dev/null || kill -0 $copy_err 2>/dev/null || break
    sleep 0.1
done
echo $status > /ctl/status.tmp
$b mv /ctl/status.tmp /ctl/status
[ -z "$VM_SCRATCH" ] || $b umount /scratch 2>/dev/null
$b sync
echo o > /proc/sysrq-trigger
sleep 5
