# Runs as root inside the new Debian tree (mmdebstrap customize hook), with the
# tree's own tools. Leaves the three files that QEMU boots from in /.vm:
#   vmlinux   the uncompressed kernel: booting it through PVH saves the 3 s that
#             unpacking takes when every instruction is emulated
#   initrd    busybox, the modules on the way to the root image, guest/init.sh
#   root.erofs the tree itself with the storage modules, read-only
# $KERNEL is the kernel's meta package.
set -eu
out=/.vm
mkdir -p $out/kernel $out/initrd/bin $out/initrd/modules

# The kernel is unpacked, not installed: no initramfs-tools, no boot loader.
image=$(apt-cache depends "$KERNEL" | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
cd $out/kernel
apt-get -qq -o APT::Sandbox::User=root download "$image"
dpkg-deb -x ./*.deb .
modules=lib/modules
[ -d $modules ] || modules=usr/lib/modules # since trixie
version=$(ls $modules)

packed=boot/vmlinuz-$version
unpack() { # magic, decompressor
    at=$(LC_ALL=C grep -aobUP "$1" "$packed" | head -n 1 | cut -d: -f1)
    [ -n "$at" ] || return 0
    # The payload is followed by other data, which makes the tools complain.
    tail -c +$((at + 1)) "$packed" | $2 > $out/vmlinux 2>/dev/null || :
}
is_elf() { [ "$(head -c 4 $out/vmlinux 2>/dev/null | tail -c 3)" = ELF ]; }
unpack '\xfd7zXZ\x00' 'xz -dc --single-stream'
is_elf || unpack '\x28\xb5\x2f\xfd' 'zstd -dc'
is_elf || cp "$packed" $out/vmlinux

# Storage and network modules only; unpacked, so that loading them is quick.
from=$modules/$version
to=/lib/modules/$version
mkdir -p "$to/kernel"
for dir in arch block crypto fs lib mm \
    drivers/ata drivers/block drivers/cdrom drivers/char drivers/crypto drivers/dax \
    drivers/infiniband/core drivers/infiniband/sw drivers/infiniband/ulp drivers/md \
    drivers/message drivers/nvdimm drivers/nvme drivers/scsi drivers/target drivers/vhost \
    drivers/virtio drivers/net/bonding net/ipv4 net/ipv6 net/9p net/core net/sunrpc net/dns_resolver \
    net/netfilter net/packet net/unix net/tls net/ceph net/rds net/vmw_vsock; do
    [ -e "$from/kernel/$dir" ] || continue
    mkdir -p "$to/kernel/${dir%/*}"
    cp -a "$from/kernel/$dir" "$to/kernel/${dir%/*}/"
done
for file in drivers/net/veth drivers/net/dummy drivers/net/loopback drivers/net/macvlan \
    drivers/net/virtio_net drivers/net/net_failover net/core/failover; do
    for suffix in ko ko.xz ko.zst; do
        [ ! -e "$from/kernel/$file.$suffix" ] || {
            mkdir -p "$to/kernel/${file%/*}"
            cp -a "$from/kernel/$file.$suffix" "$to/kernel/$file.$suffix"
        }
    done
done
find "$to" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P 4 xz -d
find "$to" -name '*.ko.zst' -print0 | xargs -0 -r -n 64 -P 4 zstd -q -d --rm
# Checking a signature costs more than the rest of loading a module. It stands at
# the end: signature, 12 bytes that end with its length, a magic line.
find "$to" -name '*.ko' -print0 | xargs -0 perl -e '
    for my $path (@ARGV) {
        open(my $file, "+<:raw", $path) or die "$path: $!";
        my $size = -s $file;
        seek($file, $size - 40, 0);
        read($file, my $end, 40);
        next unless substr($end, 12) eq "~Module signature appended~\n";
        truncate($file, $size - 40 - unpack("N", substr($end, 8, 4))) or die "$path: $!";
    }'
for file in modules.builtin modules.builtin.modinfo modules.order; do
    cp "$from/$file" "$to/"
done
depmod "$version"

cd $out/initrd
mkdir -p proc sys dev ro rw new
cp /bin/busybox bin/busybox
cp /init.sh init
chmod 0755 init
for module in virtio_pci virtio_blk erofs overlay 9pnet_virtio 9p virtio_console virtio_rng; do
    # A module that is built in has nothing to load.
    modprobe -S "$version" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r path; do
    cp "$path" modules/
    echo "${path##*/}" >> modules/list
done
find . | cpio -o -H newc --quiet > $out/initrd.cpio

cd /
mkdir -p /ctl /scratch /etc/larder-dev
# What udev would put into /dev; guest/run.sh copies it.
ln -s /proc/self/fd /etc/larder-dev/fd
ln -s fd/0 /etc/larder-dev/stdin
ln -s fd/1 /etc/larder-dev/stdout
ln -s fd/2 /etc/larder-dev/stderr
ln -sf /proc/self/mounts /etc/mtab
echo '127.0.0.1 localhost vm' > /etc/hosts
rm -rf /init.sh /build.sh $out/kernel $out/initrd
# No xattrs: reading them, it would walk the mounted /proc in spite of the exclusion.
mkfs.erofs --quiet -zlz4 -T0 -x-1 --exclude-path=.vm --exclude-regex='^(dev|proc|sys|tmp|run|var/cache|var/lib/apt/lists)/.*' $out/root.erofs / > /dev/null
